"""Rows of tensors in the files of one folder, mapped into memory and read in batches. Knows no limit, lock or model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

INDEX = "index.npz"
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


class _Leaf:
    """One tensor of each row of a shard."""

    def __init__(self, path: Path, kind: str, shapes: np.ndarray) -> None:
        self.dtype = getattr(torch, kind)
        self.shapes = shapes
        sizes = shapes.astype(np.int64).prod(axis=1)
        self.offsets = np.concatenate([[0], sizes.cumsum()])
        plain = {torch.bfloat16: np.int16, torch.bool: np.uint8}.get(self.dtype) or torch.empty(
            0, dtype=self.dtype
        ).numpy().dtype
        if path.stat().st_size != self.offsets[-1] * np.dtype(plain).itemsize:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
        self.values = np.memmap(path, plain, "r") if self.offsets[-1] else np.empty(0, plain)
        self.even = bool((shapes == shapes[0]).all())

    def some(self, numbers: np.ndarray) -> torch.Tensor | None:
        """Rows of one size, stacked; None where the sizes differ."""
        shapes = self.shapes[numbers]
        if not self.even and not (shapes == shapes[0]).all():
            return None
        size = int(self.offsets[numbers[0] + 1] - self.offsets[numbers[0]])
        if self.even:
            stacked = self.values.reshape(len(self.shapes), size)[numbers]
        else:
            stacked = np.stack([self.values[start : start + size] for start in self.offsets[numbers].tolist()])
        return torch.from_numpy(np.asarray(stacked)).view(self.dtype).reshape(len(numbers), *shapes[0].tolist())

    def one(self, number: int) -> torch.Tensor:
        values = np.array(self.values[self.offsets[number] : self.offsets[number + 1]])
        return torch.from_numpy(values).view(self.dtype).reshape(self.shapes[number].tolist())


class Reader:
    """Rows by number, read from the disk batch by batch; made by `hftl.store.Store.reader`."""

    def __init__(self, shards: list[Shard], places: np.ndarray) -> None:
        self._shards, self._places = shards, places

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, numbers: Sequence[int], left: bool = False) -> Row:
        """Rows stacked: tensors of shape (rows, ...), padded with zeros to the longest of the batch.

        Args:
            left: pad at the start of the first dimension in which rows differ, not at the end.
        """
        places = self._places[np.asarray(numbers, dtype=np.int64)]
        shards = np.unique(places[:, 0])
        if len(shards) == 1:
            leaves = self._shards[shards[0]].leaves
            stacked = [leaf.some(places[:, 1]) for leaf in leaves]
        else:
            leaves = self._shards[shards[0]].leaves
            stacked = [None] * len(leaves)
        return tuple(
            _padded([self._shards[shard].leaves[i].one(n) for shard, n in places.tolist()], left)
            if whole is None
            else whole
            for i, whole in enumerate(stacked)
        )


def _padded(rows: list[torch.Tensor], left: bool) -> torch.Tensor:
    sizes = [max(row.shape[d] for row in rows) for d in range(rows[0].ndim)]
    ragged = next((d for d in range(rows[0].ndim) if any(row.shape[d] != sizes[d] for row in rows)), None)
    batch = rows[0].new_zeros(len(rows), *sizes)
    for target, row in zip(batch, rows, strict=True):
        spans = [slice(0, size) for size in row.shape]
        if left and ragged is not None:
            spans[ragged] = slice(sizes[ragged] - row.shape[ragged], None)
        target[tuple(spans)] = row
    return batch
