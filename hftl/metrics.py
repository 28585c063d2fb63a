"""Scores of predictions, accumulated batch by batch and offline; knows no task, model, trainer or file.

Only small columns of each batch are kept, never all logits. Values and 95 % intervals come from `hftl.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hftl import bootstrap, calibration
from hftl.bootstrap import Score, Statistic, Values
from hftl.errors import UserError, suggest

RANKING_CAP = 20_000_000  # scores (examples x classes) kept for the ranking metrics: 80 MB of float32
LISTED_CLASSES = 20  # per-class F1 is listed up to here
IGNORED = -100  # torch's `ignore_index`


class Accumulator:
    """What all problem types share: rows come in batches, only small columns of them are kept."""

    headline: str

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.reset()

    def reset(self) -> None:
        """Forget every example."""
        self._columns: dict[str, list[np.ndarray]] = {}

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch of raw model outputs and their labels."""
        raise NotImplementedError

    def values(self) -> dict[str, float]:
        """Return every metric without its interval: cheap enough for each evaluation. Headline first."""
        return {name: value for statistic in self._filled() for name, value in statistic.values().items()}

    def compute(self) -> dict[str, Score]:
        """Return every metric with its 95 % interval, headline first. Raises UserError when there was no example."""
        return {name: score for statistic in self._filled() for name, score in statistic.scores().items()}

    def confusion(self) -> list[list[int]]:
        """Rows true, columns predicted; `[]` where an example has not exactly one class."""
        return []

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        """Non-empty bins of confidence, `low < confidence <= high`, with accuracy and count; `[]` for regression."""
        return []

    def _statistics(self) -> list[Statistic]:
        raise NotImplementedError

    def _filled(self) -> list[Statistic]:
        if not sum(len(part) for part in self._columns.get("label", [])):
            raise UserError("Expected at least one labelled example to score; there is none: look at the test data.")
        return self._statistics()

    def _keep(self, **columns: np.ndarray) -> None:
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def _column(self, name: str) -> np.ndarray:
        self._columns[name] = [np.concatenate(self._columns[name])]
        return self._columns[name][0]


