"""A run that has a target domain: what is seen of both domains at each evaluation, before and after. Knows a Trainer.

Labels of the target serve one purpose, to be measured and shown apart: no criterion but "oracle" reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hftl.errors import UserError
from hftl.models.head import Reads, output_layer
from hftl.results.report.report import Adapted
from hftl.tasks.metrics import criteria as domains
from hftl.tasks.metrics.accumulator import Accumulator, softmax
from hftl.train.streams import Stream
from hftl.train.trainer import Trainer

MOST = 300
"""Rows of each domain that a look reads: enough for a distance to 0.1, and little beside an epoch."""


@dataclass
class Domains:
    """What is watched of two domains.

    Args:
        source: labelled rows of the source that do not train (valid).
        labels: of these rows.
        target: rows of the target that train without labels.
        oracle: labelled rows of the target, or None.
        metric: of the task.
        select: what chooses the checkpoint, "source", one of CRITERIA, or "oracle".
        batch: rows a step.

    Attributes:
        distance: proxy A-distance by moment ("before", "after").
        points: by moment, the projected features of both domains.
    """

    source: Stream
    labels: np.ndarray
    target: Stream
    oracle: Any
    metric: Accumulator
    select: str = "source"
    batch: int = 64
    seed: int = 42
    distance: dict[str, float] = field(default_factory=dict)
    points: dict[str, dict[str, list]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.select in domains.CRITERIA and not self.metric.one_class:
            raise UserError(f"--select {self.select} needs one label a row; pass --select source.")
        if self.select == "oracle" and self.oracle is None:
            raise UserError("--select oracle reads labels of the target. Pass --target_test with labelled rows.")
        rng = np.random.default_rng(self.seed)
        self._rows = {
            name: np.sort(rng.permutation(len(stream.rows))[:MOST])
            for name, stream in (("source", self.source), ("target", self.target))
        }
        self._layer: str | None = None

    def criteria(self, trainer: Trainer) -> dict[str, float]:
        """Every criterion of the model as it is now, by name; "oracle" is the headline metric on the target."""
        found: dict[str, float] = {}
        if self.metric.one_class:
            features, logits = self.look(trainer, "source")
            others, guesses = self.look(trainer, "target")
            labels, guessed = self.labels[self._rows["source"]], softmax(guesses)
            losses = -np.log(np.maximum(softmax(logits)[np.arange(len(logits)), labels], 1e-12))
            found |= {"entropy": domains.entropy(guessed), "snd": domains.snd(guessed)}
            if min(len(features), len(others)) >= 5:
                weights = domains.density_ratio(features, others, self.seed)
                found["iwv"] = domains.importance_weighted(losses, weights)
                found["dev"] = domains.deep_embedded(losses, weights)
        if self.oracle is not None:
            numbers = np.arange(len(self.oracle))
            logits = self._run(trainer, Stream(self.oracle, self.source.collate), numbers)[1]
            self.metric.reset()
            self.metric.update(logits, np.asarray(self.oracle.labels))
            found["oracle"] = self.metric.values()[self.metric.headline]
        return found

    def note(self, trainer: Trainer, moment: str) -> None:
        """Keep how far the domains lie apart at this moment, and a picture of it."""
        source, target = (self.look(trainer, name)[0] for name in ("source", "target"))
        self.distance[moment] = domains.proxy_distance(source, target, self.seed)
        left, right = domains.projection(source, target)
        self.points[moment] = {"source": left, "target": right}

    def look(self, trainer: Trainer, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features (rows, width) and logits (rows, classes) of the rows of a domain that are watched."""
        return self._run(trainer, self.source if name == "source" else self.target, self._rows[name])

    def _run(self, trainer: Trainer, stream: Stream, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model, read = trainer.model, plain_of(stream.rows)
        model.eval()

        def batch(start: int) -> dict[str, Any]:
            made = stream.collate(read(numbers[start : start + self.batch].tolist()))
            return {name: value.to(trainer.args.device) for name, value in made.items() if name != "labels"}

        features, logits = [], []
        with torch.no_grad(), trainer.whole():
            if self._layer is None:
                self._layer = output_layer(model, batch(0)) or ""
            reads = Reads(model.get_submodule(self._layer)) if self._layer else None
            for start in range(0, len(numbers), self.batch):
                found = model(**batch(start))["logits"].float()
                features.append((found if reads is None else reads.last).flatten(1).cpu().numpy())
                logits.append(found.cpu().numpy())
        if reads is not None:
            reads.stop()
        return np.concatenate(features), np.concatenate(logits)


def plain_of(rows: Any) -> Callable[[list[int]], list[Any]]:
    """How to read rows whole: `hftl.train.rows.Rows` may be light."""
    return getattr(rows, "plain", rows.__getitems__)


def told(watched: Domains, history: list[dict[str, Any]]) -> Adapted:
    """What the report says: each evaluation with every criterion, the one chosen, and what labels would have chosen.

    Args:
        history: `TrainerState.log_history`.
    """
    names, headline = (*domains.CRITERIA, "oracle"), watched.metric.headline
    rows = {
        row["step"]: {"step": row["step"], "epoch": row.get("epoch"), "source": row[f"eval_{headline}"]}
        | {name: row[f"eval_{name}"] for name in names if f"eval_{name}" in row}
        for row in reversed(history)  # the chosen model is evaluated again at the end: the first of a step stays
        if any(f"eval_{name}" in row for name in names)
    }
    shown = sorted(rows.values(), key=lambda row: row["step"])
    greater = dict.fromkeys(("source", "oracle"), headline not in watched.metric.lower) | domains.CRITERIA
    losses = {row["step"]: row["eval_loss"] for row in reversed(history) if "eval_loss" in row}
    chosen = best(shown, watched.select, greater[watched.select], losses)
    return Adapted(
        select=watched.select,
        checkpoints=shown,
        chosen=chosen,
        oracle=best(shown, "oracle", greater["oracle"], losses) if watched.oracle is not None else None,
        distance=watched.distance,
        projection=watched.points,
        rows={name: len(numbers) for name, numbers in watched._rows.items()},
    )


def best(rows: list[dict[str, Any]], name: str, greater: bool, losses: dict[int, float]) -> dict[str, Any] | None:
    """The row that is best by a criterion, of equals the one with the lowest loss; None where no row has it."""
    having = [row for row in rows if name in row]
    sign = 1 if greater else -1
    return max(having, key=lambda row: (sign * row[name], -losses.get(row["step"], 0.0))) if having else None
