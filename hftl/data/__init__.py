"""Data for a task: loaded, checked, encoded and split. Knows rows and labels, and neither models nor tensors."""
