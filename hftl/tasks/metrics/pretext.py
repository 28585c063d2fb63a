"""Scores of models that learn without labels: sums over what was hidden in each row; knows no task, model or file.

A row is a cell: intervals resample rows, whatever number of hidden items each holds. Kept are three numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.accumulator import Accumulator, finite, shapes
from hftl.tasks.metrics.bootstrap import Score, Statistic, Values


class Pretext(Accumulator):
    """Losses of a pretext task. Outputs [n, 2]: of each row the summed loss, and the number of items it is of.

    pretext_loss, the mean over all items; a row without an item is dropped.
    """

    headline = "pretext_loss"
    reported: Sequence[str] = ("pretext_loss",)
    lower = frozenset({"pretext_loss"})
    columns: tuple[str, ...] = ("loss", "label")
    """What an output holds of each row; `label` is its number of items."""

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for losses that are not finite."""
        logits = np.asarray(logits)
        if logits.shape != (len(labels), len(self.columns)):
            raise shapes(f"outputs [n, {len(self.columns)}]", logits, np.asarray(labels))
        kept = finite(logits[logits[:, -1] != 0])
        self.keep(**dict(zip(self.columns, kept.T, strict=True)))

    def statistics(self) -> list[Statistic]:
        loss, items = self.column("loss"), self.column("label")

        def of(weights: np.ndarray) -> Values:
            return {"pretext_loss": weights @ loss / (weights @ items)}

        return [bootstrap.per_example(len(items), of)]


class MaskedTokens(Pretext):
    """Masked tokens. Outputs [n, 3]: of each row the summed loss in nats, the tokens that were right, and all masked.

    pseudo_perplexity, the exponential of the mean loss of a masked token (Salazar et al. 2020, equation 4, with the
    tokens of one mask in place of all in turn); masked_accuracy, the share of masked tokens that rank first.
    `n` counts masked tokens; the intervals resample rows.
    """

    headline = "pseudo_perplexity"
    reported = ("pseudo_perplexity", "masked_accuracy")
    unit = "masked token"
    lower = frozenset({"pseudo_perplexity"})
    columns = ("loss", "right", "label")

    def compute(self) -> dict[str, Score]:
        found = super().compute()
        tokens = int(self.column("label").sum())
        return {name: replace(score, n=tokens) for name, score in found.items()}

    def statistics(self) -> list[Statistic]:
        loss, right, tokens = map(self.column, ("loss", "right", "label"))

        def of(weights: np.ndarray) -> Values:
            all_tokens = weights @ tokens
            with np.errstate(over="ignore"):  # a model that diverged has an infinite perplexity
                perplexity = np.exp(weights @ loss / all_tokens)
            return {"pseudo_perplexity": perplexity, "masked_accuracy": weights @ right / all_tokens}

        return [bootstrap.per_example(len(tokens), of)]
