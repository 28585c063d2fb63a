"""Scan the inputs of all rows once: whether each is readable, its size, its sha256 and what the model sees of it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from PIL import UnidentifiedImageError

from hftl.data.formats.decode import LARGE, UNREADABLE, as_rgb, is_animated, opened
from hftl.errors import UserError

_SCAN = 5  # part of the cache key: raise it when what a scan finds changes
_BATCH = 10_000
_SIZES = ("words", "width", "height")
_FLAGS = ("animated", "blank", "dark")
_FOUND = {"digest": "binary", "seen": "binary", "mode": "string", "reason": "string"}
_FOUND |= dict.fromkeys(_SIZES, "int32") | dict.fromkeys(_FLAGS, "bool")
_ROW = np.dtype(
    [
        *(("digest", np.uint8, 32), ("seen", np.uint8, 8), ("mode", "S6")),
        *((name, np.int32) for name in _SIZES),
        *((name, bool) for name in _FLAGS),
    ]
)
_LEAST = 256
"""Pixels of a side that are looked at: a larger JPEG is read at a half, quarter or eighth, several times as fast."""
DARK = 64
"""A brightest pixel below it, of 255, is a range of numbers that is not made use of."""


@dataclass
class Scan:
    """One entry per row, about 70 bytes each.

    `rows` has the fields `digest` (sha256 of the texts and the images' files), `seen` (a hash of texts and pixels, as
    the model gets them), `words` (of all its texts), `width` and `height` (pixels; 0 without an image), `mode` (PIL's
    name of the pixel format), `animated` (it has more than one frame), `blank` (every pixel is the same) and `dark`
    (none is brighter than a quarter of white).
    """

    rows: np.ndarray  # (n,)
    reasons: dict[int, str]  # row -> why it cannot be used

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64: equal for equal rows; two different rows in a million collide with a chance of 3e-8."""
        return np.ascontiguousarray(self.rows["seen"]).view(np.int64).reshape(-1)

    def take(self, rows: np.ndarray) -> Scan:
        there = enumerate(rows.tolist()) if self.reasons else ()
        return Scan(self.rows[rows], {new: self.reasons[old] for new, old in there if old in self.reasons})


def scan(rows: datasets.Dataset, kinds: dict[str, str], roots: list[str] | None) -> Scan:
    """Read every input of every row once.

    Args:
        rows: one column per input role.
        kinds: role -> "text", "words" or "image".
        roots: folders that an image's path may lie in; None trusts every path.
    """
    found = rows.map(
        _scan,
        batched=True,
        batch_size=64 if "image" in kinds.values() else 1000,
        remove_columns=rows.column_names,
        features=datasets.Features({name: datasets.Value(kind) for name, kind in _FOUND.items()}),
        fn_kwargs={"kinds": kinds, "roots": roots, "version": _SCAN},
        desc="Checking rows",
    )
    made, reasons, start = np.zeros(len(found), _ROW), dict[int, str](), 0
    for table in found.with_format("arrow").iter(_BATCH):
        here = made[start : start + len(table)]
        for name in (*_SIZES, *_FLAGS):
            here[name] = table[name].to_numpy()
        for name in ("digest", "seen"):
            here[name] = np.frombuffer(b"".join(table[name].to_pylist()), np.uint8).reshape(len(table), -1)
        here["mode"] = table["mode"].to_pylist()
        reasons |= {start + i: why for i, why in enumerate(table["reason"].to_pylist()) if why}
        start += len(table)
    return Scan(made, reasons)


