"""Arrays of rows on disk, found by the content of the rows. Knows files, locks and limits; no model and no data set.

A store is a folder of shards, `root/space/shard/`. A shard is written under another name, renamed when it is whole, and
never changed after that, so that a killed writer leaves nothing that a reader could see. What has not been used for
longest goes first when room is needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import filelock
import numpy as np
import torch

from hftl.errors import UserError
from hftl.shards import INDEX, Reader, Row, Shard

PARTIAL, LOCK = ".partial", ".lock"
FULLEST = 0.95
"""Of the disk, what may be in use once a shard is written."""


class NoRoom(Exception):  # noqa: N818  # an answer, not an error: whoever asks computes anew
    """The limit or the disk does not hold what was to be kept; the message says which."""


def folder() -> Path:
    """Where rows are kept: $HFTL_CACHE, else hftl in $XDG_CACHE_HOME, else ~/.cache/hftl."""
    if own := os.environ.get("HFTL_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hftl"


class Store:
    """The rows of one space.

    Args:
        space: names what was computed (model, place, precision): only rows of one space can stand for each other.
        limit: bytes that all spaces under `root` may take together.
        root: by default `folder()`.
    """

    def __init__(self, space: str, limit: int, root: Path | None = None) -> None:
        self.root = root or folder()
        self.path, self.limit = self.root / space, limit
        self._shards: dict[str, Shard] = {}

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Positions in `keys` of the rows that are not there yet; of several equal keys the first alone."""
        self._look()
        seen = {key for shard in self._shards.values() for key in shard.numbers}
        found = []
        for position, key in enumerate(keys):
            if key not in seen:
                seen.add(key)
                found.append(position)
        return found

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time write to this space; clears away what a killed one has left."""
        with _writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / LOCK)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                print("Another run is computing the same rows; waiting for it.")
                lock.acquire()
        try:
            for left in self.path.glob(f"*{PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Writer]:
        """Publish what is added when the block ends; nothing where it ends with an exception.

        Raises:
            NoRoom: as `Writer.add`.
        """
        name = uuid.uuid4().hex[:16]
        scratch = self.path / (name + PARTIAL)
        writer = Writer(scratch, self)
        try:
            with _writable(self.path):
                scratch.mkdir(parents=True)
            yield writer
            if writer.keys:
                with _writable(self.path):
                    writer.close()
                    scratch.rename(self.path / name)
        finally:
            writer.abandon()
            shutil.rmtree(scratch, ignore_errors=True)

    def reader(self, keys: Sequence[bytes]) -> Reader:
        """All these rows, to be had by their position in `keys`.

        Raises:
            KeyError: one of them is not there.
        """
        self._look()
        shards = list(self._shards.values())
        where = {key: (i, n) for i, shard in enumerate(shards) for key, n in shard.numbers.items()}
        places = np.array([where[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        for i in set(places[:, 0].tolist()):
            with contextlib.suppress(OSError):
                os.utime(shards[i].path)  # what is read is not the first to go
        return Reader(shards, places)

    def make_room(self, needed: int) -> None:
        """Delete what other spaces have not used for longest until `needed` more bytes fit.

        Raises:
            NoRoom: they do not.
        """
        shards = {path.parent: _bytes(path.parent) for path in self.root.glob(f"*/*/{INDEX}")}
        pending = sum(_bytes(path) for path in self.path.glob(f"*{PARTIAL}"))
        others = sorted((s for s in shards if s.parent != self.path), key=lambda s: s.stat().st_mtime)
        disk = shutil.disk_usage(self.path)
        over = max(sum(shards.values()) + pending + needed - self.limit, disk.used + needed - int(FULLEST * disk.total))
        while over > 0 and others:
            old = others.pop(0)
            over -= shards[old]
            shutil.rmtree(old, ignore_errors=True)
        if over > 0:
            raise NoRoom(
                f"{(needed + pending) / 1e9:.2f} GB more do not fit into the {self.limit / 1e9:.2f} GB allowed."
            )

    def _look(self) -> None:
        """Read the indexes of the shards that have appeared, and drop damaged ones."""
        current = {path.parent.name: path.parent for path in self.path.glob(f"*/{INDEX}") if PARTIAL not in str(path)}
        self._shards = {name: shard for name, shard in self._shards.items() if name in current}
        for name in current.keys() - self._shards.keys():
            try:
                self._shards[name] = Shard(current[name])
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as failure:
                warnings.warn(f"{current[name]} is damaged ({failure}); it is computed again.", stacklevel=2)
                shutil.rmtree(current[name], ignore_errors=True)


class Writer:
    """Rows of a shard to be; made by `Store.writer`."""

    check_every = 64_000_000
    """Bytes between two looks at the room that is left."""

    def __init__(self, scratch: Path, store: Store) -> None:
        self.keys: list[bytes] = []
        self._scratch, self._store = scratch, store
        self._files: list = []
        self._kinds: list[str] = []
        self._shapes: list[list[tuple[int, ...]]] = []
        self._unchecked = self.check_every

    def add(self, keys: Sequence[bytes], rows: Sequence[Row]) -> None:
        """Write rows: tuples of tensors without a batch dimension, as many and of the same types in each row.

        Raises:
            NoRoom: the limit is reached, or the disk is full.
        """
        if not rows:
            return
        if not self._files:
            self._files = [(self._scratch / f"leaf{i}.bin").open("wb") for i in range(len(rows[0]))]
            self._kinds = [str(leaf.dtype).removeprefix("torch.") for leaf in rows[0]]
            self._shapes = [[] for _ in rows[0]]
        size = sum(leaf.nbytes for row in rows for leaf in row)
        self._unchecked += size
        if self._unchecked >= self.check_every:
            self._store.make_room(size)
            self._unchecked = 0
        with _writable(self._store.path):
            for key, row in zip(keys, rows, strict=True):
                self.keys.append(bytes(key))
                for leaf, file, shapes in zip(row, self._files, self._shapes, strict=True):
                    shapes.append(tuple(leaf.shape))
                    file.write(_raw(leaf))

    def close(self) -> None:
        """Bring everything to the disk, the index last."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._store.make_room(0)
        index: dict[str, Any] = {"keys": np.frombuffer(b"".join(self.keys), dtype=np.uint8).reshape(len(self.keys), -1)}
        for i, (kind, shapes) in enumerate(zip(self._kinds, self._shapes, strict=True)):
            index |= {
                f"kind{i}": np.array(kind),
                f"shapes{i}": np.array(shapes, dtype=np.int32).reshape(len(shapes), -1),
            }
        with (self._scratch / INDEX).open("wb") as file:
            np.savez(file, **index)
            file.flush()
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Let go of the files."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()


def _raw(leaf: torch.Tensor) -> memoryview:
    return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _bytes(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += file.stat().st_size
    return total


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Say of a full disk that there is no room, and of a folder that cannot be written how to name another."""
    try:
        yield
    except OSError as failure:
        if failure.errno == 28:  # ENOSPC
            raise NoRoom("the disk is full.") from failure
        raise UserError(
            f"What is computed once cannot be kept in {path.parent}: {failure.strerror or failure}. Set HFTL_CACHE to "
            "a folder that can be written to, or pass --cache_gb 0."
        ) from failure
