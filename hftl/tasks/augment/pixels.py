"""The arithmetic of image augmentations, on arrays. Knows numpy; no randomness, no files.

An image is an array of shape (height, width, 3) with values from 0 to 255; results are floats, neither cut to that
range nor rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

Pixels = np.ndarray[Any, np.dtype[Any]]

LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""RGB to the responses of the eye's cones (Reinhard et al. 2001, eq. 4)."""
OPPONENT = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
"""log LMS to l alpha beta (eq. 6)."""


def to_array(image: Image.Image) -> Pixels:
    """A PIL image in RGB as (height, width, 3) floats."""
    return np.asarray(image, dtype=np.float64)


def to_image(pixels: Pixels) -> Image.Image:
    """Values cut to 0 .. 255 and rounded, as a PIL image."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def fda(image: Pixels, target: Pixels, beta: float) -> Pixels:
    """`image` with the low-frequency amplitude of `target`, which has the same shape (Yang & Soatto 2020, eq. 3).

    The window reaches b = floor(beta * min(height, width)) to each side of frequency 0, which is always in it: with
    b = 0 the mean colour alone is the target's. `beta` = 0 swaps nothing.
    """
    if beta == 0:
        return image
    height, width = image.shape[:2]
    b = int(np.floor(beta * min(height, width)))
    spectrum, other = (np.fft.rfft2(each, axes=(0, 1)) for each in (image, target))  # the other half mirrors this one
    low = np.ix_(np.abs(np.fft.fftfreq(height, 1 / height)) <= b, np.arange(width // 2 + 1) <= b)
    spectrum[low] = np.abs(other[low]) * np.exp(1j * np.angle(spectrum[low]))
    return np.fft.irfft2(spectrum, (height, width), axes=(0, 1))


def histogram_match(image: Pixels, target: Pixels) -> Pixels:
    """`image` with each channel's values moved to the quantiles of `target`, of any size (Gonzalez & Woods, 3.3).

    Both hold whole numbers, as uint8.
    """
    made = np.empty(image.shape, dtype=np.float64)
    for channel in range(image.shape[2]):
        counts, wanted = (np.bincount(each[..., channel].ravel(), minlength=256) for each in (image, target))
        there = np.flatnonzero(wanted)
        below = np.cumsum(counts) / counts.sum()
        moved = np.interp(below, np.cumsum(wanted[there]) / wanted.sum(), there)
        made[..., channel] = moved[image[..., channel]]
    return made


def color_stats(image: Pixels, target: Pixels, space: str = "lab") -> Pixels:
    """`image` with each channel's mean and standard deviation those of `target`, of any size (Reinhard et al. 2001).

    Args:
        space: "lab" for the paper's l alpha beta, whose channels are nearly independent in natural images, or "rgb".
    """
    one, other = (to_lab(image), to_lab(target)) if space == "lab" else (image, target)
    mean, spread = one.mean((0, 1)), one.std((0, 1))
    scale = np.where(spread > 1e-9, other.std((0, 1)) / np.maximum(spread, 1e-9), 0.0)  # a flat channel stays flat
    moved = (one - mean) * scale + other.mean((0, 1))
    return from_lab(moved) if space == "lab" else moved


def to_lab(image: Pixels) -> Pixels:
    """RGB in 0 .. 255 to l alpha beta, with natural logarithms; black counts as 1, because it has no logarithm."""
    return np.log(np.maximum(image, 1.0) / 255 @ LMS.T) @ OPPONENT.T


def from_lab(lab: Pixels) -> Pixels:
    """The inverse of `to_lab`."""
    return 255 * np.exp(lab @ np.linalg.inv(OPPONENT).T) @ np.linalg.inv(LMS).T


def pencil(image: Image.Image, radius: float) -> Pixels:
    """Gray divided by its Gaussian blur, which is the colour dodge of an inverted, blurred copy: lines on white."""
    gray = image.convert("L")
    blurred = np.asarray(gray.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64)
    lines = np.asarray(gray, dtype=np.float64) / np.maximum(blurred, 1e-9)
    lines[blurred == 0] = 1.0  # all black around: nothing to draw
    return np.repeat(255 * np.minimum(lines, 1.0)[..., None], 3, axis=2)


def edges(image: Image.Image) -> Pixels:
    """255 less the slope of gray, in steps a pixel: dark edges on white. An image of one pixel's width has no slope."""
    gray = np.asarray(image.convert("L"), dtype=np.float64)
    slopes = [np.gradient(gray, axis=axis) for axis in (0, 1) if gray.shape[axis] > 1]
    slope = np.sqrt(sum((s**2 for s in slopes), np.zeros_like(gray)))
    return np.repeat(255 - np.minimum(2 * slope, 255)[..., None], 3, axis=2)
