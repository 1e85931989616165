"""Network families, one module each: see :mod:`lpslim.models.family`."""
