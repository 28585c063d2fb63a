"""Measure predictions on rows that have labels, batch by batch. Knows a task's metric; no files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from hftl.data.types import IGNORED, Labels, counted
from hftl.results.report import wording
from hftl.tasks.base import Task

if TYPE_CHECKING:
    import datasets


class Scored:
    """What predictions are worth where the rows have labels: fed batch by batch, with no logits kept.

    Args:
        cells: a column `label`, encoded, a row for each that is predicted.
        column: what the data calls it.

    Attributes:
        rows, unknown: how many had a label that the model knows, and how many had none.
    """

    def __init__(self, task: Task, labels: Labels, cells: datasets.Dataset, column: str) -> None:
        self.task, self.cells, self.column, self.metric = task, cells, column, task.metric(labels)
        self.rows = self.unknown = 0

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """One batch; a label that is missing counts for nothing."""
        there = ~labels.isnan() if labels.is_floating_point() else labels != -1
        keep = there.reshape(len(labels), -1).all(dim=1) & (labels != IGNORED).reshape(len(labels), -1).any(dim=1)
        self.rows += int(keep.sum())
        self.unknown += int((~keep).sum())
        if keep.any():
            found = self.task.outputs(logits, labels)
            self.metric.update(found[keep].float().cpu().numpy(), labels[keep].cpu().numpy())

    def told(self) -> Iterator[str]:
        """Lines of a table: each metric with its interval."""
        if not self.rows:
            yield f"no row has a label in {self.column!r} that the model knows: nothing was scored"
            return
        others = f", {self.unknown:,} more without one that the model knows" if self.unknown else ""
        yield f"against the labels in {self.column!r}, {counted(self.rows, 'row')}{others}:"
        for name, score in self.metric.compute().items():
            yield f"  {name.ljust(20)} {wording.score(score)}  n={score.n:,}"
