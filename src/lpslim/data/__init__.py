"""Data sets: one module each, whose ``load`` returns a :class:`lpslim.splits.Data`."""
