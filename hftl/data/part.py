"""One split on its way to a task: its rows, what the scan found, its labels. Knows nothing of the other splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import config

from hftl.data.columns import check_text, check_words
from hftl.data.formats.images import as_images
from hftl.data.labels import Reading, encode
from hftl.data.masks import MaskScan, find_strangers, mask_column, scan_masks
from hftl.data.scan import Scan, scan
from hftl.data.source import Rows
from hftl.data.types import MULTI, SPLITS, TAGS, Labels, Masks, Role
from hftl.paths import expanded

_BATCH = 10_000


@dataclass
class Part:
    """Rows with the role columns and an encoded `label`; `scan` has one entry per row, in the same order."""

    data: datasets.Dataset
    scan: Scan
    values: np.ndarray | None  # (n,) labels: int64 ids or float32 numbers; None where a row has several, or none
    name: str
    masks: MaskScan | None = None  # where the labels are masks

    def take(self, rows: np.ndarray) -> Part:
        values = None if self.values is None else self.values[rows]
        masks = None if self.masks is None else self.masks.take(rows)
        return Part(self.data.select(rows), self.scan.take(rows), values, self.name, masks)

    @property
    def classes(self) -> np.ndarray | None:
        """(n,) int64 ids; None unless there is one class a row."""
        return self.values if self.values is not None and self.values.dtype == np.int64 else None

    def label_batches(self) -> Iterator[np.ndarray]:
        """All labels, in one batch where they are held, else in (n, classes) float32 or (n, words) int64; or none."""
        if "label" not in self.data.column_names or self.masks is not None:
            return iter(())
        return _batches(self.data) if self.values is None else iter([self.values])

    def fingerprint(self, labels: Labels) -> str:
        """sha256 of texts, image bytes and labels, in order."""
        total = hashlib.sha256(json.dumps([labels.problem_type, labels.names]).encode())
        total.update(self.scan.digest.tobytes())
        for values in self.label_batches():
            total.update(values.tobytes())
        if self.masks is not None:
            total.update(self.masks.digest.tobytes())
        return total.hexdigest()


def inputs(rows: Rows, columns: dict[str, str], roles: dict[str, Role]) -> datasets.Dataset:
    """The input columns under the names of their roles; images stay undecoded."""
    wanted = {role: column for role, column in columns.items() if roles[role].kind != "label"}
    texts = [(role, column) for role, column in wanted.items() if roles[role].kind == "text"]
    check_text(rows.data, texts, rows.name)
    check_words(rows.data, [(r, c) for r, c in wanted.items() if roles[r].kind == "words"], rows.name)
    pieces = []
    for role, column in wanted.items():
        piece = rows.data.select_columns([column])
        piece = piece if column == role else piece.rename_column(column, role)
        if roles[role].kind == "image":
            piece = as_images(piece, role, rows.root, f"column {column!r} of {rows.name}")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces, axis=1)


def whole_fingerprint(parts: dict[str, Part], labels: Labels) -> str:
    """sha256 of all rows as they came: no seed has a say, so the target's rows count whatever half they are in."""
    apart = [part.scan.digest for split, part in parts.items() if split not in SPLITS]
    total = hashlib.sha256(np.unique(np.concatenate(apart), axis=0).tobytes() if apart else b"")
    for split in (split for split in SPLITS if split in parts):
        total.update(f"{split} {parts[split].fingerprint(labels)}".encode())
    return total.hexdigest()


def label_column(rows: Rows, column: str) -> datasets.Dataset:
    """The label column alone, named `label`, not encoded."""
    piece = rows.data.select_columns([column])
    return piece if column == "label" else piece.rename_column(column, "label")


def masked(rows: Rows, columns: dict[str, str], roles: dict[str, Role]) -> datasets.Dataset:
    """Inputs and, as `label`, their masks, both undecoded."""
    masks = mask_column(label_column(rows, columns["label"]), columns["label"], rows.root, rows.name)
    return datasets.concatenate_datasets([inputs(rows, columns, roles), masks], axis=1)


def make_masked(rows: Rows, columns: dict[str, str], roles: dict[str, Role], reading: Reading, masks: Masks) -> Part:
    """As `make_part`, where the labels are masks."""
    data, roots = masked(rows, columns, roles), image_roots(rows)
    found = scan(data.select_columns(["image"]), {"image": "image"}, roots)
    seen = scan_masks(data.select_columns(["image", "label"]), roots)
    find_strangers(seen, reading, masks)
    found.reasons = seen.reasons | found.reasons
    return Part(data, found, None, rows.name, seen)


def make_part(rows: Rows, columns: dict[str, str], roles: dict[str, Role], reading: Reading | None) -> Part:
    """Scan the inputs and encode the labels, if any, side by side: neither copies the texts or images."""
    given = inputs(rows, columns, roles)
    kinds = {role: roles[role].kind for role in given.column_names if roles[role].kind != "domain"}
    found = scan(given, kinds, image_roots(rows))
    if reading is None:
        return Part(given, found, None, rows.name)
    label = encode(label_column(rows, columns["label"]), reading)
    data = datasets.concatenate_datasets([given, label], axis=1)
    values = None if reading.problem_type in (MULTI, TAGS) else np.concatenate(list(_batches(data)))
    part = Part(data, found, values, rows.name)
    missing = _untagged(data, columns) if reading.problem_type == TAGS else _unlabelled(part.label_batches())
    for row, why in missing:
        found.reasons.setdefault(row, why)
    return part


def image_roots(rows: Rows) -> list[str] | None:
    """Folders that an image's path may lie in: the data's own, else the caches that the Hub's files are kept in."""
    if rows.trusted:
        return None
    roots = [rows.root] if rows.root else [config.HF_DATASETS_CACHE, Path(config.HF_CACHE_HOME)]
    return [str(expanded(root).resolve()) for root in roots]


def _batches(data: datasets.Dataset) -> Iterator[np.ndarray]:
    for table in data.select_columns("label").with_format("arrow").iter(_BATCH):
        cells = table.column(0).combine_chunks()
        if isinstance(cells, pa.ListArray):
            flat, sizes = cells.flatten().to_numpy(zero_copy_only=False), np.diff(cells.offsets.to_numpy())
            if flat.dtype == np.int64:  # tags: as many as there are words
                padded = np.full((len(cells), sizes.max(initial=0)), -100, np.int64)
                padded[np.arange(padded.shape[1]) < sizes[:, None]] = flat
                yield padded
            else:
                yield flat.reshape(len(cells), -1)
        else:
            yield cells.to_numpy(zero_copy_only=False)


def _untagged(data: datasets.Dataset, columns: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Rows that have not one tag a word, and why."""
    role = next(name for name in columns if name != "label")
    start = 0
    for table in data.select_columns([role, "label"]).with_format("arrow").iter(_BATCH):
        words, tags = (pc.list_value_length(table[name]).to_numpy() for name in (role, "label"))
        for i in np.flatnonzero(words != tags).tolist():
            yield start + i, f"{words[i]} words and {tags[i]} tags"
        start += len(table)


def _unlabelled(batches: Iterator[np.ndarray]) -> Iterator[tuple[int, str]]:
    start = 0
    for values in batches:
        first = values[:, 0] if values.ndim == 2 else values
        gone = np.flatnonzero((first == -1) if first.dtype == np.int64 else np.isnan(first))
        yield from ((start + int(i), "no label") for i in gone)
        start += len(values)
