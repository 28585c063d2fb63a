"""What one run showed: numbers with their n and interval, where they came from, and how to say it.

A dataclass that writes three files (report.json, report.html, README.md) and reads the first one back. Knows nothing of
training: whoever ran it fills in the fields.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hftl import privacy, verdict, wording
from hftl.errors import UserError
from hftl.plain import plain

if TYPE_CHECKING:
    from hftl.data import Check
    from hftl.metrics import Score

CHANGED = {
    "--strategy",
    "--output_dir",
    "--overwrite",
    "--resume",
    "--source_only",
    "--classifier",
    "--layers",
    "--pool",
}

PLACES = ("model", "folder", "data", "checks", "settings", "tasks", "adaptation")
"""Fields that may name a path of the machine; examples from the data are left as they are."""


@dataclass
class Report:
    """One finished run. `Recipe.run()` returns it; `Report.from_folder(folder)` reads it back."""

    task: str
    """Pipeline tag, such as `text-classification`."""
    model: str
    """The base model, as the user named it."""
    strategy: str = "Full"
    headline: str = "accuracy"
    """Name of the metric that chose the checkpoint; a key of `valid` and `test`."""
    test: dict[str, Score] = field(default_factory=dict)
    valid: dict[str, Score] = field(default_factory=dict)
    target: dict[str, Score] = field(default_factory=dict)
    """On labelled rows of a target domain, which nothing was chosen by unless `adaptation` says so."""
    domains: dict[str, dict[str, Score]] = field(default_factory=dict)
    """On test, for each domain in it."""
    adaptation: dict[str, Any] = field(default_factory=dict)
    """Of a run with unlabelled target rows: what `hftl.adaptation.told` gives, and `source_only` where it was run."""
    seconds: float = 0.0
    """Wall time of training, evaluation on valid included."""
    startup: dict[str, float] = field(default_factory=dict)
    """Wall time in seconds of each stage of the start, in order: imports, data, model, ..., first step."""
    examples_per_second: float = 0.0
    forward_passes: float = 0.0
    """Work, in forward passes over the training set; a backward pass counts 2."""
    trainable: int = 0
    total: int = 0
    """Parameters."""
    peak_memory: int = 0
    """Bytes, of the process that held the most."""
    processes: int = 1
    seed: int = 42
    revision: str = ""
    """Commit of the base model, or sha256 of its weights."""
    problem_type: str = "single_label_classification"
    labels: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """source, rows (split -> n), fingerprints (split -> sha256), columns (role -> column), notes (sentences)."""
    checks: list[Check] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """`TrainerState.log_history`: rows with `loss`, rows with `eval_loss` and `eval_<metric>`; all with epoch, step."""
    confusion: list[list[int]] = field(default_factory=list)
    """On test; rows are the true class, columns the predicted one."""
    calibration: list[dict[str, Any]] = field(default_factory=list)
    """On test, by bin: low, high, confidence, accuracy, count."""
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """The most confidently wrong test examples: text or image (a data: URI), label, prediction, confidence."""
    augmented: list[dict[str, str]] = field(default_factory=list)
    """Some training rows `before` and `after` augmentation: texts, or images as data: URIs."""
    usage: dict[str, str] = field(default_factory=dict)
    """The task's words for how the model is used: see `hftl.tasks.base.Task.usage`."""
    rates: list[dict[str, Any]] = field(default_factory=list)
    """By module: depth, module, parameters, and rates at equal steps of the run."""
    unsafe: list[str] = field(default_factory=list)
    """What the user allowed that can run foreign code, in sentences."""
    reproduce: list[str] = field(default_factory=list)
    """What to know before running it again: what was not deterministic, in sentences."""
    license: str = ""
    """Licence of the result, as a Hub identifier. Left out of the card where it is not given."""
    adapter: bool = False
    """Whether the folder holds an adapter and not full weights."""
    beside: bool = False
    """Whether a classifier lies beside the model, which hftl reads and plain transformers does not."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """Of a run on several tasks, each with its folder; `single`, `multi` and `difference` are scores on test."""
    folder: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: NaN and infinity are None.

        What looks like a token is left out, and of a path of this machine no more is kept than `privacy.shared` does.
        """
        made = {f.name: plain(getattr(self, f.name), f.name) for f in dataclasses.fields(self)}
        made["command"] = privacy.shared_command(made["command"])
        return made | {name: privacy.shared(made[name]) for name in PLACES}

    def json(self) -> str:
        """Strict JSON (RFC 8259), in UTF-8."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write report.json, report.html and README.md (the model card); each is replaced whole or left as it was.

        Raises:
            UserError: the folder cannot be written, e.g. because the disk is full.
        """
        from hftl import card, page

        folder = Path(folder)
        self.folder = self.folder or folder.as_posix()
        # The page and the card are made from what report.json holds, so that they cannot show what it must not.
        shown = Report.from_dict(self.as_dict())
        files = {"report.json": self.json(), "report.html": page.html(shown), "README.md": card.markdown(shown)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                part = folder / f".{name}.part"
                try:
                    part.write_text(content, encoding="utf-8", newline="\n")
                    part.replace(folder / name)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise UserError(
                f"Expected to write the report to {folder}, but: {why}. Make room there, or pass another --output_dir."
            ) from error

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Report:
        """Read `report.json` of a finished run. What JSON cannot hold returns as NaN in a score, as None elsewhere.

        Raises:
            UserError: there is no report.json, or it was not written by hftl.
        """
        path = Path(folder) / "report.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"Expected report.json in {folder}; there is none. Name a finished run's folder.") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f"Expected JSON in {path}; it cannot be read ({error}). Run the recipe again.") from None
        if not isinstance(values, dict) or not {"task", "model", "test", "valid"} <= values.keys():
            raise UserError(f"Expected a report of hftl in {path}; it lacks task, model, test or valid.")
        try:
            return cls.from_dict(values | {"folder": Path(folder).as_posix()})  # where it lies now
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"Expected a report of hftl in {path}; it is damaged ({error!r}). Run it again.") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `as_dict`. Names that this version does not know are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        for name in {"seconds", "examples_per_second", "forward_passes"} & kept.keys():
            kept[name] = _number(kept[name])
        kept["startup"] = {stage: _number(took) for stage, took in kept.get("startup", {}).items()}
        apart = kept.get("domains", {})
        kept["domains"] = {n: {m: _score(score) for m, score in found.items()} for n, found in apart.items()}
        for split in ("valid", "test", "target"):
            kept[split] = {name: _score(score) for name, score in kept.get(split, {}).items()}
        kept["checks"] = [SimpleNamespace(**check) for check in kept.get("checks", [])]
        return cls(**kept)

    def metrics(self) -> list[str]:
        """Names of all metrics, the headline first, those of single classes left out."""
        names = [self.headline, *self.valid, *self.test]
        return [n for n in dict.fromkeys(names) if (n in self.valid or n in self.test) and self.class_of(n) is None]

    def class_of(self, metric: str) -> str | None:
        """The label that a per-class metric (`f1_<label>`, `iou_<label>`) is about; None for any other metric."""
        label = metric.removeprefix("f1_").removeprefix("iou_")
        return label if label in self.labels and metric not in {label, "f1_macro", "f1_micro"} else None

    def next_commands(self) -> list[str]:
        """Commands worth typing now: predict with this folder, and train the other way to compare."""
        if "next" in self.usage:
            return [f"accelerate launch {self.usage['next']} --model {shlex.quote(self.folder)} --data DATA"]
        new = self.usage.get("new", "new.csv")
        predict = f"hftl predict {shlex.quote(self.folder)} --data {new} --output predictions.csv"
        strategy, output = ("LinearProbe", "runs/probe") if self.adapter else ("LoRA(r=16)", "runs/lora")
        start = _relaunch(self.command, self.usage.get("script", "recipe.py"))
        return [predict, f'{start} --strategy "{strategy}" --output_dir {output}']

    def table(self, next_commands: Sequence[str] | None = None) -> str:
        """The closing table for the terminal, without a final newline. `next_commands` replaces the derived ones."""
        names = self.metrics()
        splits = {"valid": self.valid, "test": self.test} | ({"target": self.target} if self.target else {})
        cells = [[wording.score(split.get(name)) for split in splits.values()] for name in names]
        heads = [wording.visible(name) for name in names]
        first = max([12, *map(len, heads)]) + 1
        wide = max([21, *(len(cell) for row in cells for cell in row)]) + 3
        lines = ["  ".join(map(wording.visible, (self.task, self.model, self.strategy)))]
        if names:
            lines.append(" " * first + "".join(split.ljust(wide) for split in splits))
        for name, head, row in zip(names, heads, cells, strict=True):
            n = ", ".join(f"{split[name].n}" for split in (self.test, self.target) if name in split)
            n = n or f"{self.valid[name].n}"
            lines.append(f"{head.ljust(first)}{''.join(cell.ljust(wide) for cell in row)}n={n}")
        lines += [wording.visible(sentence) for sentence in verdict.adapted(self)]
        speed, total, trained = map(wording.count, (self.examples_per_second, self.total, self.trainable))
        lines.append(
            f"trained in {wording.duration(self.seconds)}, {speed} examples/s, {total} "
            f"parameters of which {trained} trained ({wording.share(self.trainable, self.total)}), "
            f"peak memory {wording.size(self.peak_memory)}{' a process' if self.processes > 1 else ''}"
        )
        if self.startup:
            whole = wording.duration(sum(self.startup.values()))
            lines.append(f"started in {whole}: {wording.visible(wording.stages(self.startup))}")
        lines += [f"unsafe       {wording.visible(sentence)}" for sentence in self.unsafe]
        lines.append(f"folder       {wording.visible(self.folder)}   (report.html, model card, recipe.yaml)")
        commands = self.next_commands() if next_commands is None else next_commands
        for head, command in zip(["try next", *[""] * len(commands)], commands, strict=False):
            lines.append(f"{head.ljust(13)}{wording.visible(command)}")
        return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _score(values: Mapping[str, Any]) -> Score:
    from hftl.metrics import Score

    value, low, high = (_number(values[key]) for key in ("value", "low", "high"))
    return Score(value, low, high, values["n"])


def _relaunch(command: str, script: str) -> str:
    """The command to start from for another run like this one: less the flags that would be changed.

    A command that no shell could run again (a Python session's, a test's) gives the plain launch of the script.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    words = [script if word.endswith("features.py") else word for word in words]  # by steps, to compare
    if words[:1] == [script.split("/")[-1]]:
        words[:1] = ["accelerate", "launch", script]
    if words[:1] not in (["accelerate"], ["torchrun"], ["python"], ["hftl"]):
        return f"accelerate launch {script}"
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.split("=")[0] in CHANGED
        if not dropping:
            kept.append(word)
        elif "=" in word:
            dropping = False
    return shlex.join(kept)
