"""Networks: one module a family, with ``NAMES``, ``build`` and ``prunable``."""
