"""Two domains from their features alone: how far apart they lie, and how good a model is where no label is known.

Knows arrays: features are (rows, width), probabilities (rows, classes), labels (rows,). skada has scorers of the same
names; version 0.6 divides the entropy by the number of classes and normalises the neighbourhood over all pairs of rows
and not over each row's, and they call an estimator again, so the closed forms are here.
"""

from __future__ import annotations

import numpy as np

from hftl.tasks.metrics.accumulator import softmax

CRITERIA = {"entropy": False, "snd": True, "iwv": False, "dev": False}
"""Criteria of a model that need no target label -> whether greater is better."""


def proxy_distance(source: np.ndarray, target: np.ndarray, seed: int = 42) -> float:
    """Proxy A-distance, 2 (1 - 2e), in [0, 2]: 0 where no linear classifier tells the domains apart.

    e is the balanced error of a regularised logistic regression by 5-fold cross-validation: a free one saturates
    (Ben-David et al. 2007, section 4). NaN with fewer than 5 rows of a domain.
    """
    if min(len(source), len(target)) < 5:
        return float("nan")
    truth, guess = _told_apart(source, target, seed)
    wrong = (guess > 0.5) != truth
    error = (wrong[truth].mean() + wrong[~truth].mean()) / 2
    return float(max(0.0, 2 * (1 - 2 * error)))


def density_ratio(source: np.ndarray, target: np.ndarray, seed: int = 42) -> np.ndarray:
    """p(target) / p(source) at each source row, (rows,), from a domain classifier that has not seen the row.

    Raises:
        ValueError: fewer than 5 rows of a domain.
    """
    truth, guess = _told_apart(source, target, seed)
    return (guess / np.maximum(1 - guess, 1e-6))[~truth]  # the classifier weighs both domains alike


def entropy(target: np.ndarray) -> float:
    """Mean entropy of the target's probabilities, in nats (Morerio et al. 2018, arXiv 1711.10288)."""
    return float(-(target * np.log(np.maximum(target, 1e-12))).sum(axis=1).mean())


def snd(target: np.ndarray, temperature: float = 0.05) -> float:
    """Soft neighbourhood density of the target's probabilities (Saito et al. 2021, arXiv 2108.10860, equations 2-3)."""
    unit = target / np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T / temperature
    np.fill_diagonal(near, -np.inf)
    return entropy(softmax(near))


def importance_weighted(losses: np.ndarray, weights: np.ndarray) -> float:
    """Importance-weighted validation: the mean of the source's losses, each by its weight (Sugiyama et al. 2007)."""
    return float((losses * weights).mean())


def deep_embedded(losses: np.ndarray, weights: np.ndarray) -> float:
    """Deep embedded validation: as `importance_weighted`, with the weights as control variate (You et al. 2019)."""
    weighted, spread = losses * weights, weights.var()
    eta = 0.0 if spread == 0 else -np.cov(weighted, weights, ddof=0)[0, 1] / spread
    return float(weighted.mean() + eta * weights.mean() - eta)


def projection(source: np.ndarray, target: np.ndarray) -> tuple[list[list[float]], list[list[float]]]:
    """Both domains on the first two principal axes of the two together: points (x, y) of each."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    both = StandardScaler().fit_transform(np.concatenate([source, target]))
    count = min(2, *both.shape)
    points = np.zeros((len(both), 2))
    points[:, :count] = PCA(count, svd_solver="full").fit_transform(both)
    rounded = points.round(3).tolist()
    return rounded[: len(source)], rounded[len(source) :]


def _told_apart(source: np.ndarray, target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) whether each row is of the target, and how sure of it a classifier is that did not see it."""
    from sklearn.linear_model import LogisticRegression  # not before a run looks at two domains: it takes a second
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    both = np.concatenate([source, target]).astype(np.float64)
    truth = np.arange(len(both)) >= len(source)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return truth, cross_val_predict(judge, both, truth, cv=folds, method="predict_proba")[:, 1]
