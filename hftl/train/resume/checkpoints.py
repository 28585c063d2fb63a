"""Find the last whole checkpoint of a run, and say of one that cannot be taken up why. Knows files, no trainer."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from hftl.errors import UserError
from hftl.train.resume import manifest


@contextmanager
def fitting(checkpoint: str | None) -> Iterator[None]:
    """Say of a checkpoint that cannot be taken up that it is damaged, or another run's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except AssertionError as failure:
        if "device to be set" not in str(failure):
            raise
        raise UserError(
            "Under FSDP a run whose optimizer remembers nothing, such as sgd, cannot be resumed. Pass --overwrite to "
            "start again, with another --optim."
        ) from failure
    except UnpicklingError as failure:
        raise UserError(
            f"{checkpoint} holds a file that is damaged, or is a pickle with more than tensors in it, which is not "
            "opened. Delete that folder to go on from the checkpoint before, or pass --overwrite to start again."
        ) from failure
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as failure:
        reason = textwrap.shorten(str(failure), 160, placeholder=" ...").rstrip(".")
        raise UserError(
            f"The run cannot go on from {checkpoint}: {reason}. Pass the --model, --data and --strategy that it was "
            "started with, or --overwrite to start again."
        ) from failure


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
