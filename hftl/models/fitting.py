"""Say in a sentence what of a batch a model does not take, and which of its modules says so. Knows modules; no data."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hftl.errors import FAILURES, UserError, brief, explain
from hftl.models.wrapped import inside, out_of_peft

LOSSES = ("cross_entropy", "nll_loss", "mse_loss", "binary_cross_entropy_with_logits")
LONELY = "Expected more than 1 value per channel"
"""What BatchNorm says to a batch of one row."""


@contextmanager
def fitting(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts what a model raises on a batch becomes a `UserError` that names the two that disagree."""
    try:
        yield
    except FAILURES as failure:
        if explain("machine", failure):
            raise
        raise UserError(_disagreement(model, inputs, failure)) from failure


def first_broken(model: nn.Module, forward: Any) -> str:
    """The first module that makes no numbers of numbers, and its class; "" where none does."""
    found: list[str] = []

    def look(module: nn.Module, args: Any, output: Any, name: str) -> None:
        if not found and _broken(output) and not _broken(args):
            found.append(_called(name, module))

    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: look(module, args, output, name))
        for name, module in model.named_modules()
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(found), "")


def _broken(value: Any) -> bool:
    """Whether a tensor, or any of several, holds what is no number; infinite masks are not looked at."""
    if isinstance(value, Mapping):
        return any(map(_broken, value.values()))
    if isinstance(value, tuple | list):
        return any(map(_broken, value))
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isnan().any())


def _disagreement(model: nn.Module, inputs: Mapping[str, Any], failure: BaseException) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(failure.__traceback__)]
    within = [frame for frame in frames if id(frame.f_locals.get("self")) in names]
    module = within[-1].f_locals["self"] if within else model
    place, kind, said = _called(names[id(module)], module), _kind(model), f"{type(failure).__name__}: {brief(failure)}"
    loss = next((frame.f_locals for frame in reversed(frames) if frame.f_code.co_name in LOSSES), None)
    if loss is not None and loss["target"].numel():
        labels, logits = loss["target"], loss["input"]
        return (
            f"Labels and head do not fit: the labels of a batch ({_shape(labels)}) go from {labels.min():g} to "
            f"{labels.max():g}, and {kind} gives {_shape(logits)}, as {said}. Pass --data whose labels this --model "
            "can learn."
        )
    if isinstance(module, nn.Embedding) and isinstance(failure, IndexError):
        most = int(within[-1].f_locals["input"].max())
        return (
            f"Processor and model do not fit: {place} of {kind} has {module.num_embeddings} vectors, and a batch asks "
            f"for number {most}. Pass a --model whose processor and weights belong together."
        )
    if isinstance(module, _BatchNorm) and LONELY in str(failure):
        return (
            f"Batch and model do not fit: {place} of {kind} normalises over the rows of a batch, and this one has a "
            "single row. Pass --per_device_train_batch_size 2 or more."
        )
    made = ", ".join(f"{name} {_shape(value)}" for name, value in inputs.items() if isinstance(value, torch.Tensor))
    return (
        f"Processor and model do not fit: {place} of {kind} says {said}{f', of a batch of {made}' if made else ''}. "
        "Pass a --model whose processor makes what its config reads."
    )


def _kind(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__


def _called(name: str, module: nn.Module) -> str:
    name = inside(out_of_peft(name))
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"
