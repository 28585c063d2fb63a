"""Several models of transformers that share one encoder object, each with a head of its own. Knows no data.

What is fresh belongs to a head, wherever it lies: each task has its own copy of a new pooler inside the encoder, too.
So has it of a BatchNorm, whose statistics are of one task's batches: another's images, of other size or content, would
give the model in evaluation what it never met in training (Bilen & Vedaldi 2017, arXiv 1701.07275).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hftl.errors import UserError

RATE = 100.0
"""What a log-variance is in units of its parameter. Adam moves a parameter by about the learning rate a step, and 5e-5
of a log-variance is nothing."""


class OnePerTask(nn.Module):
    """A module of the shared encoder that each task has its own copy of; `task` says whose runs."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.task = next(iter(parts))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy of the task; a task that has none does not read what comes out, and gets the first one's."""
        first = next(iter(self.parts))
        return self.parts[self.task if self.task in self.parts else first](*args, **kwargs)


class Uncertainty(nn.Module):
    """Learnt weights of the losses: exp(-s) L + s / 2 with a log-variance s for each task, 0 at first.

    Kendall, Gal & Cipolla 2018 (arXiv 1705.07115), equations 7 and 10, with s = log sigma^2.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.scaled = nn.Parameter(torch.zeros(tasks))

    @property
    def log_variances(self) -> torch.Tensor:
        """(tasks,)"""
        return self.scaled * RATE

    def forward(self, loss: torch.Tensor, task: int) -> torch.Tensor:
        s = self.log_variances[task]
        return torch.exp(-s) * loss + s / 2


class MultiTaskModel(nn.Module):
    """One encoder, `shared`, and one model for each task in `heads` that reads it.

    Args:
        models: task -> a model of transformers' with a head. Each lets go of its own encoder; all take the largest.
        fresh: task -> the parameters that the checkpoint did not supply, by the name in that task's model.
        uncertainty: weigh the losses by learnt uncertainty while training.

    Attributes:
        fresh: names, in this model, of the parameters that the checkpoint did not supply.
        turned: called with the name of the task whenever another one's turn has come.

    Raises:
        UserError: a model has no encoder apart from its head.
    """

    base_model_prefix = "shared"

    def __init__(self, models: dict[str, Any], fresh: dict[str, set[str]], uncertainty: bool = False) -> None:
        super().__init__()
        for name, model in models.items():
            if model.base_model is model or model.base_model_prefix not in dict(model.named_children()):
                raise UserError(f"{type(model).__name__}, for {name}, has no encoder apart from its head to be shared.")
        self.tasks = list(models)
        self.prefixes = {name: str(model.base_model_prefix) for name, model in models.items()}
        largest = max(models, key=lambda name: sum(p.numel() for p in models[name].base_model.parameters()))
        shared = models[largest].base_model
        self._own = {path: self._copies(models, fresh, path) for path in self._fresh_inside(shared, fresh[largest])}
        for path in [path for path, module in shared.named_modules() if isinstance(module, _BatchNorm)]:
            if not any(path == own or path.startswith(f"{own}.") for own in self._own):
                self._own[path] = {name: self._inside(models[name], name, path) for name in models}
        for path, copies in self._own.items():
            owner, _, last = path.rpartition(".")
            setattr(shared.get_submodule(owner), last, OnePerTask(copies))
        for name, model in models.items():
            delattr(model, self.prefixes[name])
        self.shared, self.heads = shared, nn.ModuleDict(models)
        self.config = models[largest].config
        self.weighting = Uncertainty(len(models)) if uncertainty else None
        self.turned: list[Callable[[str], None]] = []
        self._turn = ""
        self.fresh = {self.where(name, one) for name in models for one in fresh[name]}
        if uncertainty:
            self.fresh.add("weighting.scaled")

    def _fresh_inside(self, shared: nn.Module, fresh: set[str]) -> list[str]:
        """Paths of the modules in the encoder whose parameters are all fresh, none inside another."""
        prefix = f"{next(iter(self.prefixes.values()))}."
        names = {name.removeprefix(prefix) for name in fresh if name.startswith(prefix)}
        paths = sorted({name.rpartition(".")[0] for name in names} - {""})
        whole = [p for p in paths if {f"{p}.{n}" for n, _ in shared.get_submodule(p).named_parameters()} <= names]
        return [p for p in whole if not any(p.startswith(f"{other}.") for other in whole)]

    def _inside(self, model: Any, task: str, path: str) -> nn.Module:
        return model.get_submodule(f"{self.prefixes[task]}.{path}")

    def _copies(self, models: dict[str, Any], fresh: dict[str, set[str]], path: str) -> dict[str, nn.Module]:
        found = {}
        for name, model in models.items():
            full = f"{self.prefixes[name]}.{path}"
            if any(one.startswith(f"{full}.") for one in fresh[name]):
                found[name] = self._inside(model, name, path)
        return found

    def where(self, task: str, name: str) -> str:
        """The name here of a parameter of a task's own model: bert.pooler.dense.bias -> shared.pooler.dense..."""
        prefix = f"{self.prefixes[task]}."
        if not name.startswith(prefix):
            return f"heads.{task}.{name}"
        inner = name.removeprefix(prefix)
        for path in self._own:
            if inner.startswith(f"{path}."):
                return f"shared.{path}.parts.{task}.{inner.removeprefix(f'{path}.')}"
        return f"shared.{inner}"

    def common(self, name: str) -> bool:
        """Whether a parameter of this name here serves all tasks."""
        return name.startswith("shared.") and not any(name.startswith(f"shared.{path}.parts.") for path in self._own)

    def turn_to(self, task: str) -> None:
        """Let the parts of one task run inside the encoder."""
        if task == self._turn:
            return
        self._turn = task
        for path in self._own:
            part: Any = self.shared.get_submodule(path)
            part.task = task
        for call in self.turned:
            call(task)

    def forward(self, task: str, **inputs: Any) -> Any:
        """What the task's own model gives for a batch of its rows; in training its loss is weighted."""
        self.turn_to(task)
        head: Any = self.heads[task]
        setattr(head, self.prefixes[task], self.shared)  # for this call: else its weights were registered once a task
        try:
            outputs = head(**inputs)
        finally:
            delattr(head, self.prefixes[task])
        if self.training and self.weighting is not None and outputs.get("loss") is not None:
            outputs["loss"] = self.weighting(outputs["loss"], self.tasks.index(task))
        return outputs

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """As any model of transformers': compute activations of the encoder anew in the backward pass."""
        self.shared.gradient_checkpointing_enable(**settings)
