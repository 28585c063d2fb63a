"""Checkpoints: whole or not, and going on from one as if nothing had happened."""
