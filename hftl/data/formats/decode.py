"""Decode one image to pixels: in bounded memory, and of known formats alone."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from os import PathLike

from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "QOI")
"""What is read. Pillow knows more, by content and not by name: an EPS would be handed to Ghostscript, a program."""
LARGE = 2**24
"""Pixels of an image that is decoded alone: a process decodes several smaller ones at once."""
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, NotImplementedError),
    *(AttributeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on an image that is damaged, or made to do damage."""
_alone = threading.Lock()


@functools.cache
def _installed() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def opened(file: str | PathLike[str] | io.BytesIO) -> Iterator[Image.Image]:
    """An image whose size is known and whose pixels are not decoded yet, to be decoded inside the `with`.

    Raises:
        UNREADABLE: not an image, or one of more than 179 million pixels (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    with contextlib.ExitStack() as held:
        image = held.enter_context(Image.open(file, formats=_installed()))
        if image.width * image.height > LARGE:
            held.enter_context(_alone)
        yield image
