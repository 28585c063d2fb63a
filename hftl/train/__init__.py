"""The thin Trainer, and what it needs: rates, order of rows, precision, progress."""
