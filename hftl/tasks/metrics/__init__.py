"""Metrics, counted batch by batch, with their intervals."""
