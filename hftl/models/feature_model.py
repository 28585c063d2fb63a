"""A frozen model read out by a fitted classifier: features, decisions, files. Knows torch; fits nothing.

A `FeatureModel` is called like any model of its task and gives logits. What it needs besides the frozen model is kept
in `features.safetensors` and `features.json`, never in a pickle.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hftl.errors import UserError

SETTINGS, TENSORS = "features.json", "features.safetensors"


_ALONE = threading.Lock()
"""Taps are hooks: of two threads in one model each would read what the other computes."""


class Taps:
    """Features of a model, gathered while it runs.

    Args:
        names: `head MODULE` is what that module reads, `mean MODULE` and `first MODULE` are what it gives, over real
            tokens or positions, or of the first real token.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model, self.names = model, names

    def __call__(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Features of shape (rows, width) by name, in float32; those that do not fit a module are left out."""
        found: dict[str, torch.Tensor] = {}
        mask = inputs.get("attention_mask")
        hooks = [self._hook(name, mask, found) for name in self.names]
        try:
            self.model(**{k: v for k, v in inputs.items() if k != "labels"})
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found[name] for name in self.names if name in found}

    def _hook(self, name: str, mask: torch.Tensor | None, found: dict[str, torch.Tensor]) -> Any:
        how, path = name.split(" ")
        module = self.model.get_submodule(path)

        def read(module: nn.Module, args: Any) -> None:
            if args[0].ndim == 2:
                found[name] = args[0].float().clone()  # the model may go on in place

        def give(module: nn.Module, args: Any, output: Any) -> None:
            pooled = pool(how, _tensor(output).float(), mask)
            if pooled is not None:
                found[name] = pooled

        return module.register_forward_pre_hook(read) if how == "head" else module.register_forward_hook(give)


def _tensor(output: Any) -> torch.Tensor:
    """The first tensor of what a module gives."""
    if torch.is_tensor(output):
        return output
    return next(iter(output.values() if hasattr(output, "values") else output))


def pool(how: str, state: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """The mean of what a module gives over real tokens or positions, or its first real token; None for other shapes."""
    return {"mean": _mean, "first": _first}[how](state, mask)


def _mean(state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """(rows, tokens, width) over real tokens; (rows, channels, height, width) over positions; None for other shapes."""
    if state.ndim == 4:
        last = state.shape[1] == state.shape[2] != state.shape[3]  # Swin's channels come last
        return state.mean(dim=(1, 2) if last else (2, 3))
    if state.ndim != 3:
        return None
    if mask is None or mask.shape != state.shape[:2]:
        return state.mean(dim=1)
    real = mask.unsqueeze(-1).to(state.dtype)
    return (state * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _first(state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The first token that is not padding; None where there are no tokens."""
    if state.ndim != 3:
        return None
    if mask is None or mask.shape != state.shape[:2]:
        return state[:, 0].clone()
    return state[torch.arange(len(state), device=state.device), (mask != 0).int().argmax(dim=1)]


class Decision(nn.Module):
    """Logits (rows, classes) from features (rows, width): a linear map, kernels to support vectors, or neighbours.

    Args:
        kind: what is computed from which tensors: linear (`weight` (classes, width), `bias`); rbf (`mean`, `scale`,
            `support` (n, width), `weight` (classes, n), `bias`, `gamma`); knn (`mean`, `scale`, `support`, `votes`
            (n, classes), `k`).
    """

    CHUNK = 256
    """Rows whose distances to all support vectors are in memory at once."""

    def __init__(self, kind: str, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.kind = kind
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        made = {"linear": self._linear, "rbf": self._rbf, "knn": self._knn}[self.kind]
        return torch.cat([made(part.to(self._get("support", "weight").dtype)) for part in features.split(self.CHUNK)])

    def _linear(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self._get("weight").T + self._get("bias")).float()

    def _rbf(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.exp(-self._get("gamma") * self._distances(x) ** 2)
        return (kernel @ self._get("weight").T + self._get("bias")).float()

    def _knn(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of the shares of votes, smoothed (Laplace), so that softmax gives these shares."""
        k, votes = int(self._get("k")), self._get("votes")
        found = votes[self._distances(x).topk(k, largest=False).indices].sum(dim=1)
        return torch.log((found + 1 / votes.shape[1]) / (k + 1)).float()

    def _distances(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist((x - self._get("mean")) / self._get("scale"), self._get("support"))

    def _get(self, *names: str) -> Any:
        return next(getattr(self, name) for name in names if hasattr(self, name))


@dataclass
class Head:
    """A decision, the features that it reads, in the order they are joined, and what it is called in a report."""

    names: list[str]
    decision: Decision
    said: str


class FeatureModel(nn.Module):
    """A frozen model whose features a `Decision` reads.

    Args:
        names: the features, in the order they are joined.
        fresh: parameters of the model's own head, which nothing trained: they are not saved.
    """

    def __init__(self, base: nn.Module, names: list[str], decision: Decision, fresh: Iterable[str] = ()) -> None:
        super().__init__()
        self.base, self.names, self.decision, self.fresh = base, names, decision, set(fresh)
        self.config = base.config

    def forward(self, labels: Any = None, **inputs: Any) -> SequenceClassifierOutput:
        """As any model of the task, but it knows no loss: `labels` are not read."""
        with _ALONE:
            found = Taps(self.base, self.names)(inputs)
        logits = self.decision(torch.cat([found[name] for name in self.names], dim=1))
        return SequenceClassifierOutput(logits=logits)

    def save_pretrained(self, folder: str | Path, **others: Any) -> None:
        """Write the frozen model, and the classifier beside it; whoever loads the model alone is told of its head."""
        kept = {name: value for name, value in self.base.state_dict().items() if name not in self.fresh}
        self.base.save_pretrained(folder, state_dict=kept)  # type: ignore[operator,union-attr]
        told = {"kind": self.decision.kind, "features": self.names}
        (Path(folder) / SETTINGS).write_text(json.dumps(told, indent=1), "utf-8")
        save_file({k: v.contiguous() for k, v in self.decision.state_dict().items()}, Path(folder) / TENSORS)


def restored(base: nn.Module, folder: Path) -> nn.Module:
    """The model of a folder: with the classifier beside it, where there is one.

    Raises:
        UserError: the classifier's files are damaged.
    """
    if not (folder / SETTINGS).is_file():
        return base
    try:
        told = json.loads((folder / SETTINGS).read_text("utf-8"))
        return FeatureModel(base, told["features"], Decision(told["kind"], load_file(folder / TENSORS)))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as failure:
        raise UserError(
            f"{folder} holds a classifier that cannot be read ({failure}). Run recipes/features.py again."
        ) from failure
