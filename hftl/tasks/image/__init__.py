"""Tasks whose rows are images, one a module."""
