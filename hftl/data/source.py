"""Open what `--data` names: the rows of each split, with the columns that the source has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.exceptions import DatasetGenerationError, DatasetsError

from hftl.data.formats.bundled import bundled
from hftl.data.formats.files import FORMATS, PACKED, read_files, unpack_first
from hftl.data.formats.images import (
    METADATA,
    class_folders,
    files_under,
    folders_in,
    hidden,
    images_under,
    left_out,
    read_class_folders,
    sole_folder,
    split_folders,
    unread,
)
from hftl.data.formats.loading import load_dataset, load_from_disk
from hftl.data.formats.memory import in_memory
from hftl.data.types import split_of
from hftl.errors import UserError, suggest
from hftl.paths import expanded


@dataclass
class RawSplit:
    """The rows of one split, as the source has them."""

    data: datasets.Dataset
    name: str  # for messages
    root: Path | None = None  # the folder that file names in them are relative to
    trusted: bool = False  # a person's own code made them, so they may name any file

    def take(self, rows: np.ndarray, what: str) -> RawSplit:
        """Some of the rows, named by what they are."""
        return replace(self, data=self.data.select(rows), name=f"{self.name} ({what})")

    def labels(self, column: str) -> datasets.Dataset:
        """The label column alone, named `label`, not encoded."""
        piece = self.data.select_columns([column])
        return piece if column == "label" else piece.rename_column(column, "label")

    @property
    def roots(self) -> list[str] | None:
        """Folders that an image's path may lie in: the data's own, else the caches that the Hub's files are kept in."""
        if self.trusted:
            return None
        roots = [self.root] if self.root else [datasets.config.HF_DATASETS_CACHE, Path(datasets.config.HF_CACHE_HOME)]
        return [str(expanded(root).resolve()) for root in roots]


