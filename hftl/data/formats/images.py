"""Read folders of images as rows, by the names of files; no pixel is decoded.

`{"bytes": None, "path": ...}` is how `datasets` stores an undecoded image that stays in its file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from hftl.errors import UserError
from hftl.paths import expanded

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
_ROWS = 1  # part of the cache key: raise it when the rows of a folder change
_IMAGE = datasets.Image(decode=False)


def class_folders(folder: Path) -> list[Path]:
    """Subfolders that hold images, at any depth; each is a class."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return [path for path in inside if next(_images_under(path), None) is not None]


def _images_under(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                yield Path(place, name)


def read_class_folders(folder: Path) -> datasets.Dataset:
    """Columns `image` and `label` (the name of the subfolder), sorted by name; cached by names, sizes and times."""
    root = folder.resolve()
    listing = hashlib.sha256()
    for path in (path for one in class_folders(root) for path in _images_under(one)):
        listing.update(f"{path.relative_to(root)}\0{_stamp(path)}\n".encode(errors="surrogateescape"))
    return datasets.Dataset.from_generator(
        _class_rows,
        features=datasets.Features({"image": _IMAGE, "label": datasets.Value("string")}),
        gen_kwargs={"root": str(root), "listing": listing.hexdigest(), "version": _ROWS},
    )


def loose_images(source: object) -> datasets.Dataset | None:
    """Images that stand for themselves, by name: one file, or those directly in a folder; None of any other source."""
    path = expanded(source) if isinstance(source, str | Path) else Path()
    files = sorted(path.iterdir()) if path.is_dir() and source else [path]
    found = [file for file in files if file.suffix.lower() in ENDINGS and file.is_file() and file.name[0] != "."]
    if not found or any(file.stem == "metadata" for file in files):
        return None
    return datasets.Dataset.from_dict({"image": list(map(str, found))}, features=datasets.Features({"image": _IMAGE}))


def _class_rows(root: str, listing: str, version: int) -> Iterator[dict[str, Any]]:
    for folder in class_folders(Path(root)):
        for path in _images_under(folder):
            yield {"image": str(path), "label": folder.name}


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def as_images(
    column: datasets.Dataset, role: str, root: Path | None, where: str, flag: str = "image"
) -> datasets.Dataset:
    """Bring the only column of a data set, named by the role, to undecoded images.

    Names of files are relative to `root`, and may not lead out of it. `flag` is what names the column.

    Raises:
        UserError: a column of another kind, file names without a root, or a name that leads out of the folder.
    """
    feature = column.features[role]
    dtype = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        column = column.cast_column(role, _IMAGE)
        first = column[0][role]
        named = first and first["bytes"] is None and first["path"] and not os.path.isabs(first["path"])
        return _join(column, role, root) if named and root is not None else column
    if dtype in ("binary", "large_binary"):
        features = datasets.Features({role: _IMAGE})
        return column.map(_from_bytes, batched=True, batch_size=64, features=features, fn_kwargs={"role": role})
    if dtype not in ("string", "large_string"):
        raise UserError(
            f"Expected images or their file names in {where}; it holds {dtype or feature}. Pass --{flag} COLUMN."
        )
    if root is None:
        raise UserError(
            f"Expected images in {where}; it holds text. Cast it: data.cast_column({role!r}, datasets.Image())."
        )
    return _join(column, role, root)


def _join(column: datasets.Dataset, role: str, root: Path) -> datasets.Dataset:
    base = root.resolve()
    stamps = hashlib.sha256()  # so that a changed image is not taken from the cache
    for batch in column.iter(1000):
        for cell in batch[role]:
            name = cell["path"] if isinstance(cell, dict) else cell
            stamps.update(_stamp(_inside(base, name)).encode() if name else b"-")
    kwargs = {"role": role, "root": str(base), "stamps": stamps.hexdigest()}
    return column.map(_from_names, batched=True, features=datasets.Features({role: _IMAGE}), fn_kwargs=kwargs)


def _inside(root: Path, name: str) -> Path:
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.startswith("..") or "\0" in path:
        raise UserError(
            f"Expected image names relative to {root.name} and inside it; a row names {name!r}. Correct it."
        )
    return root / path


def _from_names(batch: dict[str, list[Any]], role: str, root: str, stamps: str) -> dict[str, list[Any]]:
    names = [cell["path"] if isinstance(cell, dict) else cell for cell in batch[role]]
    return {role: [{"bytes": None, "path": str(_inside(Path(root), name))} if name else None for name in names]}


def _from_bytes(batch: dict[str, list[Any]], role: str) -> dict[str, list[Any]]:
    return {role: [None if cell is None else {"bytes": cell, "path": None} for cell in batch[role]]}
