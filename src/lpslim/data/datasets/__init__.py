"""Data sets, one module each, whose ``load(settings, cache)`` returns a :class:`lpslim.data.splits.Data`."""