@dataclass
class Opened:
    """`splits` holds only train, valid and test, each where it was found; `others` what the Hub has besides."""

    name: str
    splits: dict[str, RawSplit]
    others: dict[str, RawSplit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Sentences on what lies in the source and is in no row."""


def open_source(source: Any, revision: str | None = None) -> Opened:
    """Find the rows of a source, for each split that it has.

    Args:
        source: a file, a folder, a list of files, a pattern like `data/*.csv`, a mapping of splits to any of these,
            `hftl:reviews`, a Hub id (`name` or `name:config`), a Dataset, a DatasetDict, or what `in_memory` takes.
        revision: of a Hub id.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    if isinstance(source, datasets.Dataset):
        return Opened("a Dataset", {"train": RawSplit(source.with_format(None), "the Dataset", trusted=True)})
    if (rows := in_memory(source)) is not None:
        kind = type(source).__name__
        return Opened(f"a {kind}", {"train": RawSplit(rows, f"the {kind}", trusted=True)})
    if isinstance(source, Mapping):
        return _mapping(source, revision)
    if isinstance(source, list | tuple):
        return _file_set([expanded(path) for path in source], ", ".join(map(str, source)))
    if not isinstance(source, str | Path):
        came = f"it is of type {type(source).__name__}. Make a Dataset of it, e.g. with datasets.Dataset.from_list."
        raise UserError(f"Expected a path, a Hub id, a Dataset, a DataFrame or dicts as data; {came}")
    name = str(source)
    if not name.strip():
        raise UserError("Expected a path or a Hub id as data; it is empty. Pass --data FILE.")
    if name.startswith("hftl:"):
        splits = bundled(name.removeprefix("hftl:"))
        return Opened(name, {split: RawSplit(rows, f"{name} ({split})") for split, rows in splits.items()})
    path = expanded(name)
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return Opened(name, {"train": _file_rows([path], path.parent)})
    if any(mark in name for mark in "*?["):
        return _file_set(sorted(Path().glob(name)) if not path.is_absolute() else sorted(_glob(path)), name)
    if path.suffix.lower() in {*FORMATS, ".txt", ".xlsx"} or name.startswith((".", "/", "~")) or name.count("/") > 1:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = suggest(path.name, near) or " Check the path."
        raise UserError(f"Expected a file or folder at {name}; there is none.{guess}")
    return _hub(name, revision)


def one_set(opened: Opened, split: str, named: str) -> RawSplit:
    """The rows of a source: all of it, or one split where it has several.

    Args:
        named: what the user calls it.

    Raises:
        UserError: it has several splits, and not this one.
    """
    splits = opened.splits
    rows = next(iter(splits.values())) if len(splits) == 1 else splits.get(split)
    if rows is None:
        raise UserError(f"Expected one set of rows in {named}; it has {', '.join(splits)}. Name a file.")
    return rows


def _glob(pattern: Path) -> list[Path]:
    return list(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _mapping(source: Mapping[str, Any], revision: str | None) -> Opened:
    tables = {}
    for name, value in source.items():
        table = open_source(value, revision).splits.get("train")
        if table is None:
            raise UserError(f"Expected one set of rows for {name!r}; {value} has splits of its own. Pass it as data.")
        tables[str(name)] = table
    plain = all(isinstance(value, str | Path) for value in source.values())
    return Opened(", ".join(map(str, source.values())) if plain else f"a {type(source).__name__}", *_named(tables))


def _file_rows(paths: list[Path], root: Path) -> RawSplit:
    for path in paths:
        if path.suffix.lower() in PACKED:
            raise unpack_first(path)
        if path.suffix.lower() not in FORMATS:
            known = ", ".join(FORMATS)
            raise UserError(f"Expected a file that ends in {known}; it is {path.name}. Convert it to csv.")
        if not path.is_file():
            raise UserError(f"Expected a file at {path}; there is none. Check the path.")
    name = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
    return RawSplit(read_files(paths), name, root)


def _file_set(paths: list[Path], name: str) -> Opened:
    """Files named after splits; files that are not are all train."""
    if not paths:
        raise UserError(f"Expected files at {name}; there are none. Check the path.")
    grouped: dict[str, list[Path]] = {}
    for path in paths:
        grouped.setdefault(split_of(path.stem) or "", []).append(path)
    unnamed = grouped.pop("", [])
    notes = [f"{path.name} was not read: its name names no split" for path in unnamed] if grouped else []
    grouped = grouped or {"train": unnamed}
    splits = {split: _file_rows(files, files[0].parent) for split, files in grouped.items()}
    return Opened(name, splits, notes=notes)


def _folder(folder: Path, name: str) -> Opened:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, name)
    table = _metadata(folder)
    if table:
        opened = Opened(name, {"train": RawSplit(table, f"{folder.name}/metadata", folder)})
        return _said(opened, files_under(folder.resolve()), "image(s) not listed in the metadata")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in FORMATS and not hidden(p.name))
    files = [path for path in files if path.name not in ("dataset_info.json", "dataset.json")]
    if any(split_of(path.stem) == "train" for path in files):
        return _file_set(files, name)
    inside = split_folders(folder)
    if inside:
        opened = Opened(name, {split: _split_folder(path, split) for split, path in inside.items()})
        there = (path for path in sorted(folder.iterdir()) if not hidden(path.name))
        lying = (files_under(path.resolve()) if path.is_dir() else [path] for path in there)  # a split may be a link
        return _said(opened, itertools.chain.from_iterable(lying), "image(s) outside splits, classes or metadata")
    sole = None if files else sole_folder(folder)
    if sole:
        opened = _folder(sole, name)
        opened.notes.append(f"{name} holds one folder, {sole.name}, whose content was read as if it were the data")
        return opened
    if class_folders(folder):
        opened = Opened(name, {"train": RawSplit(read_class_folders(folder), folder.name, folder)})
        return _said(opened, files_under(folder.resolve()), "image(s) beside the folders of classes")
    if files:
        return _file_set(files, name)
    names = sorted(path.name for path in folder.iterdir() if not hidden(path.name))
    if packed := next((one for one in names if one.lower().endswith(PACKED)), None):
        raise unpack_first(folder / packed)
    below = unread(files_under(folder), (), "images") if folders_in(folder) else []
    held = "; ".join([", ".join(names[:5]) or "nothing", *below])
    raise UserError(
        f"Expected in {name} one folder of images per class, a metadata.csv with a file_name column, or a train file "
        f"({', '.join(FORMATS)}); it holds {held}. Arrange it so, or pass another folder."
    )


