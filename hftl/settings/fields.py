"""Dataclass fields that are flags, and the fields of the installed `transformers.TrainingArguments` beside them.

The latter are read off the source file with `ast`, because importing it costs seconds (torch), and `--help` or a
mistyped flag should answer at once. Knows no values of any run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from hftl.errors import UserError

GONE = dict.fromkeys(
    ("classifier", "layers", "pool"), "Write --strategy \"Features(classifier='svm', layers='all', pool='mean')\"."
) | {
    "cache_views": "Leave it out: rows that --augment changes are computed anew in each epoch.",
    "source_only": "Wrap the recipe: hftl.Adapting(hftl.Recipe(...)), as recipes/domain_adapt.py does.",
    "compare": "Wrap the recipe: hftl.EachAlone(hftl.Recipe(...)), as recipes/multitask.py does.",
    "then": "Run the second recipe after it, with && and --model.",
}
"""Settings of earlier versions that have no heir of another name -> what to write instead."""

IN, HOW, RUN, OUT, SAFE = "What goes in", "How it learns", "The run", "What comes out", "Safety"
"""Groups of the help."""
THEIRS = "transformers.TrainingArguments"
"""The group of what hftl does not declare itself."""

RANGES = {
    "per_device_eval_batch_size": "[1, inf)",
    "eval_accumulation_steps": "[1, inf)",
    "data_seed": "[0, 4294967295]",
    "max_grad_norm": "[0, inf]",
    "label_smoothing_factor": "[0, 1)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "neftune_noise_alpha": "[0, inf)",
    "logging_steps": "(0, inf)",
    "eval_steps": "(0, inf)",
    "save_steps": "(0, inf)",
    "eval_delay": "[0, inf)",
    "save_total_limit": "[1, inf)",
    "dataloader_num_workers": "[0, inf)",
    "dataloader_prefetch_factor": "[1, inf)",
}
"""Ranges of TrainingArguments that hftl does not declare again, which bear none themselves. What hftl declares has its
range in its `flag`."""


@dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    Attributes:
        type: an annotation as text (`int`, `float | None`, `list[str]`).
        choices: the words that it admits; empty where any will do.
        range: an interval in the notation of mathematics, `(0, 1]`: a round bracket leaves its end out.
        of_several: what becomes of it in a run on several tasks: "shared" (one value for all), "each" (a value for each
            task, after its source), "both" (one for all, and a task may have its own) or "never".
    """

    name: str
    type: str
    default: Any
    help: str
    group: str
    choices: tuple[str, ...] = ()
    range: str = ""
    of_several: str = "shared"


def flag(
    default: Any,
    help: str,
    group: str,
    *,
    choices: tuple[str, ...] = (),
    range: str = "",
    of_several: str = "",
    factory: Any = MISSING,
) -> Any:
    """A dataclass field that is also a command-line flag; its arguments are those of `Setting`.

    Args:
        of_several: "" for what the owner's `of_several` says of all its settings, "shared" where it has none.
        factory: makes the default, where it is a list.
    """
    metadata = {"help": help, "group": group, "choices": choices, "range": range, "of_several": of_several}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def own_settings(owner: type) -> dict[str, Setting]:
    """The flags that a class declares, in order; none where it is no dataclass."""
    found = {}
    for f in getattr(owner, "__dataclass_fields__", {}).values():
        if "help" in f.metadata:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            kind = f.type if isinstance(f.type, str) else inspect.formatannotation(f.type)
            whose = f.metadata["of_several"] or getattr(owner, "of_several", "shared")
            found[f.name] = Setting(f.name, kind, default, **f.metadata | {"of_several": whose})
    return found


@functools.cache
def training_settings() -> dict[str, Setting]:
    """Every field of the installed `transformers.TrainingArguments`, without importing transformers.

    Raises:
        UserError: there are none where this version of hftl looks for them.
    """
    found = {}
    for node in _classes_of_transformers()["TrainingArguments"]:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, kind = node.target.id, ast.unparse(node.annotation)
            if not name.startswith("_") and "ClassVar" not in kind:
                default, help = _default_and_help(node.value)
                found[name] = Setting(name, kind, default, help, THEIRS, range=RANGES.get(name, ""))
    return found


@functools.cache
def named_choices(kind: str) -> tuple[str, ...]:
    """The values of an enum that a TrainingArguments annotation names (`SchedulerType`); empty for anything else."""
    values = [_literal(n.value) for n in _classes_of_transformers().get(kind, []) if isinstance(n, ast.Assign)]
    return tuple(value for value in values if isinstance(value, str))


@functools.cache
def _classes_of_transformers() -> dict[str, list[ast.stmt]]:
    """The statements of each class in the two files that define training arguments and the enums they name."""
    spec = importlib.util.find_spec("transformers")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    sources = [folder / name for name in ("training_args.py", "trainer_utils.py")]
    statements = [n for source in sources if source.is_file() for n in ast.parse(source.read_text("utf-8")).body]
    found = {node.name: node.body for node in statements if isinstance(node, ast.ClassDef)}
    if "TrainingArguments" not in found:
        raise UserError(
            f"Expected TrainingArguments in {sources[0]}, whose fields are flags; there is no such class. Install a "
            "version of transformers that hftl is made for: pip install --upgrade hftl transformers."
        )
    return found


def _default_and_help(value: ast.expr | None) -> tuple[Any, str]:
    """Read `= 3` or `= field(default=3, metadata={"help": "..."})`; what is not a literal reads as None."""
    if not isinstance(value, ast.Call):
        return _literal(value), ""
    keywords = {k.arg: k.value for k in value.keywords}
    metadata = _literal(keywords.get("metadata")) or {}
    return _literal(keywords.get("default")), " ".join(str(metadata.get("help", "")).split())


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
