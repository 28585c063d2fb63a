"""What can be set, and the one notation in which it is written."""