def _said(opened: Opened, files: Iterable[Path], images: str) -> Opened:
    """With words on those of the files that no row names: `images` names those that are images."""
    rows = [(raw.data, (raw.root or Path()).resolve()) for raw in opened.splits.values()]
    opened.unread += left_out(rows, files, images)
    return opened


def _split_folder(folder: Path, split: str) -> RawSplit:
    """What lies under train/, valid/ or test/: images with metadata, images by class, or files."""
    inner = sole_folder(folder)
    if inner and split_of(inner.name) == split:  # seg_train/seg_train, as archives unpack
        return _split_folder(inner, split)
    table = _metadata(folder)
    if table:
        return RawSplit(table, f"{folder.name}/metadata", folder)
    if class_folders(folder):
        return RawSplit(read_class_folders(folder), folder.name, folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in FORMATS)
    if files:
        return _file_rows(files, folder)
    held = "images alone" if next(images_under(folder), None) else "nothing of the kind"
    raise UserError(
        f"Expected images by class, a metadata.csv or data files in {folder}; it holds {held}. Arrange it so."
    )


def _metadata(folder: Path) -> datasets.Dataset | None:
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    table = read_files([path]) if path else None
    return table if table is not None and "file_name" in table.column_names else None


def _saved(folder: Path, name: str) -> Opened:
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # of any kind, where its json files hold other things than datasets wrote
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} looks like save_to_disk's, but cannot be read: {reason}. Save it again.") from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    found = _named({key: RawSplit(rows, f"{folder.name} ({key})", folder) for key, rows in splits.items()})
    return Opened(name, *found)


def _named(tables: dict[str, RawSplit]) -> tuple[dict[str, RawSplit], dict[str, RawSplit]]:
    """Sort splits by the names that hftl has for them, and the rest."""
    splits: dict[str, RawSplit] = {}
    others = {}
    for key, table in tables.items():
        split = split_of(key)
        if split and split not in splits:
            splits[split] = table
        else:
            others[key] = table
    return splits, others


def _hub(name: str, revision: str | None) -> Opened:
    repository, _, config = name.partition(":")
    try:
        loaded = load_dataset(repository, config or None, revision=revision)
    except (OSError, DatasetsError, RuntimeError, ValueError) as error:
        raise UserError(_hub_trouble(name, error)) from error
    found, others = _named({key: RawSplit(rows, f"{name} ({key})") for key, rows in loaded.items()})
    return Opened(name, found, others)


def _hub_trouble(name: str, error: Exception) -> str:
    broken = isinstance(error, DatasetGenerationError)
    cause = (error.__cause__ or error) if broken else error
    text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    if broken:
        return f"The files of {name} on the Hub cannot be read: {text}. Pass another --data."
    if "Dataset scripts" in text:
        return f"{name} runs a script to load, which is refused. Look for a parquet copy of it on the Hub."
    configs = re.findall(r"'([^']+)'", str(error).split("[", 1)[-1])
    if ("Config name is missing" in text or "BuilderConfig" in text) and configs:
        some, repository = ", ".join(configs[:12]), name.partition(":")[0]
        return f"Expected a config of {repository} ({some}); it is {name}. Pass --data {repository}:{configs[0]}."
    if isinstance(error, ConnectionError):
        return (
            f"Expected a file, a folder or a Hub data set called {name}; no such path, and the Hub cannot be reached. "
            "Check the path, or the network."
        )
    return f"{name} cannot be loaded from the Hub: {text}. Check the name."
