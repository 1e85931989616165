"""Data sets by name, and the splits and metrics that training needs."""
