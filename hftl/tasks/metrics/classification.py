"""Scores of predictions, accumulated batch by batch and offline; knows no task, model, trainer or file.

Only small columns of each batch are kept, never all logits. Values and 95 % intervals come from
`hftl.tasks.metrics.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hftl.data.types import IGNORED
from hftl.errors import UserError
from hftl.settings.visible import cut
from hftl.tasks.metrics import bootstrap, calibration
from hftl.tasks.metrics.accumulator import Accumulator, finite, largest, narrow, shapes
from hftl.tasks.metrics.bootstrap import Score, Statistic, Values
from hftl.tasks.sections import (
    FAULTS,
    LIMITS,
    Baseline,
    Section,
    Words,
    by_class,
    confused,
    neglected,
    per_class,
    reliability,
)

RANKING_CAP = 20_000_000  # scores (examples x classes) kept for the ranking metrics: 80 MB of float32
LISTED_CLASSES = 20  # per-class F1 is listed up to here


class SingleLabel(Accumulator):
    """One class per example. Logits [..., classes], integer labels [...]; labels of -100 are dropped.

    accuracy; f1_macro, the mean over classes that occur among labels or predictions (scikit-learn's rule); matthews;
    ece (15 equal-width bins, Guo et al. 2017, equation 3); log_loss in nats; auroc: with two classes that of class 1,
    else the mean of one-vs-rest over classes with both positives and negatives, left out where there is none or past
    RANKING_CAP scores; f1_<name> for up to 20 classes, 0.0 for a class that does not occur.
    """

    headline = "accuracy"
    lower = frozenset({"ece", "log_loss"})
    one_class = True

    @staticmethod
    def decided(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = labels != IGNORED
        return outputs.argmax(axis=-1)[kept], labels[kept]

    def reset(self) -> None:
        super().reset()
        self._ranked = True

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for labels out of range or outputs that are not finite."""
        classes = len(self.names)
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.shape != (*labels.shape, classes):
            raise shapes(f"outputs [..., {classes}] and labels [...]", logits, labels)
        logits, labels = logits.reshape(-1, classes), labels.reshape(-1)
        kept = labels != IGNORED
        self.keep(row=self.arrived(len(labels))[kept])
        logits, labels = finite(logits[kept]), labels[kept].astype(np.int64)
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            wrong = labels[(labels < 0) | (labels >= classes)][0]
            raise UserError(
                f"Expected labels from 0 to {classes - 1}; label {wrong} came: name every class in the data."
            )
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        predicted, each = logits.argmax(axis=1), np.arange(len(labels))
        confidence = np.exp(logs[each, predicted])
        self.keep(label=labels, predicted=predicted, confidence=confidence, log_probability=logs[each, labels])
        # log-probabilities rank as probabilities do, and do not tie at 1 in float32
        scores = logs[:, 1:] if classes == 2 else logs
        size = sum(part.size for part in self._columns.get("score", [])) + scores.size
        self._ranked = self._ranked and size <= RANKING_CAP
        if self._ranked:
            self.keep(score=narrow(scores))
        else:
            self._columns.pop("score", None)

    @property
    def reported(self) -> list[str]:
        return ["accuracy", "f1_macro", "matthews", *self.classes, "ece", "log_loss", "auroc"]

    @property
    def classes(self) -> dict[str, str]:
        listed = self.names if len(self.names) <= LISTED_CLASSES else []
        return {f"f1_{name}": name for name in listed if name != "macro"}  # such a class does not hide the mean

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        counts = self.confusion()
        most = max(map(sum, counts)) / sum(map(sum, counts))
        every = ["Every input gets one of the labels above, also one that fits none of them."]
        return [
            *by_class("F1", self.names, per_class(counts), scores),
            Words(heading=LIMITS, sentences=every),
            *confused(self.names, counts, most),
            *reliability("confidence", "accuracy", self.calibration()),
        ]

    def confusion(self) -> list[list[int]]:
        """Rows true, columns predicted."""
        matrix = np.zeros((len(self.names), len(self.names)), dtype=np.int64)
        true, predicted, counts = self._cells()
        matrix[true, predicted] = counts
        return matrix.tolist()

    def calibration(self, bins: int = 15) -> list[dict[str, float]]:
        """Non-empty bins of confidence, `low < confidence <= high`, with accuracy and count."""
        return calibration.reliability(
            self.column("confidence"), self.column("predicted") == self.column("label"), bins
        )

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        row, label, predicted, confidence = map(self.column, ("row", "label", "predicted", "confidence"))
        wrong = largest(np.where(label != predicted, confidence, 0.0), most)
        return [(int(row[i]), self.names[label[i]], self.names[predicted[i]], float(confidence[i])) for i in wrong]

    def paired(self) -> Statistic:
        right = self.column("predicted") == self.column("label")
        return bootstrap.per_example(len(right), lambda weights: {"accuracy": weights @ right / weights.sum(axis=1)})

    def _cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True class, predicted class and count of the cells of the confusion matrix that are not empty."""
        pairs = self.column("label") * len(self.names) + self.column("predicted")
        cells, counts = np.unique(pairs, return_counts=True)
        return *np.divmod(cells, len(self.names)), counts  # type: ignore[return-value]

    def statistics(self) -> list[Statistic]:
        true, predicted, counts = self._cells()
        label, confidence = self.column("label"), self.column("confidence")
        right, losses = self.column("predicted") == label, -self.column("log_probability")

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
            statistics.append(bootstrap.ranking(self.column("score"), positive, {"auroc": bootstrap.auroc}))
        return statistics

    def _counted(self, weights: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Values:
        classes, right, n = len(self.names), true == predicted, weights.sum(axis=1)
        hits = bootstrap.sums(weights[:, right], true[right], classes)
        actual, guessed = bootstrap.sums(weights, true, classes), bootstrap.sums(weights, predicted, classes)
        covariance = n * hits.sum(axis=1) - (actual * guessed).sum(axis=1)
        spread = (n**2 - (actual**2).sum(axis=1)) * (n**2 - (guessed**2).sum(axis=1))
        each, macro = bootstrap.f1(hits, actual, guessed)
        matthews = bootstrap.ratio(covariance, np.sqrt(spread))
        found = {"accuracy": hits.sum(axis=1) / n, "f1_macro": macro, "matthews": matthews}
        return found | {metric: each[:, self.names.index(name)] for metric, name in self.classes.items()}


class MultiLabel(Accumulator):
    """Any number of labels per example. Logits and 0/1 labels [n, labels]; a row holding -100 is dropped.

    average_precision, the mean over labels that have a positive (the others have no recall; 0.0 if none has);
    f1_micro and f1_macro at a threshold, the latter over labels that occur among truths or predictions;
    auroc, the mean over labels with positives and negatives; exact_match, the share of rows with every label right.
    Past RANKING_CAP scores the metrics are those of a uniform random sample of rows, and n is the sample's.
    """

    headline = "average_precision"
    reported = ("average_precision", "auroc", "f1_micro", "f1_macro", "exact_match")

    def __init__(self, names: Sequence[str] = (), threshold: float = 0.5) -> None:
        super().__init__(names)
        self.cut = math.log(threshold / (1 - threshold))  # of a logit

    def decided(self, outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = (labels != IGNORED).all(axis=1)
        return (outputs > self.cut).astype(np.int64)[kept], labels[kept]

    def reset(self) -> None:
        super().reset()
        self._generator = bootstrap.generator()

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for labels other than 0 and 1 or outputs that are not finite."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.shape != labels.shape or logits.shape != (len(labels), len(self.names)):
            raise shapes(f"outputs and labels [n, {len(self.names)}]", logits, labels)
        kept = (labels != IGNORED).all(axis=1)
        logits, labels = finite(logits[kept]), labels[kept]
        if not np.isin(labels, (0, 1)).all():
            wrong = labels[~np.isin(labels, (0, 1))][0]
            raise UserError(f"Expected 0 or 1 for each label of a multi-label row; {wrong} came: correct the data.")
        row, key = self.arrived(len(kept))[kept], self._generator.random(len(labels))
        self.keep(score=narrow(logits), label=labels.astype(bool), row=row, key=key)
        limit = max(1, RANKING_CAP // len(self.names))
        if sum(len(part) for part in self._columns["key"]) > limit:  # keep the rows with the smallest random keys
            chosen = np.sort(np.argpartition(self.column("key"), limit)[:limit])
            self._columns = {name: [self.column(name)[chosen]] for name in self._columns}

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        label, predicted = self.column("label"), self.column("score") > self.cut
        counts = np.stack([(label & predicted).sum(axis=0), label.sum(axis=0), predicted.sum(axis=0)], axis=1).tolist()
        made: list[Section] = neglected(self.names, [n for _, n, _ in counts], [n for _, _, n in counts], False)
        if predicted.any() and (predicted == predicted[0]).all() and not (label == label[0]).all():
            said = f"The model has collapsed: on test it answers “{cut(self._joined(predicted[0]), 80)}” always."
            made = [Words(heading=FAULTS, sentences=[said])]
        shares = label.mean(axis=0)
        same = float(shares[shares > 0].mean()) if shares.any() else 0.0  # a ranking by chance finds a label's share
        made.append(Baseline(heading="", title="The same scores for every row", value=same))
        made += by_class("F1", self.names, counts, scores)
        return made + reliability("probability", "frequency", self.calibration())

    def calibration(self, bins: int = 15) -> list[dict[str, float]]:
        """Bins of the probability of a label against its frequency, over all (example, label) pairs."""
        return calibration.reliability(self._probability().ravel(), self.column("label").ravel(), bins)

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        """The rows whose surest wrong decision on a label is the surest; labels are joined by a comma."""
        row, label, probability = self.column("row"), self.column("label"), self._probability()
        predicted = self.column("score") > self.cut
        sure = np.where(label == predicted, 0, np.maximum(probability, 1 - probability)).max(axis=1)
        return [
            (int(row[i]), self._joined(label[i]), self._joined(predicted[i]), float(sure[i]))
            for i in largest(sure, most)
        ]

    def _joined(self, chosen: np.ndarray) -> str:
        return ", ".join(self.names[index] for index in np.flatnonzero(chosen))

    def _probability(self) -> np.ndarray:
        odds = np.exp(-np.abs(self.column("score").astype(np.float64)))
        return np.where(self.column("score") > 0, 1, odds) / (1 + odds)

    def statistics(self) -> list[Statistic]:
        score, label = self.column("score"), self.column("label")
        predicted = score > self.cut
        # float32 counts exactly up to 2**24 rows, and more are never kept
        hits, truths, guesses = (part.astype(np.float32) for part in (label & predicted, label, predicted))
        exact = (label == predicted).all(axis=1)

        def thresholded(weights: np.ndarray) -> Values:
            counts = [weights.astype(np.float32) @ part for part in (hits, truths, guesses)]
            micro, _ = bootstrap.f1(*(part.sum(axis=1, keepdims=True, dtype=np.float64) for part in counts))
            macro = bootstrap.f1(*counts)[1]
            return {"f1_micro": micro[:, 0], "f1_macro": macro, "exact_match": weights @ exact / weights.sum(axis=1)}

        def ranked(weights: np.ndarray) -> Values:
            found = ranking.of(weights)  # a headline is never absent
            return found | {"average_precision": np.nan_to_num(found["average_precision"])}

        metrics = {"average_precision": bootstrap.average_precision, "auroc": bootstrap.auroc}
        ranking = bootstrap.ranking(score, label, metrics)
        return [replace(ranking, of=ranked), bootstrap.per_example(len(label), thresholded)]
