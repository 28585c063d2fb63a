"""Pretext tasks as one more class over a model: what it learns changes, its weights and their names stay.

The `forward` of each takes `labels` that say where a loss is asked for (-100: nowhere), and returns `loss`, the mean
over those places, and `logits`, what metrics need of each row: sums over its places, and last the number of these.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class Pretext(nn.Module):
    """What is laid over a model. `plain` is the class of the model below."""

    plain: type[nn.Module]

    @classmethod
    def over(cls, model: Any) -> None:
        """Let a model learn this pretext from now on; its weights and their names stay."""
        below = type(model)
        model.__class__ = type(below.__name__, (cls, below), {"plain": below, "__module__": below.__module__})

    @staticmethod
    def off(model: Any) -> None:
        """Give the model its own class back."""
        model.__class__ = model.plain
