"""Find and count masks: images whose pixels are numbers of classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hftl.data.formats.decode import UNREADABLE, numbers, opened, upright_size
from hftl.data.formats.images import ENDINGS
from hftl.data.scan import check_inside
from hftl.errors import UserError
from hftl.paths import expanded

_SCAN = 2  # part of the cache key: raise it when what a scan finds changes
_IMAGE = datasets.Image(decode=False)
_FOLDERS = {"images": ("masks", "annotations", "labels"), "image": ("mask", "annotation", "label")}
_COUNTS = datasets.List(datasets.Value("int32"))
_FOUND = datasets.Features({"digest": datasets.Value("binary"), "counts": _COUNTS, "reason": datasets.Value("string")})
_PIXELS = np.dtype([("digest", np.uint8, 32), ("counts", np.int32, 256)])


@dataclass
class MaskScan:
    """What the masks of one split hold."""

    where: str  # names the masks in errors
    pixels: np.ndarray  # (n,) of `digest` (sha256 of a mask's size and pixels) and `counts` (int32[256], of each value)
    reasons: dict[int, str]  # row -> why its mask cannot be used

    def unlabelled(self, train: MaskScan) -> bool:
        return False


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
    found = _files(images)
    if not found:
        raise UserError(f"Expected images in {images.parent.name}/{images.name}; there are none. Add some.")
    columns = {"image": [str(path) for path in found], "mask": [of_name.get(path.stem) for path in found]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, _IMAGE)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != ".")


# --- pixels ---


def scan_masks(rows: datasets.Dataset, roots: list[str] | None, where: str) -> MaskScan:
    """Read every mask once; cached as `datasets` caches.

    Args:
        rows: columns `image` and `label`, undecoded.
        roots: folders that a mask's path may lie in; None trusts every path.
        where: names the masks in errors.
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
    pixels, start = np.zeros(len(found), _PIXELS), 0
    for table in found.with_format("arrow").iter(1000):
        here = pixels[start : start + len(table)]
        here["digest"] = np.frombuffer(b"".join(table["digest"].to_pylist()), np.uint8).reshape(-1, 32)
        here["counts"] = table["counts"].combine_chunks().flatten().to_numpy().reshape(-1, 256)
        start += len(table)
    return MaskScan(where, pixels, {i: why for i, why in enumerate(found["reason"][:]) if why})


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
                with opened(mask) as picture:
                    pixels = numbers(picture)
                why = _misfit(pixels, image, name)
                made.update(repr(pixels.shape).encode() + pixels.tobytes())
                if not why:
                    count += np.bincount(pixels.ravel(), minlength=256).astype(np.int32)
            except UNREADABLE as failure:
                why = f"{name} that cannot be read as numbers of classes ({failure})"
        digest.append(made.digest())
        counts.append(count)
        reason.append(why)
    return {"digest": digest, "counts": counts, "reason": reason}


def _misfit(pixels: np.ndarray, image: Any, name: str) -> str:
    """Why a mask does not fit its image; "" where it does, and where the image is missing."""
    if pixels.size and (pixels.max() > 255 or pixels.min() < 0):
        return f"{name} with the value {int(pixels.max() if pixels.max() > 255 else pixels.min())}, past 0 to 255"
    try:
        with opened(image) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return ""  # the scan of images has words for it
    if pixels.shape != (height, width):
        return f"{name} of {pixels.shape[1]}x{pixels.shape[0]} pixels for an image of {width}x{height}"
    return ""
