"""Classify or rate a row as a whole: what the outputs of a model mean for one class, for several, or for a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.readings import Amount, OneClass, Several
from hftl.data.types import Labels, Splits
from hftl.errors import UserError
from hftl.settings.fields import HOW, IN, OUT, flag
from hftl.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from hftl.tasks.metrics.accumulator import Accumulator

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = {SINGLE: OneClass(), MULTI: Several(), REGRESSION: Amount()}
"""How labels read, by the words that a config of transformers has for it; the first is taken where no other fits."""
ARGUMENTS = {MULTI: ", top_k=None", REGRESSION: ', function_to_apply="none"'}
"""What a pipeline must be told so that it returns every label's own probability, or the number itself."""


@dataclass
class Classification(Task):
    """One class for each row, or several, or a number: the three that a model `...ForSequenceClassification` knows."""

    pooled: ClassVar[bool] = True

    label: str | None = flag(None, "the column that holds the label", IN)
    problem_type: str | None = flag(
        None,
        "single_label_classification, multi_label_classification or regression; guessed from the labels",
        IN,
        choices=tuple(PROBLEM_TYPES),
    )
    class_weights: str | None = flag(
        None,
        "balanced: weigh each class by the inverse of its share of train",
        HOW,
        choices=("balanced",),
        of_several="never",
    )
    metrics: list[str] = flag(
        None,
        "further metrics of `evaluate`, by name or path; in Python functions, too",
        OUT,
        of_several="never",
        factory=list,
    )
    threshold: float | None = flag(
        None, "several labels a row: the probability from which one is given; else 0.5", OUT, range="(0, 1)"
    )

    @property
    def read_as(self) -> str | None:
        return self.problem_type

    def settle(self, splits: Splits) -> None:
        super().settle(splits)
        self.cut_at(self.threshold, splits.labels)

    def cut_at(self, threshold: float | None, labels: Labels) -> None:
        if labels.read_as != MULTI:
            super().cut_at(threshold, labels)
        self.threshold = self.threshold if threshold is None else threshold

    def item_losses(
        self, labels: Labels, train: Any, smoothing: float = 0.0
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Cross-entropy in which each class counts the same (King & Zeng 2001), or None for the model's own loss.

        The weights have mean 1 over train, so that the learning rate keeps its meaning.

        Raises:
            UserError: a row has no class or several.
        """
        if smoothing and labels.read_as != SINGLE:
            raise UserError(
                f"--label_smoothing_factor is for one class a row; the labels are a {labels.read_as}. Leave it out."
            )
        if self.class_weights is None:
            return None
        if labels.read_as != SINGLE:
            kind = labels.read_as
            raise UserError(f"--class_weights {self.class_weights} needs one label a row; the labels are a {kind}.")
        import numpy as np
        import torch

        counts = np.bincount(np.asarray(train["label"][:]), minlength=len(labels.names))
        weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)

        def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            return each * weights.to(logits.device)[labels]

        return losses

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.classification import MultiLabel, SingleLabel
        from hftl.tasks.metrics.regression import Regression

        if labels.read_as == MULTI:
            return MultiLabel(labels.names, self.threshold or 0.5)
        return (Regression if labels.read_as == REGRESSION else SingleLabel)(labels.names)

    def usage_of(self, model: nn.Module) -> dict[str, str]:
        config: Any = model.config
        arguments = self.usage.get("arguments", "") + ARGUMENTS.get(config.problem_type, "")
        how = {"mean": "the mean of all tokens", "first": "the first token"}.get(getattr(model, "how", ""))
        return self.usage | ({"arguments": arguments} if arguments else {}) | ({"pooled": how} if how else {})

    def answers(self, outputs: list[np.ndarray], rows: list[dict[str, Any]], labels: Labels) -> list[dict[str, Any]]:
        """`label`, `score` and `scores` by name of each row; of several those from the threshold on; or a `value`."""
        import numpy as np

        from hftl.tasks.metrics.accumulator import softmax

        logits = np.asarray(outputs)
        if labels.read_as == REGRESSION:
            return [{"value": float(value)} for value in logits.reshape(len(rows), -1)[:, 0]]
        several, cut = labels.read_as == MULTI, self.threshold or 0.5
        made: list[dict[str, Any]] = []
        for row in 1 / (1 + np.exp(-logits.astype(np.float64))) if several else softmax(logits):
            scores = dict(zip(labels.names, map(float, row), strict=True))
            if several:
                made.append(
                    {
                        "label": [name for name, score in scores.items() if score >= cut],
                        "scores": scores,
                    }
                )
            else:
                best = max(scores, key=scores.__getitem__)
                made.append({"label": best, "score": scores[best], "scores": scores})
        return made

    def cells(self, answer: dict[str, Any], output: Path, number: int) -> dict[str, Any]:
        """`prediction`, then `score_<label>` of each label."""
        if "value" in answer:
            return {"prediction": answer["value"]}
        scores = {f"score_{name}": round(score, 6) for name, score in answer["scores"].items()}
        return super().cells(answer, output, number) | scores
