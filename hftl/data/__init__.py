"""Data for a task: loaded, checked, encoded and split. Knows rows and labels, and neither models nor tensors."""

from hftl.data.check import length_check, render
from hftl.data.domains import Target
from hftl.data.load import load, read
from hftl.data.types import Check, Labels, Masks, Role, Splits

__all__ = ["Check", "Labels", "Masks", "Role", "Splits", "Target", "length_check", "load", "read", "render"]
