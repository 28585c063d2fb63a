"""Strategies that say how fast each layer learns. Each is a function of a parameter's place and the run's progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hftl.errors import UserError
from hftl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn

    from hftl.models.anatomy import Anatomy, Place


@dataclass(frozen=True)
class Full(Strategy):
    """Every weight trains at the same rate."""


@dataclass(frozen=True)
class Scratch(Strategy):
    """Every weight starts at random and trains: the baseline that a transfer must beat."""

    random_start: ClassVar[bool] = True

    @property
    def lr(self) -> float:
        return 3e-4

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        if hasattr(model, "peft_config"):
            raise UserError(
                "Scratch throws away the weights that an adapter before it was made for. Drop one of the two."
            )
        if any(module._forward_hooks for module in model.modules()):
            raise UserError("Scratch makes a new model, which loses what a strategy before it did. Put Scratch first.")
        return type(model)(model.config)


@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Only the fresh head trains, on frozen features (Alain & Bengio 2016, arXiv 1610.01644)."""

    @property
    def lr(self) -> float:
        return 1e-2

    def rate(self, place: Place, progress: float) -> float:
        return float(place.fresh)


@dataclass(frozen=True)
class LastLayers(Strategy):
    """The last k blocks and what follows them train; the rest is frozen."""

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UserError(f"LastLayers(k) takes a whole number of 0 or more; {self.k} came.")

    def rate(self, place: Place, progress: float) -> float:
        return float(place.depth >= place.top - self.k)


@dataclass(frozen=True)
class LayerDecay(Strategy):
    """Each block learns `decay` times as fast as the one above it (Clark 2020, ELECTRA; Bao 2021, BEiT)."""

    decay: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise UserError(f"LayerDecay(decay) takes a number in (0, 1]; {self.decay} came. Try LayerDecay(0.75).")

    def rate(self, place: Place, progress: float) -> float:
        return self.decay ** (place.top - place.depth)


@dataclass(frozen=True)
class LayerRates(Strategy):
    """Three learning rates, for the first, the middle and the last third of the blocks; stem is early, head is late.

    The rates are absolute: `late` takes the place of --learning_rate, or is scaled with it where both are given.
    """

    early: float = 1e-5
    middle: float = 1e-4
    late: float = 1e-3

    def __post_init__(self) -> None:
        if min(self.early, self.middle) < 0 or self.late <= 0:
            raise UserError("LayerRates(early, middle, late) takes rates of 0 or more, and late above 0.")

    @property
    def lr(self) -> float:
        return self.late

    def rate(self, place: Place, progress: float) -> float:
        if place.depth == place.top:
            return 1.0
        third = 3 * max(place.depth - 1, 0) // (place.top - 1)
        return (self.early, self.middle, self.late)[third] / self.late


@dataclass(frozen=True)
class GradualUnfreeze(Strategy):
    """Layers join from the top down, evenly spread over the first `until` of the run (Howard & Ruder 2018, ULMFiT)."""

    until: float = 0.5

    def __post_init__(self) -> None:
        _share(self.until, "GradualUnfreeze(until)")

    def rate(self, place: Place, progress: float) -> float:
        return float(place.fresh or progress >= self.until * (place.top - place.depth) / place.top)


@dataclass(frozen=True)
class ProbeThenTune(Strategy):
    """LP-FT: first the fresh head alone, `boost` times as fast, then everything (Kumar 2022, arXiv 2202.10054)."""

    probe: float = 0.3
    boost: float = 50.0

    def __post_init__(self) -> None:
        _share(self.probe, "ProbeThenTune(probe)")

    def rate(self, place: Place, progress: float) -> float:
        if progress < self.probe:
            return self.boost * place.fresh
        return 1.0


@dataclass(frozen=True)
class BitFit(Strategy):
    """Only biases and the fresh head train (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    @property
    def lr(self) -> float:
        return 1e-3

    def rate(self, place: Place, progress: float) -> float:
        return float(place.fresh or place.name.rsplit(".", 1)[-1] == "bias")


def _share(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise UserError(f"{what} is a share of the run between 0 and 1; {value} came.")
