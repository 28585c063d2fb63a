"""A model's forward pass started from a cut. Knows modules and tensors; not where to cut, no data, no disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree  # what torch and transformers themselves flatten outputs with

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A tensor's sizes as functions of rows and length: a number, `rows`, or `length`."""

    sizes: tuple[int | str, ...]
    dtype: torch.dtype
    first: bool = False
    """Whether what follows reads position 0 of dimension 1 alone, so that no other is kept."""

    def at(self, rows: int, length: int) -> list[int]:
        return [{"rows": rows, "length": length}[s] if isinstance(s, str) else s for s in self.sizes]

    def per_row(self, length: int) -> int:
        """Numbers that are kept of one row of this length."""
        return math.prod(self.at(1, length)[2 if self.first else 1 :])

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, :1] if self.first else tensor

    def whole(self, tensor: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """What was kept, with zeros where nothing was."""
        sizes = self.at(rows, length)
        if list(tensor.shape) == sizes:
            return tensor
        full = tensor.new_zeros(sizes)
        full[:, : tensor.shape[1]] = tensor
        return full


@dataclass(frozen=True)
class Output:
    """The structure of a module's output: shapes where tensors are, anything else as it is."""

    leaves: tuple[Any, ...]
    tree: Any

    @property
    def shapes(self) -> list[Shape]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Shape)]

    def first_only(self) -> Output:
        """The same, but of each token or patch sequence the first alone."""
        leaves = [
            replace(x, first=True) if isinstance(x, Shape) and len(x.sizes) == 3 and x.sizes[1] != 1 else x
            for x in self.leaves
        ]
        return Output(tuple(leaves), self.tree)

    def filled(self, tensors: list[torch.Tensor]) -> Any:
        """The output with these tensors in the place of the shapes."""
        given = iter(tensors)
        return pytree.tree_unflatten([next(given) if isinstance(x, Shape) else x for x in self.leaves], self.tree)


@dataclass(frozen=True)
class Cut:
    """A place to start the forward pass from.

    Attributes:
        name: the module whose output is kept.
        share: of the multiplications of a forward pass, those that lie before it.
        inputs: whether what follows reads the model's own inputs, such as an attention mask.
        weights: names of the parameters and buffers that its output depends on, in the order of use.
    """

    name: str
    output: Output
    share: float
    inputs: bool
    weights: tuple[str, ...]
    empty: dict[str, Output]
    """The modules before it, which need not run, and the outputs that they stand for."""


class Replay:
    """A model whose forward pass starts at a cut: between `start` and `stop` it takes what `feed` has given it.

    Only `forward` of single instances is replaced: a model may read attributes of a module that does not run.
    """

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self.model, self.cut = model, cut
        self._fed: list[torch.Tensor] = []
        self._on = False
        self._rows = self._length = 0

    def feed(self, tensors: list[torch.Tensor], inputs: Inputs) -> None:
        """What the cut module gives back in the next forward pass, which is called with `inputs`."""
        self._rows, self._length = extent(inputs)
        shapes = self.cut.output.shapes
        self._fed = [s.whole(t, self._rows, self._length) for t, s in zip(tensors, shapes, strict=True)]

    def start(self) -> None:
        """Replace the forward passes."""
        self._on = True
        for name, output in self.cut.empty.items():
            self.model.get_submodule(name).forward = self._emptied(output)
        self.model.get_submodule(self.cut.name).forward = lambda *args, **kwargs: self.cut.output.filled(self._fed)

    def stop(self) -> None:
        """Give the modules the forward passes of their classes back."""
        for name in (self.cut.name, *self.cut.empty) if self._on else ():
            del self.model.get_submodule(name).forward
        self._on = False

    def _emptied(self, output: Output) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            device = self._fed[0].device
            zeros = [
                torch.zeros((), dtype=shape.dtype, device=device).expand(shape.at(self._rows, self._length))
                for shape in output.shapes
            ]
            return output.filled(zeros)

        return forward


class _ReachedError(Exception):
    """The cut module has given its output; the rest of the forward pass is not needed."""


@torch.no_grad()
def capture(model: nn.Module, cut: Cut, inputs: Inputs) -> list[torch.Tensor]:
    """The tensors of the cut module's output for these inputs; what follows it does not run."""
    found: list[Any] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise _ReachedError

    hook = model.get_submodule(cut.name).register_forward_hook(stop)
    try:
        with contextlib.suppress(_ReachedError):
            model(**inputs)
    finally:
        hook.remove()
    leaves = pytree.tree_flatten(found[0])[0]
    return [s.kept(x.detach()) for x, s in zip(leaves, cut.output.leaves, strict=True) if isinstance(s, Shape)]


def stand_in(template: Inputs, batch: Inputs) -> Inputs:
    """The first row of `template` as often as `batch` has labels, with these labels: inputs that nobody reads."""
    rows = len(batch["labels"])
    repeated = {k: v[:1].expand(rows, *v.shape[1:]) for k, v in template.items() if torch.is_tensor(v)}
    return repeated | {"labels": batch["labels"]}


def extent(inputs: Inputs) -> tuple[int, int]:
    """Number of rows, and the size of the second dimension of the first input that has one."""
    tensors = [v for k, v in inputs.items() if torch.is_tensor(v) and k != "labels"]
    return len(tensors[0]), next((t.shape[1] for t in tensors if t.ndim > 1), 0)