def _scan(
    batch: dict[str, list[Any]], kinds: dict[str, str], roots: list[str] | None, version: int
) -> dict[str, list[Any]]:
    n = len(next(iter(batch.values())))
    sums, seen = [hashlib.sha256() for _ in range(n)], [hashlib.blake2b(digest_size=8) for _ in range(n)]
    words, reason, images = [0] * n, [""] * n, [_Seen() for _ in range(n)]
    for role, kind in kinds.items():
        if kind in ("text", "words"):
            for i, cell in enumerate(batch[role]):
                text = cell if kind == "text" else "\n".join(word or "" for word in cell or [])
                raw = (text or "").encode()
                sums[i].update(len(raw).to_bytes(8, "little") + raw)
                seen[i].update(len(raw).to_bytes(8, "little") + raw)
                words[i] += _count(raw)
                if not text or text.isspace():
                    reason[i] = reason[i] or f"an empty {role}"
                elif kind == "words" and None in cell:
                    reason[i] = reason[i] or f"a null among its {role}"
        else:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # PIL decodes outside Python's lock
                images = list(pool.map(functools.partial(_look, roots=roots), batch[role]))
            for i, image in enumerate(images):
                sums[i].update(image.digest)
                seen[i].update(image.pixels)
                reason[i] = reason[i] or image.reason
    made = {name: [getattr(one, name) for one in images] for name in ("width", "height", "mode", *_FLAGS)}
    hashes = {"digest": [one.digest() for one in sums], "seen": [one.digest() for one in seen]}
    return made | hashes | {"words": words, "reason": reason}


def _count(text: bytes) -> int:
    """Words between white space; a long text is not split into a list, which takes twenty times its memory."""
    return len(text.split()) if len(text) < 2**20 else sum(1 for _ in re.finditer(rb"\S+", text))


@dataclass
class _Seen:
    digest: bytes = b""
    pixels: bytes = b""
    width: int = 0
    height: int = 0
    mode: str = ""
    animated: bool = False
    blank: bool = False
    dark: bool = False
    reason: str = ""


def _look(cell: dict[str, Any] | None, roots: list[str] | None) -> _Seen:
    if not cell or (cell.get("bytes") is None and not cell.get("path")):
        return _Seen(reason="no image")
    name = cell.get("path") or ""
    raw = cell.get("bytes")
    if raw is None:
        check_inside(name, roots)
        try:
            raw = Path(name).read_bytes()
        except OSError as error:
            return _Seen(reason=f"the unreadable image {_short(name, roots)} ({error.strerror or error})")
    seen = _Seen(hashlib.sha256(raw).digest())
    seen.pixels = seen.digest  # of what cannot be decoded
    why = _decode(raw, seen)
    if why:
        seen.reason = " ".join(f"the unreadable image {_short(name, roots)} ({why})".split())
    return seen


def _decode(raw: bytes, seen: _Seen) -> str:
    """Fill in what the pixels say; return why the image cannot be decoded, or ""."""
    if not raw:
        return "the file is empty"
    try:
        with opened(raw) as image:
            (seen.width, seen.height), seen.mode = image.size, image.mode
            image.draft("RGB", (_LEAST, _LEAST))
            seen.animated = is_animated(image)
            if image.width * image.height > LARGE and image.mode in ("L", "RGB", "RGBA", "CMYK"):
                image = image.reduce(8)  # a copy of all would be as much memory again
            pixels = as_rgb(image)
        ranges: Any = pixels.getextrema()
        seen.blank, seen.dark = all(low == high for low, high in ranges), max(high for _, high in ranges) < DARK
        size = repr(pixels.size).encode()
        seen.pixels = hashlib.blake2b(size + pixels.tobytes(), digest_size=16).digest()
    except UnidentifiedImageError:
        return "not an image"
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    return ""


def check_inside(name: str, roots: list[str] | None) -> None:
    """Raise `UserError` for a path that data brought along and that leads out of the folders it may name."""
    if roots is None:
        return
    path = os.path.normpath(name)
    if not any(path.startswith(os.path.join(root, "")) for root in roots):
        raise UserError(f"Expected images inside the folder of the data; a row names {name!r}. Move it there.")


def check_paths(rows: datasets.Dataset, columns: list[str], roots: list[str] | None) -> None:
    """`check_inside` for every image that lies in a file, without reading one."""
    for column in columns if roots is not None else []:
        for table in rows.select_columns([column]).with_format("arrow").iter(100):  # whose bytes stay on the disk
            for cells in table.column(0).chunks:
                within = pc.is_null(cells.field("bytes"))
                for name in cells.field("path").filter(within).to_pylist():
                    if name:
                        check_inside(name, roots)


def _short(name: str, roots: list[str] | None) -> str:
    for root in roots or []:
        if name.startswith(os.path.join(root, "")):
            return os.path.relpath(name, root)
    return name
