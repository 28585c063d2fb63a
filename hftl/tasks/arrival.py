"""Hold a checkpoint against the model that was made of it: which tensors came, and whose classes its head knows."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from hftl.data.types import Check, Labels
from hftl.errors import UserError

NAMELESS = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody has named."""
DEAF = 0.9
"""A dropout above this share leaves nothing to learn from: MobileNetV1 is published with 0.999."""


def outer_prefix(left_over: Collection[str], own: str = "") -> str:
    """What all names of a checkpoint begin with, as DataParallel, Lightning and torch.compile write them; else "".

    Args:
        own: what the model's class has put before each of them.
    """
    names, prefix = [name.removeprefix(own) for name in left_over], ""
    while names and all("." in name for name in names) and len({name.split(".")[0] for name in names}) == 1:
        first = names[0].split(".")[0] + "."
        prefix, names = prefix + first, [name.removeprefix(first) for name in names]
    return prefix


def arrived(model: nn.Module, fresh: Collection[str], left_over: Collection[str]) -> Check:
    """How many of a model's tensors the checkpoint supplied, which are fresh, and which of its own nobody takes."""
    every = [name for name, _ in model.named_parameters()]
    sentence = f"{len(every) - len(fresh)} of {len(every)} tensors came from the checkpoint"
    for what, names in (("fresh", [n for n in every if n in fresh]), ("left over", sorted(left_over))):
        sentence += f"; {what}: {_few(names)}" if names else ""
    return Check("weights", "warn" if len(fresh) > len(every) / 2 else "ok", sentence)


def refuse_strange(model: nn.Module, fresh: Collection[str], left_over: Collection[str], name: str) -> None:
    """Raise `UserError` where nothing of a checkpoint came, or what came is no number."""
    every = dict(model.named_parameters())
    if left_over and len(fresh) == len(every):
        raise UserError(
            f"None of the {len(every)} tensors of {type(model).__name__} is in the checkpoint {name}: it names "
            f"{_few(sorted(left_over), 2)}, the model {_few([*every], 2)}. Pass a --model of this architecture."
        )
    for key, tensor in [*every.items(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"The weights of {name} hold values that are no numbers, in {key}. Fetch or save it again.")


def deaf(model: nn.Module) -> list[Check]:
    """A line where a dropout lets hardly anything through in training."""
    found = [(name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > DEAF]
    return [
        Check("dropout", "warn", f"{name} drops {rate:.1%} of what it reads in training, as the config says")
        for name, rate in found[:1]
    ]


def head_by_name(
    model: nn.Module, fresh: set[str], known: Sequence[str], labels: Labels, auto_class: Any
) -> tuple[set[str], list[Check]]:
    """Put the rows of a head that came along into the order of the data's classes, or make it fresh.

    A head kept by position would take one class for another, where the names are the same in another order, or others.

    Args:
        known: the checkpoint's names of its classes, in order.

    Returns:
        The fresh parameters, and what a person should know.
    """
    names = labels.names
    if labels.amount or not names or len(known) != len(names) or list(known) == list(names):
        return fresh, []
    rows = [name for name in _rows_a_class(model, auto_class) if name not in fresh]
    if not rows:
        return fresh, []
    weights = dict(model.named_parameters())
    old, new = ([" ".join(str(name).casefold().split()) for name in part] for part in (known, names))
    if old == new:
        return fresh, []
    if sorted(old) == sorted(new) and len(set(old)) == len(old):
        order = [old.index(name) for name in new]
        with torch.no_grad():
            for name in rows:
                weights[name].copy_(weights[name][order].clone())
        sentence = f"the head's classes come in another order than the data's ({_few(known)}): its rows were moved"
        return fresh | set(rows), [Check("head", "note", sentence)]  # no longer the checkpoint's: an adapter keeps it
    if all(NAMELESS.fullmatch(str(name)) for name in known):
        sentence = f"the checkpoint does not name its {len(known)} classes; its head is kept as if they were the data's"
        return fresh, [Check("head", "warn", sentence)]
    made = dict(auto_class.from_config(model.config).named_parameters())
    with torch.no_grad():
        for name in rows:
            weights[name].copy_(made[name])
    sentence = f"the checkpoint's head knows other classes ({_few(known)}): it starts afresh"
    return fresh | set(rows), [Check("head", "note", sentence)]


def _rows_a_class(model: Any, auto_class: Any) -> list[str]:
    """The parameters that have a row for each class: those whose size changes with the number of classes."""
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        other = dict(auto_class.from_config(config).named_parameters())
    return [n for n, p in model.named_parameters() if n in other and other[n].shape != p.shape]


def _few(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + rest
