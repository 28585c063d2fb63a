"""What an augmentation is: a random change of one training row. Knows the notation; no data set, no model, no task.

An augmentation is a frozen dataclass. Compose two with `|`, and they are applied in that order:

    Sketch(p=0.5) | FDA(beta=0.01)

Subclass `Augmentation`, decorate with `@dataclass(frozen=True)`, and the notation knows it by its class name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.settings import spec

if TYPE_CHECKING:
    import numpy as np

NOUN = "augmentation"
Draw = Callable[[], Any]


@dataclass(frozen=True)
class Augmentation:
    """One way to change a training row at random. The base class changes nothing."""

    kind: ClassVar[str] = ""
    """What it changes: "image" or "text", as a `Role` has it."""
    needs_target: ClassVar[bool] = False
    """Whether it reads unlabelled rows of the target."""
    in_place: ClassVar[bool] = False
    """Whether all that is in an image stays where it is, so that a mask of it still fits."""
    rewrites: ClassVar[bool] = False
    """Whether its work is done once for each row, by `rewrite`, and then drawn from."""

    def apply(self, value: Any, rng: np.random.Generator, target: Draw | None = None) -> Any:
        """Change one value.

        Args:
            value: a PIL image in RGB, or a text.
            rng: all randomness comes from it: with an equal state, the result is equal.
            target: gives the value of a row of the target, drawn at random; where there is no target, a training text.
        """
        return value

    def rewrite(self, values: list[str]) -> list[list[str]]:
        """For each text, versions of it to draw from; only where `rewrites`."""
        raise NotImplementedError

    def release(self) -> None:
        """Where `rewrites`: all rows are rewritten; let go of what it took."""

    def identity(self) -> str:
        """Where `rewrites`: names what the versions depend on beside the fields, such as the files of a model."""
        return ""

    @property
    def chance(self) -> float:
        """Where `rewrites`: the probability that a row is replaced by one of its versions."""
        return 1.0

    @property
    def parts(self) -> tuple[Augmentation, ...]:
        """The augmentations that this one is composed of, in order."""
        return (self,)

    def __or__(self, other: Augmentation) -> Augmentation:
        return Chain(self.parts + other.parts)

    @classmethod
    def known(cls) -> dict[str, type[Augmentation]]:
        """Every augmentation that can be named in the notation, by name: each imported subclass but `Chain`."""
        return {c.__name__: c for c in _descendants(cls) if c is not Chain and not c.__name__.startswith("_")}


@dataclass(frozen=True)
class Chain(Augmentation):
    """Augmentations applied one after another; made by `|`."""

    members: tuple[Augmentation, ...] = ()

    @property
    def parts(self) -> tuple[Augmentation, ...]:
        return self.members

    def apply(self, value: Any, rng: np.random.Generator, target: Draw | None = None) -> Any:
        for part in self.members:
            value = part.apply(value, rng, target)
        return value


def known() -> dict[str, type[Augmentation]]:
    """What `--augment` may name: every class, and the plainest in lower case."""
    classes = Augmentation.known()
    return classes | {name: classes[name.capitalize()] for name in ("flip", "rotate", "shift", "scale")}


def read(text: str) -> Augmentation | None:
    """An augmentation from its notation; None for `none`.

    Raises:
        UserError: it cannot be read, or names what there is not.
    """
    if text.strip().lower() == "none":
        return None
    parts = spec.build(text, known(), NOUN)
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def augmentation_of(text: str, kind: str, target: Any = None) -> Augmentation | None:
    """The augmentation that a task of this kind of input applies; None for `none`.

    Args:
        text: the notation.
        kind: "image" or "text".
        target: unlabelled rows of the target, if there are any.

    Raises:
        UserError: as `read`; it changes something else; it needs a target and there is none; one whose work is done
            once for each row does not stand first.
    """
    found = read(text)
    for place, part in enumerate(found.parts if found else ()):
        name = type(part).__name__
        if part.kind and part.kind != kind:
            fitting = ", ".join(sorted(name for name, c in Augmentation.known().items() if c.kind in ("", kind)))
            raise UserError(f"{name} changes {part.kind}s, and this task reads {kind}s. Use one of {fitting}.")
        if part.needs_target and target is None:
            raise UserError(f"{name} reads target {kind}s. Pass --unlabelled with a folder of them.")
        if part.rewrites and place:
            raise UserError(
                f"{name} is computed once for each row, so it comes first, and once: --augment '{name}(...)'."
            )
    return found


def some(encoded: Any, most: int = 8) -> list[dict[str, Any]]:
    """Rows from all over a data set, with its columns as they are stored."""
    import numpy as np

    plain = encoded.with_format(None)
    return [plain[int(i)] for i in np.linspace(0, len(plain) - 1, min(most, len(plain)))]


def check_share(value: float, what: str) -> None:
    """Raise UserError unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{what} takes a number from 0 to 1; {value} came.")


def check_least(value: float, low: float, what: str) -> None:
    """Raise UserError where the value lies below `low`."""
    if not value >= low:
        raise UserError(f"{what} takes {low:g} or more; {value} came.")


def _descendants(cls: type[Augmentation]) -> Iterator[type[Augmentation]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)
