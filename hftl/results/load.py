"""A folder that a run has left, or the Hub repository made of it, becomes a model again. Knows peft and the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import numpy as np
import peft
from torch import nn

from hftl.data.types import Labels
from hftl.errors import UserError, explain
from hftl.models.feature_model import restored
from hftl.models.pooled import pooled
from hftl.paths import expanded
from hftl.results.folder import FINISHED, TEST_ROWS
from hftl.tasks.base import Source, Task

if TYPE_CHECKING:
    from hftl.tasks.metrics.accumulator import Accumulator

NEVER_READ = ["checkpoints/*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.onnx", "*.onnx.data", "*.gguf"]
"""Files of a repository that are not fetched: pickles are never opened, and the others are other forms of the model."""


@dataclass
class Loaded:
    """A saved model, ready to predict."""

    model: nn.Module
    processor: Any
    task: Task
    labels: Labels
    columns: dict[str, str] = field(default_factory=dict)
    """Role -> the column that training read; empty where the folder does not say."""


def load_folder(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Loaded:
    """Load a folder that a run has written, or the Hub repository made of it; full model or adapter.

    Raises:
        UserError: there is no such folder or repository, or it holds no model of a task that hftl knows.
    """
    folder = fetched(str(name), revision)
    adapter = folder / "adapter_config.json"
    report = folder / FINISHED
    made = mapping_in(report, name) if report.is_file() else {}
    refuse_unreadable(str(name), folder, made)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} holds no config.json, so hftl has not written it. Pass the folder of a finished run.")
    config = mapping_in(folder / "config.json", name)
    try:
        task = task_of(str(name), config, made.get("task"))
        labels = task.labels_of(config)
    except (ValueError, TypeError, AttributeError, LookupError) as failure:
        raise UserError(f"{name} holds a config.json without labels ({failure}). Pass another folder.") from failure
    data: Any = made["data"] if isinstance(made.get("data"), dict) else {}
    columns, labels.values = data.get("columns"), [int(value) for value in data.get("values") or ()]
    task.cut_at(data.get("threshold"), labels)
    columns = {str(role): str(name) for role, name in columns.items()} if isinstance(columns, dict) else {}
    where = Source(str(folder), trust_remote_code=trust_remote_code)
    if not adapter.is_file():
        built = task.build(where, labels)
        return Loaded(restored(pooled(built.model, folder), folder).eval(), built.processor, task, labels, columns)
    if not any(folder.glob("adapter_model*.safetensors")):
        raise UserError(
            f"{name} holds an adapter, but no adapter_model.safetensors. Convert its weights to safetensors."
        )
    base = base_of(folder, name)
    model = peft.PeftModel.from_pretrained(pooled(task.build(base, labels).model, folder), str(folder))
    return Loaded(model.eval(), task.processor(where, model), task, labels, columns)


def metric_of(folder: Path) -> Accumulator:
    """The metric of a finished run of a study, holding its rows of test."""
    config = mapping_in(folder / "config.json", folder)
    made = mapping_in(folder / FINISHED, folder)
    task = task_of(str(folder), config, made.get("task"))
    labels = task.labels_of(config)
    task.cut_at(made["data"].get("threshold"), labels)
    metric = task.metric(labels)
    with np.load(folder / TEST_ROWS, allow_pickle=False) as held:
        metric.restore({name: held[name] for name in held.files})
    return metric


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
    place = expanded(base)
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
    """The folder itself, or a local copy of the Hub repository of that name; `owner/name/task` is a folder in one."""
    if expanded(name).is_dir():
        return expanded(name)
    repository, inside = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    wanted = [f"{inside}/*"] if inside else None
    try:
        copy = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=wanted, ignore_patterns=NEVER_READ
            )
        )
    except Exception as failure:  # the HTTP library's errors have no common base with the Hub's
        if sentence := explain("read", failure, name, revision=revision):
            raise UserError(sentence) from failure
        raise
    if inside and not (copy / inside).is_dir():
        raise UserError(f"{repository} on the Hub has no folder {inside}. Check the name.")
    return copy / inside


def refuse_unreadable(name: str, folder: Path, made: dict[str, Any]) -> None:
    """Raise `UserError` for a run on several tasks, each of which loads on its own, and for a pre-training."""
    if (tasks := made.get("tasks")) and not (folder / "config.json").is_file():
        several = " or ".join(f"{name.rstrip('/')}/{row['folder']}" for row in tasks[:4])
        raise UserError(f"{name} holds {len(tasks)} tasks, which load one at a time. Pass {several}.")
    task = Task.known().get(str(made.get("task")))
    if task is not None and "label" not in task.roles:
        script = made.get("usage", {}).get("next", "a recipe")
        raise UserError(f"{name} holds a pre-trained encoder, which predicts no label. Pass it to {script} as --model.")


def task_of(name: str, config: dict[str, Any], wrote: str | None = None) -> Task:
    """The task that wrote a folder, by its report; without one, the first that reads the config.

    Raises:
        UserError: nobody has imported the task that wrote the folder, or none reads such a config.
    """
    known = Task.known()
    if wrote and wrote not in known:
        raise UserError(
            f"{name} holds a model of the task {wrote!r}, which hftl does not have. Import the module that defines it, "
            "then call hftl.load: hftl's own commands know its own tasks alone."
        )
    for task in sorted(known.values(), key=lambda task: task.name != wrote):
        if task.reads(config):
            return task()
    found = (config.get("architectures") or ["none"])[0]
    raise UserError(f"{name} holds a {found}, which belongs to no task of hftl's. Pass the folder of a finished run.")
