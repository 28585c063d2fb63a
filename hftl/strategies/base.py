"""What a strategy is: how pre-trained weights meet the task. Knows no modality and no trainer.

A strategy is a frozen dataclass with few verbs. Compose two with `|`:

    LoRA(r=16) | LayerDecay(0.9)

`prepare` folds left over the parts, `rate` multiplies, `loss` folds left, `finish` folds right.
Subclass `Strategy`, decorate with `@dataclass(frozen=True)`, and the notation knows it by its class name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hftl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from hftl.models.anatomy import Anatomy, Place
    from hftl.models.feature_model import Head


@dataclass(frozen=True)
class Strategy:
    """One way for pre-trained weights to meet the task. The base class changes nothing: every rate is 1."""

    streams: ClassVar[tuple[str, ...]] = ()
    """Names of extra data that `loss` reads, such as `("unlabelled",)`."""

    random_start: ClassVar[bool] = False
    """Whether `prepare` throws the pre-trained weights away, so that every weight must train."""

    across_rows: ClassVar[bool] = False
    """Whether in training the features of a row depend on other rows of its batch: then none are kept or packed."""

    guesses: ClassVar[bool] = False
    """Whether `loss` reads the model's class probabilities: then the labels must be one class a row or pixel."""

    keeps_fresh: ClassVar[bool] = False
    """Whether `prepare` trains and keeps the fresh modules beside what it adds."""

    steps: ClassVar[bool] = True
    """Whether it trains by steps. Where not, `fit` gives the head, and the Trainer is not entered."""

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        """Change the model before training, e.g. wrap it with adapters. Raise `UserError` where it cannot work."""
        return model

    def rate(self, place: Place, progress: float) -> float:
        """Multiplier of the learning rate for a parameter, at `progress` in [0, 1] of the run. 0 is frozen."""
        return 1.0

    def loss(self, loss: torch.Tensor, step: Any) -> torch.Tensor:
        """Change the loss of one micro-batch; `step` is a `hftl.train.trainer.Step`."""
        return loss

    def partner(self, width: int, classes: int, model: nn.Module) -> nn.Module | None:
        """A module that trains beside the model, and `loss` finds as `step.partner[class name]`; not kept.

        Only for a strategy with `streams`. Args: width of the features that the output layer reads; its outputs.
        """
        return None

    def fit(self, look: Look) -> Head:
        """Make a head from features of the model as it is. Only where `steps` is False."""
        raise NotImplementedError

    def finish(self, model: nn.Module) -> nn.Module:
        """Change the model after training, before it is tested and saved."""
        return model

    @property
    def lr(self) -> float | None:
        """The learning rate to use where the user gives none; None leaves it to the recipe."""
        return None

    @property
    def parts(self) -> tuple[Strategy, ...]:
        """The strategies that this one is composed of, in order."""
        return (self,)

    def __or__(self, other: Strategy) -> Strategy:
        return Chain(self.parts + other.parts)

    @classmethod
    def known(cls) -> dict[str, type[Strategy]]:
        """Every strategy class that can be named in the notation, by name: each imported subclass but `Chain`."""
        return {c.__name__: c for c in _descendants(cls) if c is not Chain and not c.__name__.startswith("_")}


@dataclass(frozen=True)
class Chain(Strategy):
    """Strategies applied together; made by `|`."""

    members: tuple[Strategy, ...] = ()

    def __post_init__(self) -> None:
        for part in self.members:
            if not part.steps:
                raise UserError(f"{type(part).__name__} trains nothing, so no strategy goes with it. Use it alone.")

    @property
    def parts(self) -> tuple[Strategy, ...]:
        return self.members

    @property
    def streams(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for part in self.members for name in part.streams))

    @property
    def across_rows(self) -> bool:  # type: ignore[override]
        return any(part.across_rows for part in self.members)

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        for part in self.members:
            model = part.prepare(model, anatomy)
        return model

    def rate(self, place: Place, progress: float) -> float:
        product = 1.0
        for part in self.members:
            product *= part.rate(place, progress)
        return product

    def loss(self, loss: torch.Tensor, step: Any) -> torch.Tensor:
        for part in self.members:
            loss = part.loss(loss, step)
        return loss

    def finish(self, model: nn.Module) -> nn.Module:
        for part in reversed(self.members):
            model = part.finish(model)
        return model

    @property
    def lr(self) -> float | None:
        rates = [part.lr for part in self.members if part.lr is not None]
        return rates[0] if rates else None


class Look(Protocol):
    """What `Strategy.fit` sees of a run: the features of its rows, their labels, and what valid says of a head."""

    names: list[str]
    """The features that there are, named by pooling and module as `hftl.models.feature_model.Taps` reads them."""
    stack: list[str]
    """The model's blocks, in order."""
    classes: int
    labels: np.ndarray
    """Of train: (rows,) integers, a class each; (rows,) floats, a number each; or (rows, classes) of 0 and 1."""
    headline: str
    """The metric that `score` is of."""

    def features(self, split: str, names: list[str]) -> np.ndarray:
        """(rows, width of these features together), float32, of train or valid."""

    def score(self, head: Head) -> tuple[float, float]:
        """What valid says of a head, to be compared: the headline metric and, where that is equal, minus the loss.

        The metric is negative where less of it is better.
        """

    def note(self, sentence: str, aloud: bool = False) -> None:
        """Have the report say something, and the terminal too."""


def _descendants(cls: type[Strategy]) -> Iterator[type[Strategy]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)
