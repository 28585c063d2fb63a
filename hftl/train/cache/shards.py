"""Rows of tensors in the files of one folder, mapped into memory and read in batches. Knows no limit, lock or model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

INDEX = "index.npz"
KINDS = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "uint8": "|u1",
    "bool": "|u1",
}
"""Types of torch -> how numpy reads their bytes."""
Row = tuple[torch.Tensor, ...]


class Shard:
    """The rows of one folder, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path / INDEX, allow_pickle=False) as index:
            self.numbers = {key.tobytes(): n for n, key in enumerate(index["keys"])}
            count = sum(name.startswith("kind") for name in index.files)
            self.leaves = [
                _Leaf(path / f"leaf{i}.bin", str(index[f"kind{i}"]), index[f"shapes{i}"]) for i in range(count)
            ]

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.path,)  # another process maps the files anew; pickled, a map would be all their bytes


class _Leaf:
    """One tensor of each row of a shard."""

    def __init__(self, path: Path, kind: str, shapes: np.ndarray) -> None:
        self.dtype, self.shapes = getattr(torch, kind), shapes
        self.offsets = np.concatenate([[0], shapes.astype(np.int64).prod(axis=1).cumsum()])
        plain = np.dtype(KINDS[kind])
        if path.stat().st_size != self.offsets[-1] * plain.itemsize:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
        # a plain view: each slice of a memmap itself costs microseconds
        self.values = np.asarray(np.memmap(path, plain, "r")) if self.offsets[-1] else np.empty(0, plain)
        self.even = bool((shapes == shapes[0]).all())
        self.table = self.values.reshape(shapes.shape[0], -1) if self.even and self.offsets[-1] else None


class Reader:
    """Rows by number, read from the disk batch by batch; made by `hftl.train.cache.store.Store.reader`."""

    def __init__(self, shards: list[Shard], places: np.ndarray) -> None:
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, numbers: Sequence[int], left: bool = False, leaves: Sequence[int] | None = None) -> Row:
        """Rows stacked: tensors of shape (rows, ...), padded with zeros to the longest of the batch.

        Args:
            left: pad at the start of the first dimension in which rows differ, not at the end.
            leaves: of each row these tensors alone.
        """
        if not self._shards:
            return ()
        places = self._places[np.asarray(numbers, dtype=np.int64)]
        owner, rows = places[:, 0], places[:, 1]
        present = np.unique(owner).tolist() or [0]
        spots = [np.flatnonzero(owner == shard) for shard in present]
        return tuple(
            _stacked([(self._shards[s].leaves[i], at, rows[at]) for s, at in zip(present, spots, strict=True)], left)
            for i in (range(len(self._shards[present[0]].leaves)) if leaves is None else leaves)
        )


Part = tuple[_Leaf, np.ndarray, np.ndarray]
"""A leaf, positions in the batch, and the rows of the leaf that belong there."""


def _stacked(parts: list[Part], left: bool) -> torch.Tensor:
    leaf, count = parts[0][0], sum(len(at) for _, at, _ in parts)
    shapes = np.empty((count, leaf.shapes.shape[1]), dtype=np.int64)
    for one, at, rows in parts:
        shapes[at] = one.shapes[rows]
    sizes = shapes.max(axis=0) if count else leaf.shapes[0] * leaf.even
    if all(one.table is not None for one, _, _ in parts) and (shapes == sizes).all():
        found = _even(parts, count)
    else:
        found = _uneven(parts, shapes, sizes, left)
    return found.view(leaf.dtype).reshape(count, *sizes.tolist())


def _even(parts: list[Part], count: int) -> torch.Tensor:
    """Rows of one size: each shard gives its own at once."""
    first = parts[0][0].table
    assert first is not None
    found, held = _room((count, first.shape[1]), first.dtype)
    if len(parts) == 1:
        first.take(parts[0][2], axis=0, out=held, mode="clip")  # any other mode would write into a buffer first
        return found
    for leaf, at, rows in parts:
        assert leaf.table is not None
        held[at] = leaf.table.take(rows, axis=0)
    return found


def _uneven(parts: list[Part], shapes: np.ndarray, sizes: np.ndarray, left: bool) -> torch.Tensor:
    """Rows of several sizes, each in its corner of zeros."""
    found, held = _room((len(shapes), *sizes.tolist()), parts[0][0].values.dtype)
    held.fill(0)
    ragged = np.flatnonzero((shapes != sizes).any(axis=0))
    for leaf, at, rows in parts:
        starts, ends = leaf.offsets[rows].tolist(), leaf.offsets[rows + 1].tolist()
        for i, start, end, shape in zip(at.tolist(), starts, ends, shapes[at].tolist(), strict=True):
            spans: list[Any] = [slice(size) for size in shape]
            if left and len(ragged):
                first = ragged[0]
                spans[first] = slice(int(sizes[first]) - shape[first], None)
            held[(i, *spans)] = leaf.values[start:end].reshape(shape)
    return found


def _room(shape: tuple[int, ...], dtype: np.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """Memory for a batch, as torch and as numpy see it.

    It is torch's own because that starts at a multiple of 64 bytes: where numpy's happens to start decides in which
    order a CPU adds up the product of a matrix and one row, and two runs would differ in the last bit.
    """
    found = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    return found, found.numpy()
