"""Statistics of weighted examples and their bootstrap intervals; knows arrays of numbers, no metric's batches or names.

Every statistic is a function of *weights* [b, k]: how often each of k cells (an example, or a cell of the confusion
matrix) counts, in b resamples at once. A value is the statistic at the observed counts; its interval goes from the 2.5
to the 97.5 percentile under resampled counts (the percentile bootstrap, Efron & Tibshirani 1993, chapter 13). The seed
is fixed, so equal inputs give equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 1_000
RANKING_RESAMPLES = 200  # AUROC and average precision cost a pass over the weights for each class
DRAWS = 40_000_000  # where more cells than this would be drawn, fewer resamples are, but never below FEWEST
FEWEST = 50
_CHUNK = 500_000  # cells of one block of weights: 4 MB, near the size of a cache
_FLAT = 1e-12  # less variance than this, of a variable that has variance 1 over all examples, is rounding

BIASED = ("ece", "average_precision")
"""Metrics whose resamples lie above them: rows that come twice tie, and a bin of few rows is further off (Efron &
Tibshirani 1993, chapter 10)."""

Values = dict[str, np.ndarray]  # metric -> [b], one number for each row of weights; NaN where it is undefined


@dataclass(frozen=True)
class Score:
    """A metric's value on `n` examples and its 95 % bootstrap interval from `low` to `high`."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Statistic:
    """Metrics that are read off the same cells."""

    counts: np.ndarray  # [k] how many examples each cell stands for
    of: Callable[[np.ndarray], Values]  # weights [b, k] -> metrics [b]
    resamples: int = RESAMPLES
    passes: int = 1  # over the weights

    def values(self) -> dict[str, float]:
        """Return each metric at the observed counts; one that is undefined there is left out."""
        found = self.of(self.counts[None].astype(np.float64))
        return {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])}

    def scores(self) -> dict[str, Score]:
        """Return each metric with its interval over the resamples where it is defined.

        The interval is widened to hold its value. Resamples of what is `BIASED` are moved to where their mean is it.
        """
        values, n = self.values(), int(self.counts.sum())
        times = min(self.resamples, max(FEWEST, DRAWS // (len(self.counts) * self.passes)))
        blocks = [self.of(weights) for weights in _resample(self.counts, times)]
        scores = {}
        for name, value in values.items():
            drawn = np.concatenate([block[name] for block in blocks])
            drawn = drawn[~np.isnan(drawn)]
            if name in BIASED and len(drawn):
                drawn = drawn + value - drawn.mean()  # else an error of .001 has an interval from .001 to .127
                drawn = drawn.clip(0, 1)
            low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
            scores[name] = Score(value, min(float(low), value), max(float(high), value), n)
        return scores


def difference(first: Statistic, second: Statistic, name: str) -> Score:
    """A metric of `second` less that of `first` with its paired 95 % interval: both see the same resamples.

    Args:
        first, second: with one cell for each example, of the same examples in the same order.
    """

    def between(weights: np.ndarray) -> Values:
        return {name: second.of(weights)[name] - first.of(weights)[name]}

    found = replace(first, of=between, resamples=min(first.resamples, second.resamples)).scores()
    return found[name]


def per_example(n: int, of: Callable[[np.ndarray], Values]) -> Statistic:
    """Metrics of n examples, each a cell of its own."""
    return Statistic(np.ones(n, dtype=np.int64), of)


def generator() -> np.random.Generator:
    """Return a fresh generator of the one seed."""
    return np.random.default_rng(1993)


def _resample(counts: np.ndarray, times: int) -> Iterator[np.ndarray]:
    """Yield blocks [b, k] of weights: `times` resamples with replacement of `counts.sum()` examples."""
    draw = generator()
    n, cells = int(counts.sum()), len(counts)
    step = max(1, _CHUNK // cells)
    for start in range(0, times, step):
        rows = min(step, times - start)
        if n == cells:  # every cell is one example: drawing their indices is the faster way to a multinomial
            drawn = draw.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        else:
            weights = draw.multinomial(n, counts / n, size=rows)
        yield weights.astype(np.float64)


class Steps:
    """The examples in ascending order of their score; examples that tie share a step."""

    def __init__(self, scores: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        new = np.ones(len(scores), dtype=bool)
        new[1:] = ordered[1:] != ordered[:-1]
        self._starts, self._tied = np.flatnonzero(new), not new.all()
        self._step = np.cumsum(new) - 1

    def sums(self, ordered: np.ndarray) -> np.ndarray:
        """Sum weights [b, n], which are in this order, over each step: [b, steps]."""
        return np.add.reduceat(ordered, self._starts, axis=1) if self._tied else ordered

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Return the mean rank, in (0, 1], of each example [b, n] in its resample."""
        here = self.sums(weights[:, self.order])
        middle = (np.cumsum(here, axis=1) - here / 2 + 0.5) / weights.sum(axis=1, keepdims=True)
        ranks = np.empty_like(weights)
        ranks[:, self.order] = middle[:, self._step]
        return ranks


def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [b] of weights [b, steps] by ascending score: Mann-Whitney's U, ties count a half."""
    below = np.cumsum(negatives, axis=1)
    pairs = positives.sum(axis=1) * below[:, -1]
    return ratio(np.einsum("bs,bs->b", positives, below - negatives / 2), pairs, empty=np.nan)


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Precision at each step of recall, without interpolation [b], of weights [b, steps] by ascending score."""
    found = np.cumsum(positives[:, ::-1], axis=1)
    taken = found + np.cumsum(negatives[:, ::-1], axis=1)
    precision = ratio(found, taken)
    return ratio(np.einsum("bs,bs->b", positives[:, ::-1], precision), found[:, -1], empty=np.nan)


def ranking(scores: np.ndarray, positive: np.ndarray, metrics: dict[str, Callable[..., np.ndarray]]) -> Statistic:
    """Metrics of scores [n, classes] against truths [n, classes]: the mean over classes where they are defined."""
    classes = [(Steps(scores[:, index]), positive[:, index]) for index in range(scores.shape[1])]

    def of(weights: np.ndarray) -> Values:
        total: Values = {name: np.zeros(len(weights)) for name in metrics}
        defined: Values = {name: np.zeros(len(weights)) for name in metrics}
        for steps, truth in classes:
            ordered = weights[:, steps.order]
            positives = ordered * truth[steps.order]
            sides = steps.sums(positives), steps.sums(ordered - positives)
            for name, metric in metrics.items():
                found = metric(*sides)
                total[name] += np.nan_to_num(found)
                defined[name] += ~np.isnan(found)
        return {name: ratio(total[name], defined[name], empty=np.nan) for name in metrics}

    return replace(per_example(len(scores), of), resamples=RANKING_RESAMPLES, passes=len(classes))


def correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation [b] of x and y, each [n] or [b, n] with variance of order 1; 0.0 where one is flat."""
    n = weights.sum(axis=1)
    x, y = (
        values - (np.einsum("bn,bn->b", weights, values) / n)[:, None]
        for values in np.broadcast_arrays(x, y, weights)[:2]
    )
    covariance, *variances = (np.einsum("bn,bn->b", weights, product) / n for product in (x * y, x * x, y * y))
    flat = np.minimum(*variances) < _FLAT
    return np.clip(ratio(covariance, np.where(flat, 0, np.sqrt(variances[0]) * np.sqrt(variances[1]))), -1, 1)


def standardised(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and variance 1; zeros where they are all equal."""
    return np.zeros(len(values)) if np.ptp(values) == 0 else (values - values.mean()) / values.std()


def f1(hits: np.ndarray, actual: np.ndarray, guessed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each class [b, classes], and its mean [b] over those that occur in either, from counts [b, classes]."""
    each = ratio(2 * hits, actual + guessed)
    return each, ratio(each.sum(axis=1), (actual + guessed > 0).sum(axis=1))


def ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return above / below, and `empty` where below is 0."""
    return np.divide(above, below, out=np.full(below.shape, empty), where=below != 0)


def sums(weights: np.ndarray, ids: np.ndarray, size: int) -> np.ndarray:
    """Sum weights [b, k] over cells with the same id, 0 <= id < size: [b, size]."""
    total = np.zeros((len(weights), size))
    if len(ids):
        order = np.argsort(ids, kind="stable")
        present, starts = np.unique(ids[order], return_index=True)
        total[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return total
