"""Find and count masks: images whose pixels are numbers of classes."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hftl.data.formats.decode import UNREADABLE, numbers, opened, upright_size
from hftl.data.formats.images import IMAGE, files_under, folders_in, images_under, unread
from hftl.data.scan import check_inside
from hftl.data.source import Opened, open_source
from hftl.data.types import split_of
from hftl.errors import UserError
from hftl.paths import expanded

_SCAN = 2  # part of the cache key: raise it when what a scan finds changes
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

    @property
    def present(self) -> list[int]:
        """The values that some pixel has."""
        return self.pixels["counts"].sum(axis=0, dtype="int64").nonzero()[0].tolist()


# --- folders ---


def paired_folders(source: object) -> Opened | None:
    """Rows with the columns `image` and `mask`, of folders `images/` and `masks/` with files of like names.

    They lie in the source itself, in a folder for each split, or hold a folder for each split. None of other sources.
    """
    root = expanded(source).resolve() if isinstance(source, str | Path) and source else Path("\0")
    if "\0" in str(root) or not root.is_dir():
        return None
    pair = _pair(root)
    inner = {path.name: path for path in folders_in(root)}
    if pair is None:
        found = {name: both for name, path in inner.items() if (both := _pair(path))}
        if len(found) == 1 and not split_of(*found):
            found = {"train": found.popitem()[1]}
    else:
        names = [path.name for path in folders_in(pair[0]) if split_of(path.name) and (pair[1] / path.name).is_dir()]
        splits = {name: (pair[0] / name, pair[1] / name) for name in names}
        found = splits if "train" in map(split_of, splits) else {"train": pair}
    if not found:
        return paired_folders(*inner.values()) if len(inner) == 1 else None  # as archives unpack: camvid/camvid/images
    made = {name: _paired(*both) for name, both in found.items()}
    opened = open_source({name: rows for name, (rows, _) in made.items()})
    for split, raw in opened.splits.items():
        raw.name = f"{root.name} ({split})" if len(made) > 1 else root.name
    return replace(opened, name=str(source), unread=[sentence for _, said in made.values() for sentence in said])


def _pair(folder: Path) -> tuple[Path, Path] | None:
    names = {path.name.lower(): path for path in folders_in(folder)}
    pairs = ((images, masks) for images, several in _FOLDERS.items() for masks in several)
    return next(((names[i], names[m]) for i, m in pairs if i in names and m in names), None)


def _paired(images: Path, masks: Path) -> tuple[datasets.Dataset, list[str]]:
    """A row for each image, and words on the files that are in none; an image without a mask of its name has none.

    Names are alike but for what all of a folder begin or end with: 0001.jpg and 0001_mask.png, a_leftImg8bit.png and
    a_gtFine_labelIds.png.
    """
    found = list(images_under(images))
    if not found:
        raise UserError(f"Expected images in {images.parent.name}/{images.name}; there are none. Add some.")
    of_name = {_key(path, masks): str(path) for path in images_under(masks)}
    keys = [_key(path, images) for path in found]
    if not all(key in of_name for key in keys):
        of_name = _renamed(keys, of_name)
    pairs = [(str(path), of_name.get(key)) for path, key in zip(found, keys, strict=True)]
    columns: dict[str, list[str | None]] = {"image": [image for image, _ in pairs], "mask": [mask for _, mask in pairs]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, IMAGE)))
    files = itertools.chain(files_under(images), files_under(masks))
    used = {name for pair in pairs for name in pair if name}
    return rows, unread(files, used, "mask(s) without an image")


def _key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _renamed(keys: list[str], of_name: dict[str, str]) -> dict[str, str]:
    """Masks by the names of images, with what most have before and after: `0001` -> `0001_mask`, `0001_L`, `seg_0001`.

    What all images' names begin or end with (`img_0001`, `a_leftImg8bit`) may be missing in those of masks.
    """
    lead, tail = (_alike(keys), _alike([key[::-1] for key in keys])[::-1]) if len(keys) > 1 else ("", "")
    best: dict[str, str] = {}
    for start, end in itertools.product({"", lead}, {"", tail}):
        stems = [key.removeprefix(start).removesuffix(end) for key in keys]
        sample = sorted(stems, key=len)[-8:]  # those that are least likely in another's name
        for head, _, rest in {name.partition(stem) for stem in sample for name in of_name if stem and stem in name}:
            names = {key: f"{head}{stem}{rest}" for key, stem in zip(keys, stems, strict=True)}
            best = max(best, {key: of_name[name] for key, name in names.items() if name in of_name}, key=len)
    return best


def _alike(keys: list[str]) -> str:
    """What all begin with, but for digits, which are a part of what differs."""
    alike = itertools.takewhile(lambda marks: len(set(marks)) == 1, zip(*keys, strict=False))
    return "".join(marks[0] for marks in alike).strip("0123456789")


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
                why = _misfit(pixels, image, name, roots)
                made.update(repr(pixels.shape).encode() + pixels.tobytes())
                if not why:
                    count += np.bincount(pixels.ravel(), minlength=256).astype(np.int32)
            except IsADirectoryError:
                why = "the name of a class, where each image needs a mask: lay them out as images/ and masks/"
            except UNREADABLE as failure:
                why = f"{name} that cannot be read as numbers of classes ({failure})"
        digest.append(made.digest())
        counts.append(count)
        reason.append(why)
    return {"digest": digest, "counts": counts, "reason": reason}


def _misfit(pixels: np.ndarray, image: Any, name: str, roots: list[str] | None) -> str:
    """Why a mask does not fit its image; "" where it does, and where the image is missing."""
    if pixels.size and (pixels.max() > 255 or pixels.min() < 0):
        return f"{name} with the value {int(pixels.max() if pixels.max() > 255 else pixels.min())}, past 0 to 255"
    try:
        if image.get("bytes") is None:
            check_inside(image["path"], roots)
        with opened(image) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return ""  # the scan of images has words for it
    if pixels.shape != (height, width):
        return f"{name} of {pixels.shape[1]}x{pixels.shape[0]} pixels for an image of {width}x{height}"
    return ""
