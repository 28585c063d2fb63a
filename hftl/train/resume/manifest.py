"""What a whole checkpoint holds, written last: so that one cut short is known from a whole one. Knows files alone.

A folder begins with an empty manifest and ends with a full one, which lists every file with its size and digest. A
folder that never had one was written by somebody else, and is taken on trust.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

NAME = "manifest.json"
STATE = "trainer_state.json"
CHUNK = 1 << 20


def begin(folder: Path) -> None:
    """Make the folder, empty but for a manifest that says that it is not whole; what lay there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder, "")


def seal(folder: Path) -> None:
    """Bring every file to the disk, then the manifest of them all.

    Raises:
        OSError: the disk is full, or gave out; then the folder is still not whole.
    """
    held = {name: [path.stat().st_size, digest(path)] for name, path in _files(folder)}
    for _, path in _files(folder):
        _sync(path)
    for inner in {path.parent for _, path in _files(folder)}:
        _sync(inner)
    _write(folder, json.dumps(held, indent=1))
    _sync(folder.parent)


def fault(folder: Path, *, deep: bool = True) -> str:
    """What is wrong with a checkpoint, in a few words; empty where it is whole.

    Args:
        deep: compare digests, too, which reads every byte; else names and sizes.
    """
    try:
        listed = (folder / NAME).read_text("utf-8") if (folder / NAME).exists() else None
        if listed == "":
            return "it was not written to its end"
        if not (folder / STATE).is_file():
            return f"{STATE} is missing"
        json.loads((folder / STATE).read_text("utf-8")).get("global_step")
        return "" if listed is None else _compared(dict(_files(folder)), json.loads(listed), deep)
    except (OSError, ValueError, TypeError, AttributeError) as failure:
        return f"{STATE} or {NAME} does not read ({failure})"


def _compared(there: dict[str, Path], listed: dict[str, list], deep: bool) -> str:
    for name, (size, wanted) in listed.items():
        if name not in there:
            return f"{name} is missing"
        if (found := there[name].stat().st_size) != size:
            return f"{name} has {found} bytes, not {size}"
        if deep and digest(there[name]) != wanted:
            return f"{name} has changed since it was written"
    return ""


def digest(path: Path) -> str:
    """The content of a file in 32 hexadecimal digits. It tells a damaged file, and not a forged one."""
    summed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            summed.update(chunk)
    return summed.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NAME:
            yield path.relative_to(folder).as_posix(), path


def _write(folder: Path, text: str) -> None:
    part = folder / f"{NAME}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / NAME)
    _sync(folder)


def _sync(path: Path) -> None:
    """Bring a file, or the list of names in a folder, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
