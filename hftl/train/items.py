"""Count the items that a loss is the mean of, and weigh a micro-batch by them. Knows batches; no model, no task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def marked(batch: Mapping[str, Any], shifted: bool) -> dict[str, torch.Tensor] | None:
    """A batch of nothing but integer labels, -100 for what is no item; None where its labels cannot be counted.

    A number is an item whatever its value: as a target of a regression, -100.0 is a row.

    Args:
        shifted: the model is a causal language model, which predicts no first token.
    """
    labels = batch.get("shift_labels")
    if labels is None:
        labels = batch.get("labels")
        labels = labels[..., 1:] if shifted and isinstance(labels, torch.Tensor) else labels
    if not isinstance(labels, torch.Tensor):
        return None
    labels = torch.zeros_like(labels, dtype=torch.int64) if labels.is_floating_point() else labels
    return {"labels": labels, "shift_labels": labels}  # under the second name the base Trainer takes no token off


def count(batch: Mapping[str, Any], shifted: bool = False) -> torch.Tensor | None:
    """() int64, the items of a batch; None where they cannot be counted."""
    found = marked(batch, shifted)
    return None if found is None else found["labels"].ne(-100).sum()


def own_loss(outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The loss that a model gives of itself, in a mapping or as the first of a tuple.

    Raises:
        ValueError: it gives none.
    """
    if isinstance(outputs, Mapping) and "loss" not in outputs:
        raise ValueError(
            f"The model did not return a loss from the inputs, only {', '.join(outputs)}. It was given "
            f"{', '.join(inputs)}."
        )
    return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]


def weighed(loss: torch.Tensor, share: torch.Tensor | float) -> torch.Tensor:
    """A loss times a share; 0 where the share is 0, for a mean over no item is no number."""
    if not isinstance(share, torch.Tensor):
        return loss * share
    return torch.where(share > 0, loss, torch.zeros_like(loss)) * share
