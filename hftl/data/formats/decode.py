"""Open and decode one image or mask: the only place that does, in bounded memory, and of known formats alone.

The scan, training, the report and predictions read pixels through `open_image` and `read_mask`, so that what the check
page says of an image is said of the pixels that the model gets.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

from PIL import Image

from hftl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FORMATS = {
    **{"JPEG": ".jpg .jpeg .jpe .jfif", "PNG": ".png .apng", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp"},
    **{"DIB": ".dib", "TIFF": ".tif .tiff", "PPM": ".ppm .pgm .pbm .pnm", "AVIF": ".avif", "QOI": ".qoi"},
    **{"JPEG2000": ".jp2 .j2k .jpx", "TGA": ".tga", "ICO": ""},  # an .ico in a folder is the folder's own icon
}
"""What is read, and the endings of such files. Pillow knows more, by content and not by name: an EPS would be handed to
Ghostscript, a program."""
ENDINGS = frozenset(" ".join(FORMATS.values()).split())
VERSION = 2
"""Part of the key of cached pixels: raise it when `as_rgb` gives others."""
LARGE = 2**24
"""Pixels of an image that is decoded alone: a process decodes several smaller ones at once."""
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, NotImplementedError),
    *(AttributeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on an image that is damaged, or made to do damage."""
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4 A
_alone = threading.Lock()


@functools.cache
def _installed() -> list[str]:
    Image.init()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of 90 to 179 million pixels, which are read alone
    return [name for name in FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def opened(value: Any) -> Iterator[Image.Image]:
    """An image whose size is known and whose pixels are not decoded yet, to be decoded inside the `with`.

    Args:
        value: a path, a file's bytes, a file in memory, `datasets`' undecoded `{"bytes", "path"}`, or a PIL image.

    Raises:
        UNREADABLE: not an image, or one of more than 179 million pixels (twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    with contextlib.ExitStack() as held:
        if isinstance(value, Image.Image):
            image = value
        else:
            file: str | PathLike[str] | io.BytesIO = io.BytesIO(value) if isinstance(value, bytes) else value
            image = held.enter_context(Image.open(file, formats=_installed()))
        if image.width * image.height > LARGE:
            held.enter_context(_alone)
        yield image


def open_image(value: Any) -> Image.Image:
    """What `opened` takes, as the model sees it: upright, RGB, on white where it is transparent.

    Raises:
        UserError: there is none to read.
    """
    with _in_words(value, "an image"), opened(value) as image:
        return as_rgb(image)


def read_mask(value: Any) -> np.ndarray:
    """(height, width) uint8 or a wider type: the number of each pixel of what `opened` takes.

    Raises:
        UserError: it cannot be read, its pixels are colours, or its format changes numbers.
    """
    with _in_words(value, "a mask"), opened(value) as image:
        return numbers(image)


@contextlib.contextmanager
def _in_words(value: Any, what: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as failure:
        name = (value.get("path") or "a row without a file name") if isinstance(value, dict) else value
        name = name if isinstance(name, str | PathLike) else f"a value of type {type(value).__name__}"
        reason = getattr(failure, "strerror", None) or failure
        raise UserError(f"Expected {what} in {name}; it cannot be read ({reason}). Correct it.") from failure


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height that `as_rgb` gives; no pixel is decoded."""
    swapped = _turn(image) in (5, 6, 7, 8) and image.format != "TIFF"  # of which Pillow has swapped them already
    return image.size[::-1] if swapped else image.size


def is_animated(image: Image.Image) -> bool:
    """Whether there are frames or pages beside the first. The second picture of a phone's JPEG is a preview."""
    try:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except UNREADABLE:
        return False


def _turn(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8. EXIF that is damaged says nothing: the pixels are whole."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except UNREADABLE:
        return 1


def as_rgb(image: Image.Image) -> Image.Image:
    """The first frame, upright, in RGB: wide numbers scaled to 0 to 255, what is transparent laid on white.

    Raises:
        UNREADABLE: damaged pixels, or numbers whose range is not known.
    """
    image.load()  # a TIFF is turned by this
    turn = _turn(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _narrow(image)
    elif image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    made = image.convert("RGB")
    if turn in _TURNS:
        made = made.transpose(Image.Transpose[_TURNS[turn]])
    made.info = {}  # what was done is not done again to an image that comes back
    return made


def _narrow(image: Image.Image) -> Image.Image:
    """Whole numbers or floats as 0 to 255; Pillow's own conversion cuts them off at 255.

    16 bits are scaled by their range. Of 32 bits the range is the first that holds all pixels: 1 (floats), 255, 65535.
    """
    import numpy as np

    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    ranges = (
        (65535,) if pixels.itemsize == 2 or image.format == "PPM" else (1, 255) if image.mode == "F" else (255, 65535)
    )
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        raise ValueError(f"its pixels go from {low:g} to {high:g}, where 0 to {ranges[-1]} is white; save it in 8 bits")
    return Image.fromarray(np.rint(pixels.astype(np.float32) * (255 / top)).astype(np.uint8))


def numbers(image: Image.Image) -> np.ndarray:
    """(height, width): the number of each pixel of a mask. Colours whose channels are equal are such numbers.

    Raises:
        ValueError: other colours, or a JPEG, whose compression changes numbers.
    """
    if image.format in ("JPEG", "MPO"):
        raise ValueError("JPEG changes the numbers of pixels; save masks as .png, from the source")
    import numpy as np

    if is_animated(image):
        raise ValueError("it has several frames or pages; save one as .png")
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        clear = pixels[..., -1] if image.mode in ("LA", "RGBA") else pixels[:0]
        pixels = pixels[..., : -1 if image.mode in ("LA", "RGBA") else None]
        if image.mode not in ("LA", "RGB", "RGBA") or (clear < 255).any() or (pixels != pixels[..., :1]).any():
            raise ValueError(f"colours ({image.mode}) instead of numbers; write the number of its class in each pixel")
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        raise ValueError("floats; save the number of a class in each pixel, as 8 bits")
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
