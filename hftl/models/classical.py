"""Classifiers of scikit-learn's on features, as `Decision`s. Knows numpy and scikit-learn; no model and no data set."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hftl.errors import UserError
from hftl.models.feature_model import Decision

GRIDS: dict[str, tuple[float, ...]] = {
    "logistic": tuple(np.logspace(-4, 2, 7).tolist()),
    "svm": tuple(np.logspace(-5, 1, 7).tolist()),
    "rbf_svm": tuple(np.logspace(-2, 3, 6).tolist()),
    "knn": (1, 3, 5, 9, 17, 33, 65),
}
"""What is tried on valid: C, the inverse of the regularisation's strength, or k, the number of neighbours."""

KERNEL_ROWS = 10_000
"""Training rows up to which `auto` tries rbf_svm, whose time grows with their square."""

FLATTEST = 1e-3
"""The least deviation of a feature, as a share of the largest, that is divided by, lest noise grow to a signal."""

NEVER = -1e4
"""The logit of a class that train lacks."""


def tried_by_auto(labels: np.ndarray) -> list[str]:
    """The classifiers that take these labels, the quickest to use first."""
    if _numbers(labels):
        return ["logistic"]
    kinds = ["logistic", "svm", *(["rbf_svm"] if len(labels) <= KERNEL_ROWS else [])]
    return kinds if labels.ndim > 1 else [*kinds, "knn"]


def _numbers(labels: np.ndarray) -> bool:
    return labels.ndim == 1 and not np.issubdtype(labels.dtype, np.integer)


def loss(logits: torch.Tensor, labels: np.ndarray) -> float:
    """The mean loss of logits (rows, classes) for labels as `fit` takes them: log loss; for numbers squared error."""
    given = torch.from_numpy(labels)
    if _numbers(labels):
        return float(functional.mse_loss(logits.reshape(-1).double(), given.double()))
    if labels.ndim > 1:
        return float(functional.binary_cross_entropy_with_logits(logits.double(), given.double()))
    return float(functional.cross_entropy(logits.double(), given.long()))


def fit(
    classifier: str, value: float, features: np.ndarray, labels: np.ndarray, classes: int, balanced: bool = False
) -> Decision:
    """Fit one classifier on features of shape (rows, width), which it standardises.

    Args:
        value: C or k.
        labels: (rows,) integers, a class each; (rows,) floats, a number each; or (rows, classes) of 0 and 1.
        balanced: whether a logistic regression weighs each class by the inverse of its share.

    Raises:
        UserError: this classifier does not take such labels, or train has one class alone.
    """
    numbers, several = _numbers(labels), labels.ndim > 1
    if numbers and classifier != "logistic":
        raise UserError(
            f"The classifier {classifier} is for classes; here labels are numbers. Leave it out for a ridge."
        )
    if several and classifier == "knn":
        raise UserError("The classifier knn takes one label a row. Pass logistic, svm or rbf_svm.")
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.maximum(deviation, FLATTEST * deviation.max()) if deviation.max() > 0 else np.ones_like(deviation)
    x = (features - mean) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a C of the grid that does not converge is not the one that valid chooses
        if numbers:
            kind, arrays = _ridge(value, x, labels)
        elif classifier == "knn":
            kind, arrays = "knn", {"support": x, "votes": np.eye(classes)[labels], "k": np.int64(min(value, len(x)))}
        elif classifier == "rbf_svm":
            kind, arrays = _rbf(value, x, *_targets(labels, classes), classes)
        elif several:
            kind, arrays = _one_vs_rest(classifier, value, x, labels)
        else:
            kind, arrays = _linear(classifier, value, x, labels, classes, balanced)
    if kind == "linear":  # the scaler folded in: w (f - mean) / scale + b
        weight = arrays["weight"] / scale
        arrays = {"weight": weight, "bias": arrays["bias"] - weight @ mean}
    else:
        arrays |= {"mean": mean, "scale": scale}
    return Decision(kind, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


Fitted = tuple[str, dict[str, Any]]


def _ridge(c: float, x: np.ndarray, y: np.ndarray) -> Fitted:
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / c).fit(x, y.reshape(-1))
    return "linear", {"weight": fitted.coef_.reshape(1, -1), "bias": np.reshape(fitted.intercept_, 1)}


def _estimator(classifier: str, c: float, balanced: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if classifier == "logistic":
        return LogisticRegression(C=c, max_iter=1000, class_weight="balanced" if balanced else None)
    return LinearSVC(C=c, dual="auto", max_iter=5000, random_state=0)


def _linear(classifier: str, c: float, x: np.ndarray, y: np.ndarray, classes: int, balanced: bool = False) -> Fitted:
    """A row of weights a class; of two classes, softmax of -d/2 and d/2 is the sigmoid of the one decision d."""
    if len(np.unique(y)) < 2:
        raise UserError("Expected two classes in train; there is one. Pass more data.")
    fitted = _estimator(classifier, c, balanced).fit(x, y)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, NEVER)
    if len(fitted.classes_) == 2:
        for number, sign in zip(fitted.classes_, (-0.5, 0.5), strict=True):
            weight[number], bias[number] = sign * fitted.coef_[0], sign * fitted.intercept_[0]
    else:
        weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return "linear", {"weight": weight, "bias": bias}


def _one_vs_rest(classifier: str, c: float, x: np.ndarray, y: np.ndarray) -> Fitted:
    weight, bias = np.zeros((y.shape[1], x.shape[1])), _shares(y)
    for i in np.flatnonzero((y != y[0]).any(axis=0)):
        fitted = _estimator(classifier, c).fit(x, y[:, i])
        weight[i], bias[i] = fitted.coef_[0], fitted.intercept_[0]
    return "linear", {"weight": weight, "bias": bias}


def _rbf(c: float, x: np.ndarray, targets: np.ndarray, never: np.ndarray, classes: int) -> Fitted:
    """One classifier for each column of targets against the rest; of two classes one alone, as in `_linear`."""
    from sklearn.svm import SVC

    gamma = 1 / x.shape[1]  # features have variance 1
    weight, bias = np.zeros((targets.shape[1], len(x))), never
    for i, target in enumerate(targets.T):
        if len(np.unique(target)) == 2:
            fitted = SVC(C=c, gamma=gamma).fit(x, target)
            weight[i, fitted.support_], bias[i] = fitted.dual_coef_[0], fitted.intercept_[0]
    if targets.shape[1] < classes:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    used = np.abs(weight).sum(axis=0) > 0
    return "rbf", {"support": x[used], "weight": weight[:, used], "bias": bias, "gamma": np.float64(gamma)}


def _targets(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of 0 and 1 to be told apart, one for two classes; and the logits of those that never change."""
    if labels.ndim > 1:
        return labels, _shares(labels)
    if len(np.unique(labels)) < 2:
        raise UserError("Expected two classes in train; there is one. Pass more data.")
    targets = labels.reshape(-1, 1) if classes == 2 else np.eye(classes)[labels]
    return targets, np.full(targets.shape[1], NEVER)


def _shares(labels: np.ndarray) -> np.ndarray:
    """The logits of a label that every training row has, or none: those of its share, smoothed by half a row."""
    given = labels.sum(axis=0)
    return np.log((given + 0.5) / (len(labels) - given + 0.5)).astype(np.float64)
