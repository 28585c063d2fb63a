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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import filelock
import numpy as np

from hftl.paths import expanded
from hftl.train.cache.shards import INDEX, Reader, Shard
from hftl.train.cache.writer import NoRoom, Writer, writing

PARTIAL, LOCK = ".partial", ".lock"
FULLEST = 0.95
"""Of the disk, what may be in use once a shard is written."""


def folder() -> Path:
    """Where rows are kept: $HFTL_CACHE, else hftl in $XDG_CACHE_HOME, else ~/.cache/hftl."""
    if own := os.environ.get("HFTL_CACHE"):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hftl"


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
        self._where: dict[bytes, tuple[str, int]] = {}
        self._used: set[str] = set()
        self._before = {path.name for path in self.path.glob("*")}

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Positions in `keys` of the rows that are not there yet; of several equal keys the first alone."""
        self._look()
        self._use({self._where[key][0] for key in keys if key in self._where})
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key not in self._where:
                first.setdefault(key, position)
        return list(first.values())

    def missing_of(self, parts: Iterable[Sequence[bytes]]) -> list[np.ndarray]:
        """As `missing` for each part; what two parts share counts for the first alone.

        Computed in another batch a row may differ in its last bits: were there two, chance would say which one is read.
        """
        found, seen = [], set[bytes]()
        for keys in parts:
            positions = [n for n in self.missing(keys) if keys[n] not in seen]
            seen.update(keys[n] for n in positions)
            found.append(np.asarray(positions, dtype=np.int64))
        return found

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time write to this space; clears away what a killed one has left.

        Where nothing can be written there is nothing to wait for: rows can still be read, and `writer` refuses.
        """
        lock = filelock.FileLock(self.path / LOCK)
        with contextlib.suppress(OSError, NotImplementedError):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                print("Another run is computing the same rows; waiting for it.", flush=True)
                lock.acquire()
        try:
            self._clear()
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
        scratch, guard = self.path / (name + PARTIAL), filelock.FileLock(self.path / (name + LOCK))
        writer = Writer(scratch, self.make_room)
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                guard.acquire(timeout=0)  # tells a scratch folder in use from one that a killed writer left
                scratch.mkdir()
            yield writer
            if writer.keys and writer.whole:
                with writing(self.path):
                    writer.close()
                    scratch.rename(self.path / name)
                self._used.add(name)
        finally:
            writer.abandon()
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(guard.lock_file)
            guard.release()

    def reader(self, keys: Sequence[bytes]) -> Reader:
        """All these rows, to be had by their position in `keys`.

        Raises:
            KeyError: one of them is not there.
        """
        self._look()
        names, rows = zip(*(self._where[key] for key in keys), strict=True) if keys else ((), ())
        self._use(set(names))
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        places = np.array([[order[name] for name in names], rows], dtype=np.int64).T.reshape(-1, 2)
        return Reader([self._shards[name] for name in order], places)

    def make_room(self, needed: int) -> int:
        """Delete what has not been used for longest until `needed` more bytes fit; return the bytes that then do.

        Raises:
            NoRoom: they do not, whatever is deleted; then nothing is.
        """
        self._clear()
        held = {path.parent: _bytes(path.parent) for path in self.root.glob(f"*/*/{INDEX}")}
        held |= {path: _bytes(path) for path in self.root.glob(f"*/*{PARTIAL}")}
        taken = sum(held.values())
        disk = shutil.disk_usage(self.path)
        free = min(self.limit - taken, disk.free - int((1 - FULLEST) * disk.total))
        spare = sorted((when, path) for path in held if (when := self._last_use(path)) is not None)
        if free + sum(held[path] for _, path in spare) >= needed:
            while free < needed and spare:
                _, path = spare.pop(0)
                free += held[path] if _drop(path) else 0
        if free < needed:
            raise NoRoom(
                f"{_size(needed)} more do not fit: {_size(taken)} of the {_size(self.limit)} allowed are taken, "
                f"and the disk has {_size(disk.free)} free."
            )
        return free

    def _last_use(self, path: Path) -> float | None:
        """When a shard was last used; None for one that must stay: being written, or in use here."""
        when = 0.0
        with contextlib.suppress(OSError):  # deleted meanwhile
            when = path.stat().st_mtime
        own = path.parent == self.path and (path.name in self._used or path.name not in self._before)
        return None if own or path.name.endswith(PARTIAL) else when

    def _use(self, names: set[str]) -> None:
        """Keep these shards from being the first to go."""
        self._used |= names
        for name in names:
            with contextlib.suppress(OSError):
                os.utime(self.path / name)

    def _clear(self) -> None:
        """Delete what killed writers have left, of all spaces."""
        for left in self.root.glob(f"*/*{PARTIAL}"):
            guard = filelock.FileLock(left.with_suffix(LOCK))
            with contextlib.suppress(OSError, NotImplementedError):
                guard.acquire(timeout=0)
                shutil.rmtree(left, ignore_errors=True)
                os.unlink(guard.lock_file)
            guard.release()

    def _look(self) -> None:
        """Read the indexes of the shards that have appeared, and drop damaged ones.

        A shard in use that another process has deleted is still mapped, and serves on.
        """
        there = {p.parent.name for p in self.path.glob(f"*/{INDEX}") if not p.parent.name.endswith(PARTIAL)}
        before = len(self._shards)
        self._shards = {name: shard for name, shard in self._shards.items() if name in there | self._used}
        gone, new = before - len(self._shards), there - self._shards.keys()
        for name in new:
            try:
                self._shards[name] = Shard(self.path / name)
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as failure:
                if not (self.path / name).exists():
                    continue  # another process needed the room
                warnings.warn(f"{self.path / name} is damaged ({failure}); it is computed again.", stacklevel=3)
                _drop(self.path / name)
        if gone or new:
            self._where = {
                key: (name, n) for name, shard in sorted(self._shards.items()) for key, n in shard.numbers.items()
            }


def _bytes(path: Path) -> int:
    total = 0
    for file in path.glob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            total += file.stat().st_size
    return total


def _drop(path: Path) -> bool:
    """Delete a shard so that no process sees half of it; whether it is gone."""
    away = path.with_name(path.name + PARTIAL)
    try:
        path.rename(away)
    except OSError:
        return not path.exists()
    shutil.rmtree(away, ignore_errors=True)
    return True


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e7 else f"{count / 1e6:.3f} MB"
