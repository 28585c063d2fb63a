"""What one run showed: numbers with their n and interval, where they came from, and how to say it.

A dataclass that reads report.json back. Knows nothing of training: whoever ran it fills in the fields.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from hftl.errors import UserError
from hftl.results import privacy
from hftl.results.report import wording
from hftl.results.report.plain import plain
from hftl.tasks import earlier
from hftl.tasks.sections import KINDS, Example, Gallery, Section, Table

if TYPE_CHECKING:
    from hftl.data.types import Check
from hftl.tasks.metrics.bootstrap import Score

PLACES = ("model", "folder", "data", "checks", "settings", "tasks", "adaptation")
"""Fields that may name a path of the machine; examples from the data are left as they are."""
S = TypeVar("S", bound=Section)


@dataclass
class SourceOnly:
    """The same run without the target's rows: `verdict` is "helped", "hurt" or "no clear difference" of adapting."""

    strategy: str
    folder: str
    on: str
    """The split that is compared, "target" or "test"."""
    verdict: str
    scores: dict[str, Score]
    """The headline metric by split."""


@dataclass
class Adapted:
    """What a run with unlabelled target rows has seen of both domains."""

    select: str = "source"
    """What chose the checkpoint: "source", a criterion of `hftl.tasks.metrics.criteria`, or "oracle"."""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    """By evaluation: step, epoch, and each criterion by name."""
    chosen: dict[str, Any] | None = None
    oracle: dict[str, Any] | None = None
    """Of `checkpoints`: the one that `select` chose, and the one that labels of the target would have chosen."""
    distance: Mapping[str, float | None] = field(default_factory=dict)
    """Proxy A-distance "before" and "after"."""
    projection: dict[str, dict[str, list]] = field(default_factory=dict)
    """Of the same moments: points (x, y) of "source" and "target"."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of each domain that were looked at."""
    source_only: SourceOnly | None = None


@dataclass
class TaskRow:
    """One task of several that share an encoder; scores are of its headline `metric` on test."""

    task: str
    metric: str
    steps: int
    """Micro-batches, and their `share` of all."""
    share: float
    folder: str
    multi: Score
    evaluations: float = 0.0
    """How often all tasks were to be evaluated in the course of the run."""
    single: Score | None = None
    """Trained alone; None where that was not tried."""
    difference: Score | None = None
    verdict: str = ""
    """Of training together: "gained", "lost" or "no difference"."""


@dataclass(repr=False)
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
    adaptation: Adapted | None = None
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
    unit: str = "row"
    """What the n of a score counts."""
    lower: list[str] = field(default_factory=list)
    """Metrics of which less is better."""
    classes: dict[str, str] = field(default_factory=dict)
    """Metrics of a single class, with the class."""
    sections: list[Section] = field(default_factory=list)
    """What the task draws of the results on test beside the numbers."""
    labels: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """source, rows (split -> n), fingerprints (split -> sha256), columns (role -> column), notes (sentences)."""
    checks: list[Check] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """`TrainerState.log_history`: rows with `loss`, rows with `eval_loss` and `eval_<metric>`; all with epoch, step."""
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
    tasks: list[TaskRow] = field(default_factory=list)
    """Of a run on several tasks."""
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
        kept = _known(cls, values)
        for name in {"seconds", "examples_per_second", "forward_passes"} & kept.keys():
            kept[name] = _number(kept[name])
        kept["startup"] = {stage: _number(took) for stage, took in kept.get("startup", {}).items()}
        apart = kept.get("domains", {})
        kept["domains"] = {n: {m: _score(score) for m, score in found.items()} for n, found in apart.items()}
        for split in ("valid", "test", "target"):
            kept[split] = {name: _score(score) for name, score in kept.get(split, {}).items()}
        kept["checks"] = [SimpleNamespace(**check) for check in kept.get("checks", [])]
        if "sections" not in values:
            kept |= earlier.fields(values, {"valid": kept["valid"], "test": kept["test"]})
        else:
            kept["sections"] = [_section(one) for one in values["sections"] if one["kind"] in KINDS]
        kept["tasks"] = [_task_row(one) for one in kept.get("tasks", [])]
        if about := kept.pop("adaptation", None):
            kept["adaptation"] = Adapted(**_known(Adapted, about))
            if plain := about.get("source_only"):
                scores = {split: _score(score) for split, score in plain["scores"].items()}
                kept["adaptation"].source_only = SourceOnly(**_known(SourceOnly, plain) | {"scores": scores})
        return cls(**kept)

    def of(self, kind: type[S]) -> list[S]:
        """The sections of one kind."""
        return [section for section in self.sections if isinstance(section, kind)]

    def __repr__(self) -> str:
        """What was run and each metric, a line each."""
        splits = {"valid": self.valid, "test": self.test} | ({"target": self.target} if self.target else {})
        lines = [f"{self.task}  {self.model}  {self.strategy}  {self.folder}".rstrip()]
        for name in self.metrics():
            shown = (f"{split} {wording.score(of[name])}" for split, of in splits.items() if name in of)
            lines.append(f"{name}: {', '.join(shown)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same, for a notebook."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def metrics(self) -> list[str]:
        """Names of all metrics, the headline first, those of single classes left out."""
        names = [self.headline, *self.valid, *self.test]
        return [n for n in dict.fromkeys(names) if (n in self.valid or n in self.test) and n not in self.classes]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataclass of this version has of the values that were written."""
    names = {f.name for f in dataclasses.fields(kind) if f.init}
    return {name: value for name, value in values.items() if name in names}


def _section(values: Mapping[str, Any]) -> Section:
    kind = KINDS[values["kind"]]
    kept = _known(kind, values)
    if kind is Table:
        kept["rows"] = [[_score(cell) if isinstance(cell, Mapping) else cell for cell in row] for row in kept["rows"]]
    if kind is Gallery:
        kept["examples"] = [Example(**_known(Example, one)) for one in kept["examples"]]
    return kind(**kept)


def _task_row(values: Mapping[str, Any]) -> TaskRow:
    kept = _known(TaskRow, values)
    scores = {name: _score(kept[name]) for name in ("multi", "single", "difference") if kept.get(name)}
    return TaskRow(**kept | scores)


def _score(values: Mapping[str, Any]) -> Score:
    from hftl.tasks.metrics.bootstrap import Score

    value, low, high = (_number(values[key]) for key in ("value", "low", "high"))
    return Score(value, low, high, values["n"])
