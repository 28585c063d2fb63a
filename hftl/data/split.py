"""Read one split: its inputs, what a scan finds in them, and its encoded labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hftl.data.roles import Reading, Role
from hftl.data.scan import Scan, scan
from hftl.data.source import RawSplit
from hftl.data.types import IGNORED, SPLITS, Labels

_BATCH = 10_000


@dataclass
class Split:
    """Rows with the role columns and an encoded `label`; `scan` has one entry per row, in the same order."""

    data: datasets.Dataset
    scan: Scan
    name: str
    reading: Reading | None = None  # of the labels; None: there are none
    values: np.ndarray | None = None  # (n,) labels, or what is kept of them; None where a row has a list of them

    def take(self, rows: np.ndarray) -> Split:
        values = None if self.values is None else self.values[rows]
        return Split(self.data.select(rows), self.scan.take(rows), self.name, self.reading, values)

    @property
    def classes(self) -> np.ndarray | None:
        """(n,) int64 ids; None unless there is one class a row."""
        return self.values if self.values is not None and self.values.dtype == np.int64 else None

    def label_batches(self) -> Iterator[np.ndarray]:
        """All labels, in one batch where they are held, else in (n, classes) float32 or (n, words) int64; or none."""
        if self.reading is None:
            return iter(())
        return _batches(self.data) if self.values is None else iter([self.values])

    def fingerprint(self, labels: Labels) -> str:
        """sha256 of texts, image bytes and labels, in order."""
        total = hashlib.sha256(json.dumps([labels.read_as, labels.names]).encode())
        total.update(self.scan.rows["digest"].tobytes())
        if self.reading is not None:
            for values in self.label_batches():
                total.update(self.reading.digest(values))
        return total.hexdigest()


def whole_fingerprint(splits: dict[str, Split], labels: Labels) -> str:
    """sha256 of all rows as they came: no seed has a say, so the target's rows count whatever half they are in."""
    apart = [one.scan.rows["digest"] for split, one in splits.items() if split not in SPLITS]
    total = hashlib.sha256(np.unique(np.concatenate(apart), axis=0).tobytes() if apart else b"")
    for split in (split for split in SPLITS if split in splits):
        total.update(f"{split} {splits[split].fingerprint(labels)}".encode())
    return total.hexdigest()


def read_split(
    raw: RawSplit,
    inputs: datasets.Dataset,
    roles: dict[str, Role],
    column: str = "label",
    reading: Reading | None = None,
    found: Any = None,
) -> Split:
    """Scan the inputs and encode the labels, if any, side by side: neither copies the texts or images.

    Args:
        inputs: the columns of the input roles.
        column: of the labels.
        found: what the reading's `look` saw in it.
    """
    kinds = {role: roles[role].kind for role in inputs.column_names if roles[role].kind != "domain"}
    scanned = scan(inputs, kinds, raw.roots)
    if reading is None:
        return Split(inputs, scanned, raw.name)
    data = datasets.concatenate_datasets([inputs, reading.encode(raw, column)], axis=1)
    split = Split(data, scanned, raw.name, reading, reading.held(_batches(data), found))
    for row, why in reading.flaws(data, split.label_batches(), found):
        scanned.reasons.setdefault(row, why)
    return split


def _batches(data: datasets.Dataset) -> Iterator[np.ndarray]:
    for table in data.select_columns("label").with_format("arrow").iter(_BATCH):
        cells = table.column(0).combine_chunks()
        if isinstance(cells, pa.ListArray):
            flat, sizes = cells.flatten().to_numpy(zero_copy_only=False), np.diff(cells.offsets.to_numpy())
            if flat.dtype == np.int64:  # tags: as many as there are words
                padded = np.full((len(cells), sizes.max(initial=0)), IGNORED, np.int64)
                padded[np.arange(padded.shape[1]) < sizes[:, None]] = flat
                yield padded
            else:
                yield flat.reshape(len(cells), -1)
        else:
            yield cells.to_numpy(zero_copy_only=False)
