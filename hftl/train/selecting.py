"""Which checkpoint of a run is kept, and when a run may end early. Knows evaluations, and rates by their stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from transformers import TrainerState

from hftl.train.rates import POINTS, RateGroup

FALLEN = 0.5
"""Share of a run before which a falling schedule has not yet come to half of its peak: until then valid moves with the
size of the steps. On 562 photographs with 60 rows of valid, patience of 3 ended `Full` at epoch 7 of 20 at .870; at
the end of its schedule it has .910."""
LEVEL = ("constant", "constant_with_warmup", "reduce_lr_on_plateau", "inverse_sqrt")
"""Schedules that do not come to an end, so that waiting for one is no use."""


class EarlyStopping(transformers.EarlyStoppingCallback):
    """transformers' early stopping, which counts from a share of the run on: `start` in [0, 1]."""

    def __init__(self, early_stopping_patience: int, start: float = 0.0, early_stopping_threshold: float = 0.0) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.start = start

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # type: ignore[override]
        if state.global_step >= self.start * state.max_steps:
            super().on_evaluate(args, state, control, **kwargs)

    def state(self) -> dict[str, Any]:
        found = super().state()
        found["args"]["start"] = self.start
        return found


def patience_from(groups: Sequence[RateGroup], schedule: str) -> float:
    """The share of a run from which on a patience counts: in its last stage, and once the rate has fallen."""
    stages = [tuple(rate > 0 for rate in rates) for rates in zip(*(group.signature for group in groups), strict=True)]
    last = next(at for at, stage in zip(POINTS, stages, strict=True) if stage == stages[-1])
    return max(last, 0.0 if schedule in LEVEL else FALLEN)


def breaks_tie(metrics: dict[str, float], metric: str, state: TrainerState) -> bool:
    """Whether an evaluation equals the best one in its metric and has a lower loss."""
    metric = f"eval_{metric.removeprefix('eval_')}"
    if metrics.get(metric) != state.best_metric or "eval_loss" not in metrics:
        return False
    losses = [e["eval_loss"] for e in state.log_history if e.get("step") == state.best_global_step and "eval_loss" in e]
    return bool(losses) and metrics["eval_loss"] < losses[-1]
