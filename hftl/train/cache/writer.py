"""Rows of tensors brought into the files of one folder. Knows no lock and no limit but the room it is told of."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftl.errors import UserError
from hftl.train.cache.shards import INDEX, Row

KEY = 16
"""Bytes of a key."""


class NoRoom(Exception):  # noqa: N818  # an answer, not an error: whoever asks computes anew
    """The limit or the disk does not hold what was to be kept; the message says which."""


class Writer:
    """Rows of a shard to be; made by `hftl.train.cache.store.Store.writer`."""

    step = 64_000_000
    """Bytes between two looks at the room that is left."""

    def __init__(self, scratch: Path, make_room: Callable[[int], int]) -> None:
        self.keys: list[bytes] = []
        self.whole = True
        """False once a row could not be written: the files and the list of keys no longer agree."""
        self._scratch, self._make_room = scratch, make_room
        self._files: list = []
        self._kinds: list[tuple[torch.dtype, int]] = []
        self._shapes: list[list[tuple[int, ...]]] = []
        self._allowed = 0

    def add(self, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Write rows: tuples of tensors without a batch dimension, as many, of the same types and ranks in each row.

        Raises:
            NoRoom: the limit is reached, or the disk is full; then nothing of this writer is published.
            ValueError: rows are not alike, or are not as many as keys, or a key has not 16 bytes.
        """
        if len(keys) != len(rows) or any(len(key) != KEY for key in keys):
            raise ValueError(f"Expected a key of {KEY} bytes for each of {len(rows)} rows; {len(keys)} keys came.")
        if not rows:
            return
        kinds = self._kinds or [(leaf.dtype, leaf.ndim) for leaf in rows[0]]
        if any([(leaf.dtype, leaf.ndim) for leaf in row] != kinds for row in rows):
            raise ValueError("Expected rows of the same types and ranks; others came. Use another space for them.")
        whole, self.whole = self.whole, False
        with writing(self._scratch.parent):
            if not self._kinds:
                self._kinds, self._shapes = kinds, [[] for _ in kinds]
                for i in range(len(kinds)):  # one by one, so that what is open is closed where the next one fails
                    self._files.append((self._scratch / f"leaf{i}.bin").open("wb"))
            self._reserve(sum(leaf.nbytes for row in rows for leaf in row))
            for key, row in zip(keys, rows, strict=True):
                self.keys.append(bytes(key))
                for leaf, file, shapes in zip(row, self._files, self._shapes, strict=True):
                    shapes.append(tuple(leaf.shape))
                    file.write(_raw(leaf))
        self.whole = whole

    def _reserve(self, size: int) -> None:
        if size > self._allowed:
            for file in self._files:
                file.flush()  # what is in a buffer is not counted yet
            self._allowed = min(self._make_room(size), max(self.step, size))
        self._allowed -= size

    def close(self) -> None:
        """Bring everything to the disk, the index last."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._make_room(0)
        index: dict[str, Any] = {"keys": np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(len(self.keys), -1)}
        for i, ((dtype, rank), shapes) in enumerate(zip(self._kinds, self._shapes, strict=True)):
            index[f"kind{i}"] = np.array(str(dtype).removeprefix("torch."))
            index[f"shapes{i}"] = np.array(shapes, dtype=np.int32).reshape(len(shapes), rank)
        with (self._scratch / INDEX).open("wb") as file:
            np.savez(file, **index)
            file.flush()
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Let go of the files."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a full disk that there is no room, and of a folder that cannot be written how to name another."""
    try:
        yield
    except (OSError, NotImplementedError) as failure:  # the latter: a file system without locks
        if getattr(failure, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"the disk is full: {path.parent}.") from failure
        raise UserError(
            f"What is computed once cannot be kept in {path.parent}: {getattr(failure, 'strerror', '') or failure}. "
            "Set HFTL_CACHE to a folder that can be written to, or pass --cache_gb 0."
        ) from failure


def _raw(leaf: torch.Tensor) -> memoryview:
    return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