class SingleLabel(Accumulator):
    """One class per example. Logits [..., classes], integer labels [...]; labels of -100 are dropped.

    accuracy; f1_macro, the mean over classes that occur among labels or predictions (scikit-learn's rule); matthews;
    ece (15 equal-width bins, Guo et al. 2017, equation 3); log_loss in nats; auroc: with two classes that of class 1,
    else the mean of one-vs-rest over classes with both positives and negatives, left out where there is none or past
    RANKING_CAP scores; f1_<name> for up to 20 classes, 0.0 for a class that does not occur.
    """

    headline = "accuracy"

    def reset(self) -> None:
        super().reset()
        self._ranked = True

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for labels out of range or outputs that are not finite."""
        classes = len(self.names)
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.shape != (*labels.shape, classes):
            raise _shapes(f"outputs [..., {classes}] and labels [...]", logits, labels)
        logits, labels = logits.reshape(-1, classes), labels.reshape(-1)
        kept = labels != IGNORED
        logits, labels = _finite(logits[kept]), labels[kept].astype(np.int64)
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            wrong = labels[(labels < 0) | (labels >= classes)][0]
            raise UserError(
                f"Expected labels from 0 to {classes - 1}; label {wrong} came: name every class in the data."
            )
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        predicted, each = logits.argmax(axis=1), np.arange(len(labels))
        confidence = np.exp(logs[each, predicted])
        self._keep(label=labels, predicted=predicted, confidence=confidence, log_probability=logs[each, labels])
        # log-probabilities rank as probabilities do, and do not tie at 1 in float32
        scores = logs[:, 1:] if classes == 2 else logs
        size = sum(part.size for part in self._columns.get("score", [])) + scores.size
        self._ranked = self._ranked and size <= RANKING_CAP
        if self._ranked:
            self._keep(score=_narrow(scores))
        else:
            self._columns.pop("score", None)

    def confusion(self) -> list[list[int]]:
        matrix = np.zeros((len(self.names), len(self.names)), dtype=np.int64)
        true, predicted, counts = self._cells()
        matrix[true, predicted] = counts
        return matrix.tolist()

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        return calibration.reliability(
            self._column("confidence"), self._column("predicted") == self._column("label"), bins
        )

    def _cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True class, predicted class and count of the cells of the confusion matrix that are not empty."""
        pairs = self._column("label") * len(self.names) + self._column("predicted")
        cells, counts = np.unique(pairs, return_counts=True)
        return *np.divmod(cells, len(self.names)), counts  # type: ignore[return-value]

    def _statistics(self) -> list[Statistic]:
        true, predicted, counts = self._cells()
        label, confidence = self._column("label"), self._column("confidence")
        right, losses = self._column("predicted") == label, -self._column("log_probability")

        def confident(weights: np.ndarray) -> Values:
            ece = calibration.expected_error(weights, confidence, right)
            return {"ece": ece, "log_loss": weights @ losses / weights.sum(axis=1)}

        statistics = [
            Statistic(counts, lambda weights: self._counted(weights, true, predicted)),
            bootstrap.per_example(len(label), confident),
        ]
        if self._ranked:
            classes = [1] if len(self.names) == 2 else range(len(self.names))
            positive = np.stack([label == index for index in classes], axis=1)
            statistics.append(bootstrap.ranking(self._column("score"), positive, {"auroc": bootstrap.auroc}))
        return statistics

    def _counted(self, weights: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Values:
        classes, right, n = len(self.names), true == predicted, weights.sum(axis=1)
        hits = bootstrap.sums(weights[:, right], true[right], classes)
        actual, guessed = bootstrap.sums(weights, true, classes), bootstrap.sums(weights, predicted, classes)
        covariance = n * hits.sum(axis=1) - (actual * guessed).sum(axis=1)
        spread = (n**2 - (actual**2).sum(axis=1)) * (n**2 - (guessed**2).sum(axis=1))
        each, macro = bootstrap.f1(hits, actual, guessed)
        found = {
            "accuracy": hits.sum(axis=1) / n,
            "f1_macro": macro,
            "matthews": bootstrap.ratio(covariance, np.sqrt(spread)),
        }
        if classes <= LISTED_CLASSES:
            for index, name in enumerate(self.names):
                found.setdefault(f"f1_{name}", each[:, index])  # a class called "macro" does not hide the mean
        return found


class MultiLabel(Accumulator):
    """Any number of labels per example. Logits and 0/1 labels [n, labels]; a row holding -100 is dropped.

    average_precision, the mean over labels that have a positive (the others have no recall; 0.0 if none has);
    f1_micro and f1_macro at probability 0.5, the latter over labels that occur among truths or predictions;
    auroc, the mean over labels with positives and negatives; exact_match, the share of rows with every label right.
    Past RANKING_CAP scores the metrics are those of a uniform random sample of rows, and n is the sample's.
    """

    headline = "average_precision"

    def reset(self) -> None:
        super().reset()
        self._generator = bootstrap.generator()

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for labels other than 0 and 1 or outputs that are not finite."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.shape != labels.shape or logits.shape != (len(labels), len(self.names)):
            raise _shapes(f"outputs and labels [n, {len(self.names)}]", logits, labels)
        kept = (labels != IGNORED).all(axis=1)
        logits, labels = _finite(logits[kept]), labels[kept]
        if not np.isin(labels, (0, 1)).all():
            wrong = labels[~np.isin(labels, (0, 1))][0]
            raise UserError(f"Expected 0 or 1 for each label of a multi-label row; {wrong} came: correct the data.")
        self._keep(score=_narrow(logits), label=labels.astype(bool), key=self._generator.random(len(labels)))
        limit = max(1, RANKING_CAP // len(self.names))
        if sum(len(part) for part in self._columns["key"]) > limit:  # keep the rows with the smallest random keys
            chosen = np.sort(np.argpartition(self._column("key"), limit)[:limit])
            self._columns = {name: [self._column(name)[chosen]] for name in self._columns}

    def calibration(self, bins: int = 10) -> list[dict[str, float]]:
        """Bins of the probability of a label against its frequency, over all (example, label) pairs."""
        odds = np.exp(-np.abs(self._column("score").astype(np.float64)))
        probability = np.where(self._column("score") >= 0, 1 / (1 + odds), odds / (1 + odds))
        return calibration.reliability(probability.ravel(), self._column("label").ravel(), bins)

    def _statistics(self) -> list[Statistic]:
        score, label = self._column("score"), self._column("label")
        predicted = score > 0
        # float32 counts exactly up to 2**24 rows, and more are never kept
        hits, truths, guesses = (part.astype(np.float32) for part in (label & predicted, label, predicted))
        exact = (label == predicted).all(axis=1)

        def thresholded(weights: np.ndarray) -> Values:
            counts = [weights.astype(np.float32) @ part for part in (hits, truths, guesses)]
            micro, _ = bootstrap.f1(*(part.sum(axis=1, keepdims=True, dtype=np.float64) for part in counts))
            macro = bootstrap.f1(*counts)[1]
            return {"f1_micro": micro[:, 0], "f1_macro": macro, "exact_match": weights @ exact / weights.sum(axis=1)}

        def ranked(weights: np.ndarray) -> Values:
            found = ranking.of(weights)
            return {
                **found,
                "average_precision": np.nan_to_num(found["average_precision"]),
            }  # a headline is never absent

        metrics = {"average_precision": bootstrap.average_precision, "auroc": bootstrap.auroc}
        ranking = bootstrap.ranking(score, label, metrics)
        return [replace(ranking, of=ranked), bootstrap.per_example(len(label), thresholded)]


class Regression(Accumulator):
    """One number per example. Outputs [n] or [n, 1], labels [n] or [n, 1]; -100 is a number like any other here.

    pearson and spearman are 0.0 where they are undefined (one example, or no variance in outputs or labels: nothing
    is explained), so that a model that predicts a constant can be compared; mse and mae in the label's unit.
    """

    headline = "pearson"

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for outputs or labels that are not finite."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.size != len(labels) or labels.size != len(labels):
            raise _shapes("outputs and labels [n] or [n, 1]", logits, labels)
        if not np.isfinite(labels).all():
            raise UserError("Expected numbers as labels; some are missing or infinite: remove these rows.")
        self._keep(score=_finite(logits.reshape(-1)), label=labels.reshape(-1).astype(np.float64))

    def _statistics(self) -> list[Statistic]:
        score, label = self._column("score"), self._column("label")
        error, each = score - label, (bootstrap.standardised(score), bootstrap.standardised(label))
        ranks = bootstrap.Steps(score), bootstrap.Steps(label)

        def of(weights: np.ndarray) -> Values:
            n = weights.sum(axis=1)
            pearson = bootstrap.correlation(weights, *each)
            spearman = bootstrap.correlation(weights, *(rank.ranks(weights) for rank in ranks))
            mse, mae = weights @ error**2 / n, weights @ np.abs(error) / n
            return {"pearson": pearson, "spearman": spearman, "mse": mse, "mae": mae}

        return [bootstrap.per_example(len(label), of)]


def metric_for(problem_type: str, names: Sequence[str] = ()) -> Accumulator:
    """Return an empty accumulator for a `problem_type` of transformers; `names` are the classes, index = id."""
    kinds: dict[str, type[Accumulator]] = {
        "single_label_classification": SingleLabel,
        "multi_label_classification": MultiLabel,
        "regression": Regression,
    }
    if problem_type not in kinds:
        hint = suggest(problem_type, kinds)
        raise UserError(f"Expected a problem type out of {', '.join(kinds)}; {problem_type!r} came.{hint}")
    return kinds[problem_type](names)


class Extra:
    """A metric of the `evaluate` library beside the built-in ones; see `extra_metric`."""

    def __init__(self, module: Any, problem_type: str) -> None:
        self._module, self._problem_type = module, problem_type

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: predictions are class ids, 0/1 rows or numbers, as the problem type has it."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if self._problem_type == "single_label_classification":
            predictions, kept = logits.argmax(axis=-1), labels != IGNORED
        elif self._problem_type == "multi_label_classification":
            predictions, kept = (logits > 0).astype(np.int64), (labels != IGNORED).all(axis=1)
        else:
            predictions, kept = logits.reshape(len(labels)), np.ones(len(labels), dtype=bool)
        self._module.add_batch(predictions=predictions[kept], references=labels[kept])

    def compute(self) -> dict[str, float]:
        """Return what the metric returns, and forget the examples. It has no interval: only totals are known here."""
        return {name: float(value) for name, value in self._module.compute().items()}


def extra_metric(name: str, problem_type: str = "single_label_classification") -> Extra:
    """Load an `evaluate` metric by its Hub name or from a local folder; this runs the metric's own Python script.

    Raises UserError where it cannot be loaded, for one because there is no network.
    """
    import evaluate  # slow to import, and rarely wanted

    try:
        return Extra(evaluate.load(name, keep_in_memory=True), problem_type)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Expected an evaluate metric's name or folder; {name!r} could not be loaded ({reason}): "
            "with no network, pass the path of a local metric folder."
        ) from error


def _finite(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise UserError("Expected numbers from the model; the model's outputs are not finite: lower --learning_rate.")
    return logits


def _narrow(scores: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is as certain as infinity
        return scores.astype(np.float32)


def _shapes(expected: str, logits: np.ndarray, labels: np.ndarray) -> UserError:
    return UserError(
        f"Expected {expected}; outputs {list(logits.shape)} and labels {list(labels.shape)} came: "
        "give the model as many outputs as the data has classes."
    )
