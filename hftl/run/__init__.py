"""One run, from settings to report."""
