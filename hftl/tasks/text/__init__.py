"""Tasks whose rows are texts, one a module."""
