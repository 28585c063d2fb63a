"""The folder that a run leaves behind: claimed, then written whole or not at all. Knows no task and reads no model.

It holds weights (or an adapter with every fresh module), processor, config with label names, recipe.yaml, report.json,
report.html and a model card. Nothing in it is a pickle, and nothing names this machine or a token.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from hftl.errors import UserError
from hftl.paths import expanded
from hftl.results.report.write import write as write_report
from hftl.settings.recipe_file import written
from hftl.train.cache.store import folder as cache_folder
from hftl.train.resume.checkpoints import last_checkpoint
from hftl.train.resume.stopping import Left

if TYPE_CHECKING:
    import torch

    from hftl.results.report.report import Report

FINISHED, CHECKPOINTS, PARTIAL = "report.json", "checkpoints", ".partial"
TEST_ROWS = "test_rows.npz"
"""Of a run that belongs to a study: the rows of test as its metric holds them."""
REPLACED = (
    *(FINISHED, "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "features.json"),
    *("generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"),
    *("cell.json", TEST_ROWS, "modules.json", "1_Pooling/config.json", "2_Dense/*"),
)
"""What of an earlier run would be read with a new one, were it left; a person's own files in the folder stay."""


class OutputFolder:
    """A run's folder in its three states: free, interrupted (it has checkpoints), finished (it has a report)."""

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)  # as the Trainer does
        self.checkpoints = self.path / CHECKPOINTS
        self.partial = self.path / PARTIAL

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint that is whole as far as names and sizes tell."""
        return last_checkpoint(self.checkpoints)

    @property
    def left(self) -> Left:
        """What a run that was cut short has left here."""
        if self.checkpoint is not None:
            how = f"Add --resume to go on from the last checkpoint in {self.path}, or --overwrite to start again."
            return Left(how, resumable=True)
        if (self.path / FINISHED).is_file():
            return Left(f"{self.path} holds a finished run.")
        return Left(f"No checkpoint was written to {self.path} yet: run it again without --resume.")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes here meanwhile: the run of another process is refused, and a dead one holds nothing.

        The lock lies in hftl's cache: in the folder it would be one more file of it, and gone with --overwrite.

        Raises:
            UserError: another run holds it.
        """
        if os.environ.get("RANK", "0") != "0":  # of several processes of a run, the first
            yield
            return
        name = hashlib.sha256(str(self.path.absolute().resolve()).encode()).hexdigest()[:32]
        place = cache_folder() / "locks" / f"{name}.lock"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock: Any = FileLock(place).acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another run writes to {self.path} at this moment. Wait for its end, or pass another --output_dir."
            ) from None
        except OSError:  # a cache that cannot be written to is said where it is used
            lock = contextlib.nullcontext()
        with lock:
            yield

    def claim(self, *, resume: bool, overwrite: bool, dry: bool = False) -> None:
        """Make sure that nothing of an earlier run is lost unasked. Changes nothing: the run may yet fail on its data.

        Raises:
            UserError: the folder holds a finished or an interrupted run, foreign files, or cannot be written.
        """
        if dry:
            return
        if self.path.is_file():
            raise UserError(f"--output_dir {self.path} is a file. Pass a folder.")
        finished, interrupted = (self.path / FINISHED).is_file(), self.checkpoint is not None
        if finished and not overwrite and not resume:
            raise UserError(
                f"{self.path} holds a finished run. Pass --overwrite to replace it, or another --output_dir."
            )
        if resume and finished and not interrupted:
            raise UserError(
                f"The run in {self.path} is finished; there is nothing to resume. Pass --overwrite to run it again."
            )
        if resume and not interrupted:
            raise UserError(f"{self.path} holds no checkpoint to resume from. Leave --resume out to start.")
        if interrupted and not resume and not overwrite:
            raise UserError(
                f"{self.path} holds an interrupted run. Pass --resume to go on, or --overwrite to start again."
            )
        own = finished or interrupted or self.partial.is_dir()  # what a kill left half in place is this run's, too
        foreign = self.path.is_dir() and any(p.name not in (CHECKPOINTS, PARTIAL) for p in self.path.iterdir())
        if foreign and not (own or overwrite):
            raise UserError(f"{self.path} holds other files. Pass an empty --output_dir, or --overwrite to add to it.")
        there = next(p for p in (self.path.absolute(), *self.path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "cannot be written to" if there.is_dir() else "is a file"
            raise UserError(f"--output_dir {self.path} cannot be made: {there} {why}. Pass another --output_dir.")

    def forget_checkpoints(self) -> None:
        """Delete the checkpoints of this folder's run, finished or abandoned, and nothing that others put there."""
        for old in self.checkpoints.glob("checkpoint-*"):
            shutil.rmtree(old, ignore_errors=True)
        self.tidy()

    def tidy(self) -> None:
        """Take away what a run that came to nothing has left empty."""
        for folder in (self.checkpoints, self.path):
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()

    def write(
        self,
        model: Any,
        processor: Any,
        report: Report,
        recipe: dict[str, Any],
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write everything beside the folder's old content first, then swap: a full disk loses nothing.

        Args:
            weights: the model's state, where the model itself holds only a part of it.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.partial, ignore_errors=True)
            model.save_pretrained(self.partial, state_dict=weights)
            self._fill(self.partial, model, processor, report, recipe)
            undo.pop_all()
        self._remove_old()
        for new in sorted(self.partial.iterdir(), key=lambda path: path.name == FINISHED):  # the report last
            if (self.path / new.name).is_dir():
                shutil.rmtree(self.path / new.name)
            new.replace(self.path / new.name)
        self.partial.rmdir()
        self.forget_checkpoints()

    def write_report(self, report: Report, recipe: dict[str, Any]) -> None:
        """Write the report alone, where the models lie in folders of their own; then the run is finished."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_old()
        _tell(self.path, report, recipe)
        self.forget_checkpoints()

    def _remove_old(self) -> None:
        for old in [path for pattern in REPLACED for path in self.path.glob(pattern)]:
            old.unlink()

    def _fill(self, folder: Path, model: Any, processor: Any, report: Report, recipe: dict[str, Any]) -> None:
        processor.save_pretrained(folder)
        if report.adapter:
            finish_adapter(folder, model, report)
        _tell(folder, report, recipe)


def _tell(folder: Path, report: Report, recipe: dict[str, Any]) -> None:
    """Write what a run was asked for, and what it showed."""
    text = written(recipe, report.revision, report.data.get("fingerprints", {}))
    (folder / "recipe.yaml").write_text(text, "utf-8")
    write_report(report, folder)


def finish_adapter(folder: Path, model: Any, report: Report) -> None:
    """Give an adapter what peft leaves out: the labels and preprocessing of its task, and a base that can be found.

    A bare `timm:NAME` is no name that peft could load, so its weights go along, in `base/`.
    """
    base = model.get_base_model()
    if hasattr(base, "pooling"):  # a PooledModel, whose adapter does not say what is pooled
        base.say(folder)
    else:
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = report.model
    settings["revision"] = report.revision if len(report.revision) == 40 else None  # a commit, not a digest
    if report.model.startswith("timm:"):
        settings["base_model_name_or_path"] = "base"
        copy.deepcopy(model).unload().save_pretrained(folder / "base")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a model that is sharded over processes (FSDP, ZeRO-3), gathered; None where each has them all.

    Every process has to call this.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)


def unwrap(trainer: Any) -> Any:
    """The trained model without what accelerate put around it."""
    return trainer.accelerator.unwrap_model(trainer.model)
