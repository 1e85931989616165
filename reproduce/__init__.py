"""Rendering of tables, figures and the page of results from records and published tables."""
