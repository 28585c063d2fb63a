"""Which parameters train, when, and how fast: parameter groups and schedules made from a strategy's `rate`.

Knows strategies and places; nothing of data, tasks or the training loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hftl.errors import UserError
from hftl.models.anatomy import Anatomy, Place
from hftl.models.wrapped import out_of_torch
from hftl.strategies.base import Strategy

POINTS = tuple(i / 200 for i in range(201))
"""Moments of a run at which rates are compared: parameters equal at all of them share a group."""


@dataclass
class RateGroup:
    """Parameters whose rate is the same throughout the run; `place` is one of theirs and stands for all."""

    place: Place
    signature: tuple[float, ...]
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> RateGroup:
        return self  # accelerate copies an optimizer's groups when it wraps it; the parameters in here would double

    @property
    def constant(self) -> bool:
        return len(set(self.signature)) == 1

    @property
    def peak(self) -> float:
        return max(self.signature)


def rate_groups(model: nn.Module, anatomy: Anatomy, strategy: Strategy) -> list[RateGroup]:
    """Group what trains at any time of the run by rate, the highest first.

    A parameter that its model holds fixed (`requires_grad` is False before the run) stays so.

    Raises:
        UserError: nothing would train, or one strategy undoes what another one adds.
    """
    groups: dict[tuple[float, ...], RateGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place = anatomy.place(name)
        signature = tuple(strategy.rate(place, progress) for progress in POINTS)
        if max(signature) > 0:
            groups.setdefault(signature, RateGroup(place, signature)).parameters[name] = parameter
    _refuse_clash(strategy, anatomy, [name for group in groups.values() for name in group.parameters], model)
    return sorted(groups.values(), key=lambda group: -group.peak)


def follow(groups: Iterable[RateGroup], model: nn.Module) -> None:
    """Take up the parameters that a wrapper has put in the place of a model's own, by name."""
    current = {out_of_torch(name): parameter for name, parameter in model.named_parameters()}
    for group in groups:
        group.parameters = {name: current[out_of_torch(name)] for name in group.parameters}


def _refuse_clash(strategy: Strategy, anatomy: Anatomy, trained: list[str], model: nn.Module) -> None:
    names = [type(part).__name__ for part in strategy.parts]
    if not trained:
        raise UserError(
            f"{' | '.join(names)} trains nothing in this model: all its weights came with the checkpoint. "
            "Try --strategy 'LastLayers(0)' for what follows the blocks, or --strategy Full."
        )
    whole = len(trained) == sum(1 for _ in model.parameters())
    if not whole and len(names) > 1 and any(part.random_start for part in strategy.parts):
        raise UserError(
            f"{' | '.join(names)} would freeze random weights. Scratch needs all of them trained: use it alone."
        )
    inner = {name for name in trained if not anatomy.place(name).fresh}
    if inner or len(names) == 1:
        return
    for part, name in zip(strategy.parts, names, strict=True):
        if part.across_rows:
            continue  # it changes features, and has no weights in mind
        places = (anatomy.place(n) for n, _ in model.named_parameters())
        if any(not place.fresh and any(part.rate(place, p) > 0 for p in POINTS) for place in places):
            others = " | ".join(other for other in names if other != name)
            raise UserError(f"{others} freezes all that {name} trains. Drop one of the two from --strategy.")


def refuse_unknown(strategy: Strategy, anatomy: Anatomy, model: nn.Module) -> None:
    """Raise `UserError` where a strategy treats fresh parameters apart and nobody has said which they are."""
    places = [anatomy.place(name) for name, _ in model.named_parameters()]
    for part in strategy.parts:
        apart = any(part.rate(p, at) != part.rate(p.as_fresh(), at) for p in places for at in (0.0, 1.0))
        if apart or part.keeps_fresh:
            raise UserError(
                f"{type(part).__name__} trains what the checkpoint did not supply, and this model was not made by "
                "from_pretrained, which says so. Pass fresh=[names of parameters], or fresh=[] where nothing is fresh."
            )


def stage_share(groups: list[RateGroup], stage: tuple[bool, ...], progress: float) -> float:
    """How much of the run, in [0, 1], has the same groups in training as `stage`, from before to after `progress`."""
    stages = [tuple(rate > 0 for rate in rates) for rates in zip(*(g.signature for g in groups), strict=True)]
    here = min(range(len(POINTS)), key=lambda i: (stages[i] != stage, abs(POINTS[i] - progress)))
    first = last = here
    while first > 0 and stages[first - 1] == stage:
        first -= 1
    while last + 1 < len(stages) and stages[last + 1] == stage:
        last += 1
    return (last - first + 1) / len(POINTS)


def optimizer_groups(groups: Iterable[RateGroup], lr: float, weight_decay: float, decayed: set[str]) -> list[dict]:
    """Parameter groups for a torch optimizer. Biases, norms and other vectors take no weight decay.

    The learning rate is written as `lr`, never as `lr_scale`, which torch's schedulers ignore (MAE issue 216).
    """
    made = []
    for group in groups:
        scale = group.peak if group.constant else 1.0
        for decay in (True, False):
            chosen = [p for n, p in group.parameters.items() if (n in decayed and p.ndim >= 2) == decay]
            if chosen:
                decay_value = weight_decay if decay else 0.0
                made.append({"params": chosen, "lr": lr * scale, "weight_decay": decay_value, "rate_group": group})
    return made


def scheduled(
    scheduler: torch.optim.lr_scheduler.LRScheduler, strategy: Strategy, rates: list[RateGroup], total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Multiply a warm-up-and-decay schedule by rates that change during the run; one of `rates` a parameter group.

    Raises:
        UserError: the schedule reacts to the loss, so it has no value to multiply.
    """
    if all(rate.constant for rate in rates):
        return scheduler
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise UserError("A strategy whose rates change during the run needs a schedule such as linear or cosine.")

    def times(shape, rate: RateGroup):
        if rate.constant:
            return shape
        return lambda step: shape(step) * strategy.rate(rate.place, min(step / max(total_steps, 1), 1.0))

    optimizer = scheduler.optimizer
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # the first schedule has already written step 0
    shapes = [times(shape, rate) for shape, rate in zip(scheduler.lr_lambdas, rates, strict=True)]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, shapes)
