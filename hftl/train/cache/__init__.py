"""What frozen layers gave, computed once and kept on disk."""
