"""The folder that a run leaves behind: claimed, written whole or not at all, loaded back. Knows peft and the Hub.

It holds weights (or an adapter with every fresh module), processor, config with label names, recipe.yaml, report.json,
report.html and a model card. Nothing in it is a pickle, and nothing names this machine or a token.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import peft
import torch
import yaml
from torch import nn

from hftl.data import Labels
from hftl.errors import UserError
from hftl.feature_model import restored
from hftl.tasks.base import Source, Task

if TYPE_CHECKING:
    from hftl.report import Report

FINISHED, CHECKPOINTS, PARTIAL = "report.json", "checkpoints", ".partial"
REPLACED = (
    *(FINISHED, "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "features.json"),
    *("generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"),
)
"""What of an earlier run would be read with a new one, were it left; a person's own files in the folder stay."""


class OutputFolder:
    """A run's folder in its three states: free, interrupted (it has checkpoints), finished (it has a report)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()  # as the Trainer does
        self.checkpoints = self.path / CHECKPOINTS
        self.partial = self.path / PARTIAL

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint that is whole: of its files trainer_state.json is written last."""
        found = [p.parent for p in self.checkpoints.glob("checkpoint-*/trainer_state.json") if p.stat().st_size]
        numbered = {int(p.name.removeprefix("checkpoint-")): p for p in found if p.name[11:].isdigit()}
        return numbered[max(numbered)] if numbered else None

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
        foreign = self.path.is_dir() and any(p.name not in (CHECKPOINTS, PARTIAL) for p in self.path.iterdir())
        if foreign and not (finished or interrupted or overwrite):
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
        for old in [path for pattern in REPLACED for path in self.path.glob(pattern)]:
            old.unlink()
        for new in sorted(self.partial.iterdir(), key=lambda path: path.name == FINISHED):  # the report last
            if (self.path / new.name).is_dir():
                shutil.rmtree(self.path / new.name)
            new.replace(self.path / new.name)
        self.partial.rmdir()
        self.forget_checkpoints()

    def write_report(self, report: Report, recipe: dict[str, Any]) -> None:
        """Write the report alone, where the models lie in folders of their own; then the run is finished."""
        self.path.mkdir(parents=True, exist_ok=True)
        for old in [path for pattern in REPLACED for path in self.path.glob(pattern)]:
            old.unlink()
        (self.path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "utf-8")
        report.write(self.path)
        self.forget_checkpoints()

    def _fill(self, folder: Path, model: Any, processor: Any, report: Report, recipe: dict[str, Any]) -> None:
        processor.save_pretrained(folder)
        if report.adapter:
            finish_adapter(folder, model, report)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "utf-8")
        report.write(folder)


def finish_adapter(folder: Path, model: Any, report: Report) -> None:
    """Give an adapter what peft leaves out: the labels and preprocessing of its task, and a base that can be found.

    A bare `timm:NAME` is no name that peft could load, so its weights go along, in `base/`.
    """
    base = model.get_base_model()
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


@dataclass
class Loaded:
    """A saved model, ready to predict."""

    model: nn.Module
    processor: Any
    task: Task
    labels: Labels


def load_folder(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Loaded:
    """Load a folder that a run has written, or the Hub repository made of it; full model or adapter.

    Raises:
        UserError: there is no such folder or repository, or it holds no model of a task that hftl knows.
    """
    folder = fetched(str(name), revision)
    adapter = folder / "adapter_config.json"
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} holds no config.json, so hftl has not written it. Pass the folder of a finished run.")
    config = mapping_in(folder / "config.json", name)
    refuse_unlabelled(str(name), folder)
    try:
        task, labels = task_of_architecture(str(name), config), labels_of(config)
    except (ValueError, TypeError, AttributeError, LookupError) as failure:
        raise UserError(f"{name} holds a config.json without labels ({failure}). Pass another folder.") from failure
    labels.problem_type = task.problem_type or labels.problem_type
    where = Source(str(folder), trust_remote_code=trust_remote_code)
    if not adapter.is_file():
        built = task.build(where, labels)
        return Loaded(restored(built.model, folder).eval(), built.processor, task, labels)
    if not any(folder.glob("adapter_model*.safetensors")):
        raise UserError(
            f"{name} holds an adapter, but no adapter_model.safetensors. Convert its weights to safetensors."
        )
    base = base_of(folder, name)
    model = peft.PeftModel.from_pretrained(task.build(base, labels).model, str(folder))
    return Loaded(model.eval(), task.processor(where, model), task, labels)


def base_of(folder: Path, name: str | Path) -> Source:
    """The base model that an adapter names: a Hub id, `base/` beside it or, where the folder is local, any folder.

    Raises:
        UserError: it names none, or something fetched from the Hub names a place on this machine.
    """
    settings = mapping_in(folder / "adapter_config.json", name)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base.strip() or not isinstance(revision, str | None):
        raise UserError(f"{name} holds an adapter_config.json that names no base model. Write its Hub id there.")
    if base == "base":
        return Source(str(folder / "base"))
    place = Path(base).expanduser()
    if not Path(name).is_dir() and (place.is_absolute() or ".." in place.parts or place.exists()):
        raise UserError(
            f"{name} is an adapter from the Hub, and names the folder {base!r} of this machine as its base model. "
            "Fetch it into a folder, and write the base model's Hub id into its adapter_config.json."
        )
    return Source(base, revision=revision)


def mapping_in(file: Path, name: str | Path) -> dict[str, Any]:
    """The object that a JSON file of a folder or repository holds.

    Raises:
        UserError: it is not JSON, or holds something else.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as failure:
        raise UserError(f"{name} holds a {file.name} that is not JSON ({failure}). Pass another folder.") from failure
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a {file.name} that is no JSON object. Pass another folder.")
    return found


def fetched(name: str, revision: str | None) -> Path:
    """The folder itself, or a local copy of the Hub repository of that name."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, ignore_patterns=["checkpoints/*"]))
    except (OSError, ValueError) as failure:
        raise UserError(
            f"{name} is neither a folder nor a Hub repository that can be reached now. Check the name."
        ) from failure


def refuse_unlabelled(name: str, folder: Path) -> None:
    """Raise `UserError` for the folder of a pre-training, whose model knows no labels."""
    report = folder / FINISHED
    made = mapping_in(report, name) if report.is_file() else {}
    if str(made.get("task")) in Task.known() and "label" not in Task.known()[made["task"]].roles:
        script = made.get("usage", {}).get("next", "a recipe")
        raise UserError(f"{name} holds a pre-trained encoder, which predicts no label. Pass it to {script} as --model.")


def task_of_architecture(name: str, config: dict[str, Any]) -> Task:
    """The task whose auto class makes the architecture that a config names."""
    architecture = (config.get("architectures") or ["none"])[0]
    if "num_classes" in config and "architecture" in config:  # timm's own form
        architecture = "TimmWrapperForImageClassification"
    for task in Task.known().values():
        if architecture.endswith(task.auto.removeprefix("AutoModel")):
            return task()
    raise UserError(
        f"{name} holds a {architecture}, which belongs to no task of hftl's. Pass the folder of a finished run."
    )


def labels_of(config: dict[str, Any]) -> Labels:
    """Label names and kind of problem from a saved config."""
    problem = config.get("problem_type") or "single_label_classification"
    if problem == "regression":
        return Labels(problem, [])
    if names := config.get("label_names"):
        return Labels(problem, list(names))
    id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return Labels(problem, [name for _, name in sorted(id2label.items(), key=lambda pair: int(pair[0]))])
