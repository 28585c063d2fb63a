"""Where a model decides: the linear layer whose output is the logits, and the features that it reads.

Found by watching the model run, so that it holds for any architecture, with adapters or without; knows no data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def output_layer(model: nn.Module, inputs: dict[str, Any]) -> str | None:
    """The name of the linear layer whose output the model returns as logits; None without one.

    Args:
        inputs: one batch, without labels.
    """
    called: list[tuple[str, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: called.append((name, output)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = model(**inputs)["logits"]
    finally:
        for hook in hooks:
            hook.remove()
    same = (n for n, output in reversed(called) if output.shape == logits.shape and torch.equal(output, logits))
    return next(same, None)


class Reads:
    """What one layer was given in the model's last forward pass.

    Attributes:
        last: (rows, width) float32.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.last: torch.Tensor = torch.empty(0)
        self._hook = layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.last = args[0].flatten(1).float()

    def stop(self) -> None:
        """Listen no more."""
        self._hook.remove()
