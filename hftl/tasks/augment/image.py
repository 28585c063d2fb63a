"""Augmentations of images: those that make a source look like a target, and those that make a model robust.

Knows PIL images and draws at random; the arithmetic is in `hftl.tasks.augment.pixels`, or in torchvision.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hftl.errors import UserError
from hftl.tasks.augment.base import Augmentation, Draw, check_least, check_share

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class Sketch(Augmentation):
    """Photographs to drawings, for a target of sketches: dark lines on white.

    `style` "pencil" divides gray by its blur of `radius` pixels (the colour dodge of an inverted copy); "edges" draws
    the slope of gray. p is the probability for each image.
    """

    kind: ClassVar[str] = "image"
    in_place: ClassVar[bool] = True

    p: float = 0.5
    radius: float = 5.0
    style: Literal["pencil", "edges"] = "pencil"

    def __post_init__(self) -> None:
        check_share(self.p, "Sketch(p)")
        check_least(self.radius, 0, "Sketch(radius)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        from hftl.tasks.augment import pixels

        if rng.random() >= self.p:
            return value
        return pixels.to_image(pixels.edges(value) if self.style == "edges" else pixels.pencil(value, self.radius))


@dataclass(frozen=True)
class FDA(Augmentation):
    """The low frequencies' amplitude from a random target image (Yang & Soatto 2020, arXiv 2004.05498).

    Light, colour and haze become the target's; shapes, which are in the phase, stay. `beta` is the half side of the
    window over min(height, width): 0.01 to 0.09 in the paper. The target image is resized to the image's size.
    """

    kind: ClassVar[str] = "image"
    in_place: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True

    beta: float = 0.01
    p: float = 1.0

    def __post_init__(self) -> None:
        check_share(self.p, "FDA(p)")
        if not 0 <= self.beta <= 0.5:
            raise UserError(f"FDA(beta) takes a number from 0 to 0.5; {self.beta} came. Try FDA(beta=0.01).")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        from hftl.tasks.augment import pixels

        if rng.random() >= self.p:
            return value
        other = pixels.to_array(_drawn(target).resize(value.size))
        return pixels.to_image(pixels.fda(pixels.to_array(value), other, self.beta))


@dataclass(frozen=True)
class HistogramMatch(Augmentation):
    """Each channel's histogram from a random target image (Gonzalez & Woods, Digital Image Processing, 3.3)."""

    kind: ClassVar[str] = "image"
    in_place: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True

    p: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.p, "HistogramMatch(p)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        import numpy as np

        from hftl.tasks.augment import pixels

        if rng.random() >= self.p:
            return value
        return pixels.to_image(pixels.histogram_match(np.asarray(value), np.asarray(_drawn(target))))


@dataclass(frozen=True)
class ColorStats(Augmentation):
    """Mean and standard deviation of each colour channel from a random target image (Reinhard et al. 2001).

    `space` "lab" is the paper's l alpha beta, or "rgb".
    """

    kind: ClassVar[str] = "image"
    in_place: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True

    p: float = 0.5
    space: Literal["lab", "rgb"] = "lab"

    def __post_init__(self) -> None:
        check_share(self.p, "ColorStats(p)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        from hftl.tasks.augment import pixels

        if rng.random() >= self.p:
            return value
        other = pixels.to_array(_drawn(target))
        return pixels.to_image(pixels.color_stats(pixels.to_array(value), other, self.space))


@dataclass(frozen=True)
class AugMix(Augmentation):
    """`width` chains of up to `depth` operations mixed with the image (Hendrycks et al. 2020, arXiv 1912.02781).

    `severity` is the strength of an operation from 1 to 10; depth -1 draws 1 to 3 for each chain; alpha is of the
    Dirichlet and Beta distributions of the mixture. torchvision's AugMix.
    """

    kind: ClassVar[str] = "image"

    severity: int = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.severity <= 10:
            raise UserError(f"AugMix(severity) takes a whole number from 1 to 10; {self.severity} came.")
        check_least(self.width, 1, "AugMix(width)")
        if self.alpha <= 0:
            raise UserError(f"AugMix(alpha) takes a number above 0; {self.alpha} came.")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        settings = {"severity": self.severity, "mixture_width": self.width}
        return _transformed(value, rng, "AugMix", chain_depth=self.depth, alpha=self.alpha, **settings)


@dataclass(frozen=True)
class RandAugment(Augmentation):
    """n random operations of one magnitude from 0 to 30 (Cubuk et al. 2020, arXiv 1909.13719). torchvision's."""

    kind: ClassVar[str] = "image"

    n: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_least(self.n, 0, "RandAugment(n)")
        if not 0 <= self.magnitude <= 30:
            raise UserError(f"RandAugment(magnitude) takes a whole number from 0 to 30; {self.magnitude} came.")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        return _transformed(value, rng, "RandAugment", num_ops=self.n, magnitude=self.magnitude)


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrored left to right, with probability p. torchvision's, as the next three."""

    kind: ClassVar[str] = "image"

    p: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.p, "Flip(p)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        return _transformed(value, rng, "RandomHorizontalFlip", p=self.p)


@dataclass(frozen=True)
class Rotate(Augmentation):
    """Rotated by an angle of up to `degrees` to either side."""

    kind: ClassVar[str] = "image"

    degrees: float = 10.0

    def __post_init__(self) -> None:
        check_least(self.degrees, 0, "Rotate(degrees)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        return _transformed(value, rng, "RandomAffine", degrees=self.degrees)


@dataclass(frozen=True)
class Shift(Augmentation):
    """Moved by up to a `share` of width and height, each to either side."""

    kind: ClassVar[str] = "image"

    share: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.share, "Shift(share)")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        return _transformed(value, rng, "RandomAffine", degrees=0, translate=(self.share, self.share))


@dataclass(frozen=True)
class Scale(Augmentation):
    """Enlarged or made smaller by up to a `share`, around the centre."""

    kind: ClassVar[str] = "image"

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"Scale(share) takes a number from 0 to below 1; {self.share} came.")

    def apply(self, value: Image, rng: np.random.Generator, target: Draw | None = None) -> Image:
        return _transformed(value, rng, "RandomAffine", degrees=0, scale=(1 - self.share, 1 + self.share))


def _drawn(target: Draw | None) -> Any:
    if target is None:
        raise UserError("This augmentation reads target images, and none were given.")
    return target()


def _transformed(image: Image, rng: np.random.Generator, name: str, **settings: Any) -> Image:
    """One of torchvision's transforms, whose randomness is torch's: it is made to follow `rng`."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return _transform(name, **settings)(image)


@functools.cache
def _transform(name: str, **settings: Any) -> Any:
    from torchvision.transforms import v2

    return getattr(v2, name)(**settings)
