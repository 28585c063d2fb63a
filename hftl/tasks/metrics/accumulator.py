"""What every accumulator of a metric shares: it keeps small columns of each batch; knows no metric in particular."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hftl.errors import UserError
from hftl.tasks.metrics.bootstrap import Score, Statistic
from hftl.tasks.sections import Section

Decide = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Accumulator:
    """Rows come in batches, of which only small columns are kept; `names` are the classes, index = id.

    A kind of metric has `headline`, `reported`, `update`, which keeps columns, and `statistics`, which reads them.

    Attributes:
        headline: the metric that a run is chosen and judged by.
        unit: what the n of a score counts.
        lower: metrics of which less is better.
        one_class: whether outputs are logits of classes, of which each row has one.
        wrong: heading of the examples that `mistakes` names.
        decided: (outputs, labels) -> predictions and labels as metrics of `evaluate` take them: one answer a row.
    """

    headline: ClassVar[str]
    unit: ClassVar[str] = "row"
    lower: ClassVar[frozenset[str]] = frozenset()
    one_class: ClassVar[bool] = False
    wrong: ClassVar[str] = "Most confidently wrong, on test"
    decided: ClassVar[Any] = None  # a static method of those that have it

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.reset()

    def reset(self) -> None:
        """Forget every example."""
        self._columns: dict[str, list[np.ndarray]] = {}
        self._rows = 0

    def held(self) -> dict[str, np.ndarray]:
        """What is counted of the examples, by name, for `restore` to take back; texts, which need a pickle, stay."""
        found = {name: self.column(name) for name in self._columns}
        return {name: column for name, column in found.items() if column.dtype != object}

    def restore(self, held: Mapping[str, np.ndarray]) -> None:
        """Hold the examples that another accumulator has held."""
        self.reset()
        self.keep(**held)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch of raw model outputs and their labels."""
        raise NotImplementedError

    @property
    def reported(self) -> Sequence[str]:
        """Names of the metrics that can be reported, headline first; an undefined or too costly one may be left out."""
        raise NotImplementedError

    def values(self) -> dict[str, float]:
        """Return every metric without its interval: cheap enough for each evaluation. Headline first."""
        return {name: value for statistic in self._filled() for name, value in statistic.values().items()}

    def compute(self) -> dict[str, Score]:
        """Return every metric with its 95 % interval, headline first. Raises UserError when there was no example."""
        return {name: score for statistic in self._filled() for name, score in statistic.scores().items()}

    @property
    def classes(self) -> dict[str, str]:
        """Metrics of a single class, by name, with the class; they are not among a report's main numbers."""
        return {}

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        """What a report draws beside its numbers; `scores` are those of valid and test, and this holds test."""
        return []

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        """The surest wrong predictions: (row, label, prediction, confidence), surest first.

        A row is its number in the order of `update`, from 0, dropped rows counted.
        A regression gives the largest errors, with the absolute error in place of a confidence.
        """
        return []

    def sure(self, much: float) -> str:
        """How the last number of a mistake, a confidence unless a metric says otherwise, is put in words."""
        return f"with confidence {much:.3f}"

    def paired(self) -> Statistic:
        """The headline metric with one cell for each example, to be compared with another model's on the same ones."""
        return next(one for one in self.statistics() if self.headline in one.values())

    def statistics(self) -> list[Statistic]:
        """Return the metrics as functions of weighted rows, the headline first."""
        raise NotImplementedError

    def _filled(self) -> list[Statistic]:
        if not sum(len(part) for part in self._columns.get("label", [])):
            raise UserError("Expected at least one labelled example to score; there is none: look at the test data.")
        return self.statistics()

    def arrived(self, rows: int) -> np.ndarray:
        """Number `rows` more rows, those that are going to be dropped included."""
        self._rows += rows
        return np.arange(self._rows - rows, self._rows)

    def keep(self, **columns: np.ndarray) -> None:
        """Add a batch's part of each column, an entry a row; "label" is one of them."""
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def column(self, name: str) -> np.ndarray:
        """A column of all rows so far."""
        self._columns[name] = [np.concatenate(self._columns[name])]
        return self._columns[name][0]


def largest(values: np.ndarray, most: int) -> list[int]:
    """Indices of the largest values above 0, largest first; ties in order."""
    return [int(i) for i in np.argsort(-values, kind="stable")[:most] if values[i] > 0]


def finite(logits: np.ndarray) -> np.ndarray:
    """Return model outputs as float64; raises UserError where training has diverged."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise UserError("Expected numbers from the model; the model's outputs are not finite: lower --learning_rate.")
    return logits


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities of shape (n, classes), in float64."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def narrow(scores: np.ndarray) -> np.ndarray:
    """Return scores as float32, to keep many."""
    with np.errstate(over="ignore"):  # beyond float32 is as certain as infinity
        return scores.astype(np.float32)


def shapes(expected: str, logits: np.ndarray, labels: np.ndarray) -> UserError:
    """Return the error of a model and data that do not fit."""
    return UserError(
        f"Expected {expected}; outputs {list(logits.shape)} and labels {list(labels.shape)} came: "
        "give the model as many outputs as the data has classes."
    )
