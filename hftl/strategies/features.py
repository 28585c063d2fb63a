"""Read a frozen model's features with a classifier of scikit-learn's: what needs no step of training.

Knows which features and classifiers are tried and how valid chooses; how features are extracted is the run's to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hftl.errors import UserError
from hftl.strategies.base import Strategy

if TYPE_CHECKING:
    from hftl.models.feature_model import Head
    from hftl.strategies.base import Look

WORDS = {"classifier": ("logistic", "svm", "rbf_svm", "knn", "auto"), "pool": ("head", "mean", "first")}
OTHER_HEAD = "What is new in the head of this model is not one linear layer with a bias."


@dataclass(frozen=True)
class Features(Strategy):
    """Nothing trains: features of the frozen model are extracted once, kept on disk, and given to a classifier.

    Args:
        classifier: logistic (for numbers a ridge), svm, rbf_svm, knn, or auto for all; C or k is chosen on valid.
        layers: whose output is read: last, all (joined), or the number of a block from 1.
        pool: head (what the model's own head reads), mean, or first token; else head where that fits, or mean.
    """

    steps: ClassVar[bool] = False

    classifier: str = "logistic"
    layers: str | int = "last"
    pool: str | None = None

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            if (value := getattr(self, name)) is not None and value not in words:
                raise UserError(f"Features({name}) takes {', '.join(words[:-1])} or {words[-1]}; {value!r} came.")

    def fit(self, look: Look) -> Head:
        """Fit on train for each C or k, and keep what is best on valid; of equals in the metric, the lower loss."""
        from hftl.models import classical

        names = self._asked(look)
        kinds = [self.classifier]
        if self.classifier == "auto":
            kinds = classical.tried_by_auto(look.labels)
        tried = [_try(look, kind, names, value) for kind in kinds for value in classical.GRIDS[kind]]
        best = max(tried, key=lambda one: one.score)
        tried += [_try(look, best.kind, other, best.value) for other in _others(look) if other != names]
        better = max(tried, key=lambda one: one.score)
        for one in tried:
            look.note(f"Tried: {one.head.said}, {look.headline} {abs(one.score[0]):.3f} on valid.")
        if better.score[0] > best.score[0]:
            look.note(f"Better on valid than what was asked for: {better.head.said}. It was not chosen.", aloud=True)
        return best.head

    def _asked(self, look: Look) -> list[str]:
        """The features that are named here, of those that there are.

        Raises:
            UserError: the model has no such features.
        """
        heads = [name for name in look.names if name.startswith("head ")]
        stack, layers = look.stack, str(self.layers)
        pool = self.pool or ("head" if layers == "last" and heads else "mean")
        if pool == "head":
            if layers != "last":
                raise UserError(
                    f"Features(pool='head') is what follows the last block; with layers={layers} pass mean or first."
                )
            if not heads:
                raise UserError(f"{OTHER_HEAD} Pass Features(pool='mean').")
            return heads
        if self.pool is None and layers == "last":
            look.note(f"{OTHER_HEAD} pool='mean' was used.")
        if not stack:
            raise UserError("Expected a model with a stack of blocks; this one has none. Leave out layers and pool.")
        if layers not in ("last", "all") and not (layers.isdigit() and 1 <= int(layers) <= len(stack)):
            raise UserError(f"Features(layers) takes last, all, or a block from 1 to {len(stack)}; {layers} came.")
        blocks = {"last": stack[-1:], "all": stack}.get(layers) or [stack[int(layers) - 1]]
        names = [f"{pool} {block}" for block in blocks]
        if missing := [name for name in names if name not in look.names]:
            cure = "Leave out layers and pool" if pool == "mean" else "Pass pool='mean'"
            raise UserError(f"Features(pool={pool!r}) does not fit what {missing[0].split(' ')[1]} gives. {cure}.")
        return names


@dataclass
class _Try:
    """One classifier that was fitted on train, and what `Look.score` gives it on valid: more is better."""

    kind: str
    value: float
    head: Head
    score: tuple[float, float]


def _try(look: Look, kind: str, names: list[str], value: float) -> _Try:
    from hftl.models import classical
    from hftl.models.feature_model import Head

    decision = classical.fit(kind, value, look.features("train", names), look.labels, look.classes)
    head = Head(names, decision, _said(look.stack, kind, names, value))
    return _Try(kind, value, head, look.score(head))


def _others(look: Look) -> Iterator[list[str]]:
    """Features that cost nothing more once they are extracted, to be compared with what was asked for."""
    yield from ([one] for one in look.names if one.startswith("head ") or one.split(" ")[1] in look.stack[-1:])
    means = [f"mean {block}" for block in look.stack]
    if len(means) > 1 and set(means) <= set(look.names):
        yield means


def _said(stack: list[str], kind: str, names: list[str], value: float) -> str:
    pool, block = names[0].split(" ")
    layers = "all" if len(names) > 1 else "last" if block in stack[-1:] or pool == "head" else stack.index(block) + 1
    letter = "k" if kind == "knn" else "C"
    return f"Features({kind}, layers={layers}, pool={pool}, {letter}={value:g})"
