"""What one run showed: numbers with their n and interval, where they came from, and how to say it.

A dataclass that reads report.json back. Knows nothing of training: whoever ran it fills in the fields.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError
from hftl.results import privacy
from hftl.results.report.plain import plain

if TYPE_CHECKING:
    from hftl.data.types import Check
    from hftl.tasks.metrics.bootstrap import Score

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
    """Of a run with unlabelled target rows: what `hftl.run.adaptation.told` gives, and `source_only` if it was run."""
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


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _score(values: Mapping[str, Any]) -> Score:
    from hftl.tasks.metrics.bootstrap import Score

    value, low, high = (_number(values[key]) for key in ("value", "low", "high"))
    return Score(value, low, high, values["n"])
