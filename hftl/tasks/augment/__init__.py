"""Augmentations, one modality a module. Importing this package makes them known to the notation, and costs no torch."""

from hftl.tasks.augment import image, text
from hftl.tasks.augment.base import Augmentation, Chain, augmentation_of, known, read

__all__ = ["Augmentation", "Chain", "augmentation_of", "image", "known", "read", "text"]
