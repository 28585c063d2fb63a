"""The metrics of a run as the Trainer's `compute_metrics`: fed batch by batch, with no logits kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from hftl.errors import UserError
from hftl.tasks.metrics.accumulator import Accumulator
from hftl.tasks.metrics.extra import extra_metric
from hftl.tasks.metrics.names import LOWER_IS_BETTER


class Scorer:
    """The base Trainer's `compute_metrics`, fed batch by batch; then `metric` holds the split.

    Args:
        metric: as `Task.metric` gives it.
        extra: metrics of the `evaluate` library, by name or folder.
    """

    def __init__(self, metric: Accumulator, extra: Sequence[str] = ()) -> None:
        self.metric = metric
        self.extra = [extra_metric(name, metric.decided) for name in extra]
        self.headline = metric.headline
        self.names = list(metric.reported)
        self.lower = metric.lower | LOWER_IS_BETTER
        self.own_names: list[str] = []
        self._finished = True

    def further(self, given: Mapping[str, Any]) -> list[str] | None:
        """Names of the user's own metrics; None where they are not known yet.

        Args:
            given: TrainingArguments that the user gave.

        Raises:
            UserError: one of them is to choose the checkpoint, and nobody has said whether more of it is better; or it
                was said of a metric that is known, and is wrong.
        """
        found = [metric.names() for metric in self.extra]
        names = [name for own in found for name in own or ()]
        metric = str(given.get("metric_for_best_model") or self.headline).removeprefix("eval_")
        known, more = {*self.names, *self.lower, "loss"}, given.get("greater_is_better")
        if metric in known and more not in (None, metric not in self.lower):
            which = "less" if metric in self.lower else "more"
            raise UserError(f"--greater_is_better is known of {metric}, of which {which} is better. Leave it out.")
        if metric not in known and more is None and (metric in names or None in found):
            raise UserError(
                f"Is more of {metric} better, or less? Pass --greater_is_better true or --greater_is_better false."
            )
        return None if None in found else names

    def __call__(self, prediction: transformers.EvalPrediction, compute_result: bool) -> dict[str, float]:
        if self._finished:
            self.metric.reset()
        logits, labels = (np.asarray(torch.as_tensor(part).float().cpu()) for part in prediction)
        labels = labels.astype(np.int64) if np.issubdtype(_dtype(prediction.label_ids), np.integer) else labels
        self.metric.update(logits, labels)
        for metric in self.extra:
            metric.update(logits, labels)
        self._finished = compute_result
        if not compute_result:
            return {}
        own = {name: value for metric in self.extra for name, value in metric.compute().items()}
        self.own_names = list(own)
        return self.metric.values() | own


def _dtype(values: Any) -> np.dtype:
    return np.asarray(torch.as_tensor(values).cpu()).dtype
