"""Masks, images whose pixels are classes -> rows, class names, counts of pixels. Knows files and pixels, no model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hftl.data.formats.images import ENDINGS, as_images
from hftl.data.labels import Reading
from hftl.data.scan import check_inside
from hftl.data.types import PIXELS, Masks
from hftl.errors import UserError, suggest
from hftl.paths import expanded

_SCAN = 1  # part of the cache key: raise it when what a scan finds changes
_IMAGE = datasets.Image(decode=False)
_FOLDERS = {"images": ("masks", "annotations", "labels"), "image": ("mask", "annotation", "label")}
_FOUND = datasets.Features(
    {
        "digest": datasets.Value("binary"),
        "counts": datasets.List(datasets.Value("int32")),
        "reason": datasets.Value("string"),
    }
)


@dataclass
class MaskScan:
    """What the masks of one split hold, an entry a row."""

    digest: np.ndarray  # (n, 32) uint8: sha256 of the mask's size and pixels
    counts: np.ndarray  # (n, 256) int32: pixels of each value
    reasons: dict[int, str]  # row -> why it cannot be used

    def take(self, rows: np.ndarray) -> MaskScan:
        reasons = {new: self.reasons[old] for new, old in enumerate(rows.tolist()) if old in self.reasons}
        return MaskScan(self.digest[rows], self.counts[rows], reasons)

    def of_classes(self, values: list[int]) -> np.ndarray:
        """(classes,) int64: pixels of each class."""
        return self.counts[:, values].sum(axis=0, dtype=np.int64)


# --- folders ---


def paired_folders(source: object) -> dict[str, datasets.Dataset] | None:
    """Split -> rows with the columns `image` and `mask`, of folders `images/` and `masks/` with files of like names.

    They lie in the source itself, in a folder for each split, or hold a folder for each split. None of other sources.
    """
    root = expanded(source).resolve() if isinstance(source, str | Path) and source else Path("\0")
    if "\0" in str(root) or not root.is_dir():
        return None
    pair = _pair(root)
    inner = {p.name: p for p in sorted(root.iterdir()) if p.is_dir()}
    if pair is None:
        found = {name: both for name, path in inner.items() if (both := _pair(path))}
    elif any(path.suffix.lower() in ENDINGS for path in pair[0].iterdir()):
        found = {"train": pair}
    else:
        subfolders = [p.name for p in sorted(pair[0].iterdir()) if p.is_dir() and (pair[1] / p.name).is_dir()]
        found = {name: (pair[0] / name, pair[1] / name) for name in subfolders}
    return {name: _paired(*both) for name, both in found.items()} or None


def _pair(folder: Path) -> tuple[Path, Path] | None:
    names = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    pairs = ((images, masks) for images, several in _FOLDERS.items() for masks in several)
    return next(((names[i], names[m]) for i, m in pairs if i in names and m in names), None)


def _paired(images: Path, masks: Path) -> datasets.Dataset:
    """A row for each image; an image without a mask of its name (or NAME_mask) has none."""
    of_name = {path.stem.removesuffix("_mask"): str(path) for path in _files(masks)}
    found = [(str(path), of_name.get(path.stem)) for path in _files(images)]
    cells = [
        [{"bytes": None, "path": path} if path else None for path in column] for column in zip(*found, strict=True)
    ]
    if not found:
        raise UserError(f"Expected images in {images.parent.name}/{images.name}; there are none. Add some.")
    features = datasets.Features({"image": _IMAGE, "mask": _IMAGE})
    return datasets.Dataset.from_dict({"image": cells[0], "mask": cells[1]}, features=features)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != ".")


# --- pixels ---


def mask_column(column: datasets.Dataset, name: str, root: Path | None, where: str) -> datasets.Dataset:
    """The column `label` of masks, undecoded.

    Raises:
        UserError: it holds no images and no names of files.
    """
    return as_images(column, "label", root, f"column {name!r} of {where}", "label")


def read_mask(value: Any) -> np.ndarray:
    """(height, width) uint8 or a wider type: the number of each pixel of an undecoded mask or a PIL image.

    Raises:
        ValueError: it cannot be read, or its pixels are colours.
    """
    if isinstance(value, dict):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    image = value if isinstance(value, Image.Image) else Image.open(value)
    with image:
        pixels = np.asarray(image)
        if pixels.ndim != 2 or pixels.dtype.kind == "f":
            raise ValueError(f"colours ({image.mode})")
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def scan_masks(rows: datasets.Dataset, roots: list[str] | None) -> MaskScan:
    """Read every mask once; cached as `datasets` caches.

    Args:
        rows: columns `image` and `label`, undecoded.
        roots: folders that a mask's path may lie in; None trusts every path.
    """
    found = rows.map(
        _scan,
        batched=True,
        batch_size=64,
        remove_columns=rows.column_names,
        features=_FOUND,
        fn_kwargs={"roots": roots, "version": _SCAN},
        desc="Reading masks",
    )
    n, digest, counts = len(found), [], []
    for table in found.with_format("arrow").iter(1000):
        digest += table["digest"].to_pylist()
        counts.append(table["counts"].combine_chunks().flatten().to_numpy().reshape(-1, 256))
    reasons = {i: why for i, why in enumerate(found["reason"][:]) if why}
    return MaskScan(np.frombuffer(b"".join(digest), np.uint8).reshape(n, 32), np.concatenate(counts), reasons)


def _scan(batch: dict[str, list[Any]], roots: list[str] | None, version: int) -> dict[str, list[Any]]:
    digest, counts, reason = [], [], []
    for image, mask in zip(batch["image"], batch["label"], strict=True):
        count, why, made = np.zeros(256, np.int32), "", hashlib.sha256()
        if not mask or (mask.get("bytes") is None and not mask.get("path")):
            why = "no mask"
        else:
            if mask.get("bytes") is None:
                check_inside(mask["path"], roots)
            name = f"the mask {Path(mask['path']).name}" if mask.get("path") else "a mask"
            try:
                pixels = read_mask(mask)
                why = _misfit(pixels, image, name)
                made.update(repr(pixels.shape).encode() + pixels.tobytes())
                if not why:
                    count += np.bincount(pixels.ravel(), minlength=256).astype(np.int32)
            except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as failure:
                what = f"with {failure}" if str(failure).startswith("colours") else f"that cannot be read ({failure})"
                why = f"{name} {what}, where each pixel should be the number of a class"
        digest.append(made.digest())
        counts.append(count)
        reason.append(why)
    return {"digest": digest, "counts": counts, "reason": reason}


def _misfit(pixels: np.ndarray, image: Any, name: str) -> str:
    """Why a mask does not fit its image; "" where it does, and where the image is missing."""
    if pixels.size and (pixels.max() > 255 or pixels.min() < 0):
        return f"{name} with the value {int(pixels.max() if pixels.max() > 255 else pixels.min())}, past 0 to 255"
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]) as opened:
            turned = opened.getexif().get(0x0112, 1) >= 5  # the image will be read upright
            width, height = opened.size[::-1] if turned else opened.size
    except (OSError, SyntaxError, ValueError, AttributeError, TypeError):
        return ""  # the scan of images has words for it
    if pixels.shape != (height, width):
        return f"{name} of {pixels.shape[1]}x{pixels.shape[0]} pixels for an image of {width}x{height}"
    return ""


# --- classes ---


def read_classes(masks: Masks, train: MaskScan, where: str) -> Reading:
    """The classes: those of the file of names, in its order, or else the values found in train.

    Raises:
        UserError: fewer than two classes, a file that does not read, or a name that is there twice.
    """
    present = np.flatnonzero(train.counts.sum(axis=0, dtype=np.int64)).tolist()
    named = names_in(masks.classes) if masks.classes else {value: str(value) for value in present}
    kept = {value: name for value, name in sorted(named.items()) if value not in masks.ignored}
    if len(set(kept.values())) < len(kept):
        twice = next(name for name in kept.values() if list(kept.values()).count(name) > 1)
        raise UserError(f"Expected each name once in {masks.classes}; {twice!r} comes more than once. Correct it.")
    if len(kept) < 2:
        held = ", ".join(map(str, present[:8])) or "nothing"
        raise UserError(
            f"Expected two classes or more in {where}; its pixels have {held}, of which "
            f"{', '.join(map(str, masks.ignored)) or 'none'} is ignored. Pass --ignored VALUE."
        )
    return Reading(PIXELS, list(kept.values()), values=tuple(kept))


def find_strangers(found: MaskScan, reading: Reading, masks: Masks) -> None:
    """Note for each row a value that is no class, and a mask of ignored pixels alone."""
    known = np.zeros(256, bool)
    known[list(reading.values)] = True
    other = ~known
    other[[value for value in masks.ignored if value < 256]] = False
    for row in np.flatnonzero(found.counts[:, other].any(axis=1)).tolist():
        value = int(np.flatnonzero(found.counts[row] * other)[0])
        classes = f"the {len(reading.names)} classes" + (f" of {Path(masks.classes).name}" if masks.classes else "")
        hint = "" if masks.classes else " (as train has them)"
        found.reasons.setdefault(row, f"a mask with the value {value}, which is none of {classes}{hint} nor ignored")
    for row in np.flatnonzero(~found.counts[:, known].any(axis=1)).tolist():
        found.reasons.setdefault(row, "a mask of ignored pixels alone")


def names_in(file: str) -> dict[int, str]:
    """Pixel value -> class name: a text with a name a line, or JSON with a list or `{"0": "sky", ...}`.

    JSON may hold either under `id2label`, `label_names` or `names`, beside other things.
    """
    path = expanded(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except OSError as failure:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"--classes {file} cannot be read: {failure.strerror}.{suggest(path.name, near) or ' Check the path.'}"
        ) from failure
    except ValueError as failure:
        raise UserError(f"--classes {file} is neither text nor JSON: {failure}. Write a name a line.") from failure
    if isinstance(found, dict):
        found = next((found[key] for key in ("id2label", "label_names", "names") if key in found), found)
    pairs = dict(_numbered(found))
    if not pairs or min(pairs) < 0 or max(pairs) > 255:
        raise UserError(
            f'Expected a name a line in {file}, or JSON like ["sky", "road"] or {{"0": "sky"}}. Correct it.'
        )
    return pairs


def _numbered(found: Any) -> Iterator[tuple[int, str]]:
    if isinstance(found, list):
        yield from ((i, name) for i, name in enumerate(found) if isinstance(name, str) and name)
    elif isinstance(found, dict) and all(str(key).isdigit() for key in found):
        yield from ((int(key), str(name)) for key, name in found.items())
