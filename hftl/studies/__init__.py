"""Several runs that are judged together."""
