"""Find the last whole checkpoint of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hftl.errors import UserError
from hftl.train.resume import manifest


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that is whole as far as names and sizes tell."""
    return next((path for path in _numbered(folder) if not _fault(path, deep=False)), None)


def sound_checkpoint(folder: Path) -> Path:
    """The last checkpoint that is whole to the byte; what is newer and damaged is deleted, and said.

    Raises:
        UserError: none is whole.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _numbered(folder):
        if not (fault := _fault(path)):
            for newer, what in damaged:
                print(f"{newer.name} is damaged: {what}. The run goes on from {path.name}.", flush=True)
                shutil.rmtree(newer, ignore_errors=True)
            return path
        damaged.append((path, fault))
    which = f": of {damaged[0][0].name}, {damaged[0][1]}" if damaged else ""
    raise UserError(f"{folder.parent} holds no whole checkpoint{which}. Pass --overwrite to start again.")


def _numbered(folder: Path) -> list[Path]:
    """The folders of checkpoints, the last first."""
    found = {int(p.name[11:]): p for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()}
    return [found[number] for number in sorted(found, reverse=True)]


def _fault(path: Path, deep: bool = True) -> str:
    """What is wrong with a checkpoint, or with the best one, which the run would end with."""
    if fault := manifest.fault(path, deep=deep):
        return fault
    best = json.loads((path / manifest.STATE).read_text("utf-8")).get("best_global_step")
    other = path.parent / f"checkpoint-{best}"
    if best and other != path and (fault := manifest.fault(other, deep=deep)):
        return f"the best one, {other.name}, is: {fault}"
    return ""
