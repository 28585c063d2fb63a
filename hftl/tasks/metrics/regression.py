"""Scores of predicted numbers. Knows arrays; no task, model or file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hftl.errors import UserError
from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.accumulator import Accumulator, finite, largest, shapes
from hftl.tasks.metrics.bootstrap import Score, Statistic, Values
from hftl.tasks.sections import ERRORS, FAULTS, Baseline, Curve, Section, Words

SCATTERED = 1_000  # rows whose predicted and true numbers a page draws
CONSTANT = 0.01  # predictions that vary less, as a share of how labels do, are one number


class Regression(Accumulator):
    """One number per example. Outputs [n] or [n, 1], labels [n] or [n, 1]; -100 is a number like any other here.

    pearson and spearman are 0.0 where they are undefined (one example, or no variance in outputs or labels: nothing
    is explained), so that a model that predicts a constant can be compared; mse and mae in the label's unit.
    """

    headline = "pearson"
    reported = ("pearson", "spearman", "mse", "mae")
    lower = frozenset({"mse", "mae"})
    wrong = "Largest errors, on test"

    @staticmethod
    def decided(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return outputs.reshape(len(labels)), labels

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for outputs or labels that are not finite."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.size != len(labels) or labels.size != len(labels):
            raise shapes("outputs and labels [n] or [n, 1]", logits, labels)
        if not np.isfinite(labels).all():
            raise UserError("Expected numbers as labels; some are missing or infinite: remove these rows.")
        self.keep(score=finite(logits.reshape(-1)), label=labels.reshape(-1).astype(np.float64))

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        score, label = self.column("score"), self.column("label")
        made: list[Section] = []
        if len(score) > 1:
            made.append(
                Baseline(heading="", title="The mean of test for every row", value=float(label.var()), metric="mse")
            )
        if len(score) > 1 and score.std() < CONSTANT * label.std():
            said = f"The model has collapsed: on test it answers about {score.mean():.4g} always."
            made.append(Words(heading=FAULTS, sentences=[said]))
        ends = [float(min(score.min(), label.min())), float(max(score.max(), label.max()))]
        note = "On the dashed line, they are equal."
        few = slice(None, None, len(label) // SCATTERED + 1)
        for title, x, y, points, guide in (
            ("Predicted and true", "true", "predicted", (label, score), ends),
            ("Residuals", "predicted", "predicted − true", (score, score - label), [0.0, 0.0]),
        ):
            line = [[end, level] for end, level in zip(ends, guide, strict=True)]
            drawn = np.stack(points, axis=1)[few].tolist()
            made.append(Curve(heading=ERRORS, title=title, note=note, x=x, y=y, points=drawn, guide=line))
        return made

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        """The largest errors, each in place of a confidence."""
        score, label = self.column("score"), self.column("label")
        error = np.abs(score - label)
        return [(i, f"{label[i]:.4g}", f"{score[i]:.4g}", float(error[i])) for i in largest(error, most)]

    def sure(self, much: float) -> str:
        return f"off by {much:.4g}"

    def statistics(self) -> list[Statistic]:
        score, label = self.column("score"), self.column("label")
        error, each = score - label, (bootstrap.standardised(score), bootstrap.standardised(label))
        ranks = bootstrap.Steps(score), bootstrap.Steps(label)

        def of(weights: np.ndarray) -> Values:
            n = weights.sum(axis=1)
            pearson = bootstrap.correlation(weights, *each)
            spearman = bootstrap.correlation(weights, *(rank.ranks(weights) for rank in ranks))
            mse, mae = weights @ error**2 / n, weights @ np.abs(error) / n
            return {"pearson": pearson, "spearman": spearman, "mse": mse, "mae": mae}

        return [bootstrap.per_example(len(label), of)]
