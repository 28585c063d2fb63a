"""Read folders of images as rows, by the names of files; no pixel is decoded.

`{"bytes": None, "path": ...}` is how `datasets` stores an undecoded image that stays in its file.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from hftl.data.formats.decode import ENDINGS
from hftl.data.formats.files import FORMATS
from hftl.data.types import WORDS, split_of
from hftl.errors import UserError
from hftl.paths import expanded

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE = datasets.Image(decode=False)
_ROWS = 2  # part of the cache key: raise it when the rows of a folder change
_TRAIN = {word for word, split in WORDS.items() if split == "train"}
_SYSTEMS = {"@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_SYSTEMS |= {"Thumbs.db", "desktop.ini", "Desktop.ini"}


# --- what lies in a folder ---


def hidden(name: str) -> bool:
    """Whether a file or folder is a program's own: .git, .ipynb_checkpoints, __MACOSX, @eaDir, Thumbs.db."""
    return name.startswith((".", "__")) or name in _SYSTEMS


def files_under(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in the order of names; links to folders are followed, once each."""
    been: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(place)
        folders[:] = [] if (stat.st_dev, stat.st_ino) in been else sorted(n for n in folders if not hidden(n))
        if (stat.st_dev, stat.st_ino) not in been:
            yield from (Path(place, name) for name in sorted(files) if not hidden(name))
        been.add((stat.st_dev, stat.st_ino))


def images_under(folder: Path) -> Iterator[Path]:
    """Every image below a folder, as its ending says, whose name is a text: a row cannot hold another."""
    return (path for path in files_under(folder) if path.suffix.lower() in ENDINGS and _is_text(path))


def _is_text(path: Path) -> bool:
    return str(path).isascii() or not any("\udc80" <= mark <= "\udcff" for mark in str(path))  # as Python reads bytes


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder that are not hidden, in the order of names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not hidden(path.name))


def class_folders(folder: Path) -> list[Path]:
    """Subfolders that hold images, at any depth; each is a class."""
    return [path for path in folders_in(folder) if next(images_under(path), None) is not None]


def sole_folder(folder: Path) -> Path | None:
    """The only folder in one that holds no image itself, where classes or splits lie deeper: photos/photos/ants."""
    inner = folders_in(folder)
    if len(inner) != 1 or _has_images(folder):
        return None
    return inner[0] if class_folders(inner[0]) or any((inner[0] / name).is_file() for name in METADATA) else None


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder: train/ beside test/, or seg_train/ beside seg_test/; none without one for train.

    A class may be called train, too: then images lie right in it, and folders beside it name no split. A test folder
    of images alone has no labels, and is none.

    Raises:
        UserError: two folders name one split.
    """
    named: dict[str, list[Path]] = {}
    others = []
    for path in folders_in(folder):
        split = split_of(path.name)
        if split is not None and (_holds_rows(path) or (path.name.lower() in _TRAIN and _has_images(path))):
            named.setdefault(split, []).append(path)
        elif next(images_under(path), None) and (split is None or path.name.lower() not in WORDS):
            others.append(path)
    if "train" not in named or (others and not all(_holds_rows(path) for paths in named.values() for path in paths)):
        return {}
    found = {}
    for split, paths in named.items():
        plain = [path for path in paths if path.name.lower() in WORDS]
        if len(paths) > 1 and len(plain) != 1:
            names = " and ".join(path.name for path in paths[:3])
            raise UserError(
                f"Expected one folder for {split} in {folder.name}; {names} are named so. Rename the others."
            )
        found[split] = (plain or paths)[0]
    return found


def _holds_rows(folder: Path) -> bool:
    """Whether a folder has classes, splits or tables in it, and not images alone."""
    tables = any(path.suffix.lower() in FORMATS for path in folder.iterdir() if not hidden(path.name))
    return tables or bool(class_folders(folder))


def left_out(splits: list[tuple[datasets.Dataset, Path]], files: Iterable[Path], images: str) -> list[str]:
    """Sentences on what no row of some splits, each with the root of its file names, is made of."""
    used: set[str] = set()
    said = []
    for rows, root in splits:
        if "file_name" in rows.column_names:
            used.update(str(root / _normal(root, name)) for name in rows["file_name"][:] if name)
        elif rows.features.get("image") == IMAGE:
            for table in rows.select_columns(["image"]).with_format("arrow").iter(10_000):
                used.update(table["image"].combine_chunks().field("path").to_pylist())
            said += _of_classes(root)
        else:
            return []  # tables, whose columns are not known yet
    return said + unread(files, used, images)


def _of_classes(folder: Path) -> list[str]:
    """Sentences on folders beside those of classes, and on folders below classes that may be meant."""
    classes = class_folders(folder)
    empty = [path.name for path in folders_in(folder) if path not in classes]
    said = [f"folders in which no image can be read: {_some(empty)}"] if empty else []
    below = set.intersection(*({path.name for path in class_folders(one)} for one in classes)) if classes[1:] else set()
    if below and not all(split_of(name) for name in below):
        classes_are = f"the classes are {_some([path.name for path in classes])}"
        said.append(f"{classes_are}, and not {_some(sorted(below))}, which are folders in each of them")
    return said


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def unread(files: Iterable[Path], used: Container[str], images: str) -> list[str]:
    """A sentence on the files that no row names, by kind: `images` names those that are images."""
    left = (path for path in files if str(path) not in used and path.name not in METADATA)
    kinds = Counter(_kind(path, images) for path in left)
    listed = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(6)) + (" ..." if len(kinds) > 6 else "")
    return [f"files that were not read: {kinds.total():,} ({listed})"] if kinds else []


