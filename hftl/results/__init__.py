"""A finished run's folder: written, loaded back, predicted with, shared."""