def _kind(path: Path, images: str) -> str:
    ending = path.suffix.lower()
    if not _is_text(path):
        return "with a name that is not UTF-8"
    return images if ending in ENDINGS else ending or "without an ending"


# --- rows ---


def read_class_folders(folder: Path) -> datasets.Dataset:
    """Columns `image` and `label` (the name of the subfolder), sorted by name; cached by names, sizes and times."""
    root = folder.resolve()
    listing = hashlib.sha256()
    for path in (path for one in class_folders(root) for path in images_under(one)):
        listing.update(f"{path.relative_to(root)}\0{_stamp(path)}\n".encode(errors="surrogateescape"))
    return datasets.Dataset.from_generator(
        _class_rows,
        features=datasets.Features({"image": IMAGE, "label": datasets.Value("string")}),
        gen_kwargs={"root": str(root), "listing": listing.hexdigest(), "version": _ROWS},
    )


def loose_images(source: object) -> datasets.Dataset | dict[str, datasets.Dataset] | None:
    """Images that stand for themselves, by name: one file, or all of a folder that has some directly in it.

    Where only folders named after splits have some directly, a set for each. None of any other source: a folder of
    classes, of splits by class, or with metadata.
    """
    path = expanded(source) if isinstance(source, str | Path) else Path()
    if not (path.is_dir() and source):
        return _plain([path]) if path.suffix.lower() in ENDINGS and path.is_file() else None
    if any((path / name).is_file() for name in METADATA):
        return None
    if _has_images(path):
        return None if split_folders(path) else _plain(images_under(path))
    plain = {WORDS.get(one.name.lower(), ""): one for one in folders_in(path) if _has_images(one)}
    by_class = "train" not in plain or "" in plain
    return None if by_class else {split: _plain(images_under(one)) for split, one in plain.items()}


def _has_images(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    direct = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not hidden(path.name))
    return any(path.is_file() for path in direct)


def _plain(found: Iterable[Path]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": list(map(str, found))}, features=datasets.Features({"image": IMAGE}))


def _class_rows(root: str, listing: str, version: int) -> Iterator[dict[str, Any]]:
    for folder in class_folders(Path(root)):
        for path in images_under(folder):
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
        column = column.cast_column(role, IMAGE)
        first = column[0][role]
        named = first and first["bytes"] is None and first["path"] and not os.path.isabs(first["path"])
        return _join(column, role, root) if named and root is not None else column
    if dtype in ("binary", "large_binary"):
        features = datasets.Features({role: IMAGE})
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
    return column.map(_from_names, batched=True, features=datasets.Features({role: IMAGE}), fn_kwargs=kwargs)


def _inside(root: Path, name: str) -> Path:
    path = _normal(root, name)
    if os.path.isabs(path) or path.startswith("..") or "\0" in path:
        raise UserError(
            f"Expected image names relative to {root.name} and inside it; a row names {name!r}. Correct it."
        )
    return root / path


def _normal(root: Path, name: str) -> str:
    """A file's name in a table, which may come from Windows."""
    foreign = "\\" in name and not os.path.exists(root / name)
    return os.path.normpath(name.replace("\\", "/") if foreign else name)


def _from_names(batch: dict[str, list[Any]], role: str, root: str, stamps: str) -> dict[str, list[Any]]:
    names = [cell["path"] if isinstance(cell, dict) else cell for cell in batch[role]]
    return {role: [{"bytes": None, "path": str(_inside(Path(root), name))} if name else None for name in names]}


def _from_bytes(batch: dict[str, list[Any]], role: str) -> dict[str, list[Any]]:
    return {role: [None if cell is None else {"bytes": cell, "path": None} for cell in batch[role]]}
