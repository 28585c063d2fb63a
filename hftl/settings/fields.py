"""What can be set and how it is checked: Recipe's own fields and the names of `transformers.TrainingArguments`.

The latter are read off the source file with `ast`, because importing it costs seconds (torch), and `--help` or a
mistyped flag should answer at once. Knows no values of any run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

GONE = dict.fromkeys(
    ("classifier", "layers", "pool"), "Write --strategy \"Features(classifier='svm', layers='all', pool='mean')\"."
) | {"cache_views": "Leave it out: rows that --augment changes are computed anew in each epoch."}
"""Settings of earlier versions that have no heir of another name -> what to write instead."""


def flag(default: Any, help: str, group: str, factory: Any = MISSING) -> Any:
    """A dataclass field that is also a command-line flag: its help text, and the group it is shown in."""
    metadata = {"help": help, "group": group}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One thing that can be set: `type` is an annotation as text (`int`, `float | None`, `list[str]`)."""

    name: str
    type: str
    default: Any
    help: str
    group: str


def own_settings(recipe_class: type) -> dict[str, Setting]:
    """The fields of a Recipe class, in the order of the help."""
    found = {}
    for f in fields(recipe_class):
        if "help" in f.metadata:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            kind = f.type if isinstance(f.type, str) else inspect.formatannotation(f.type)
            found[f.name] = Setting(f.name, kind, default, f.metadata["help"], f.metadata["group"])
    return found


@functools.cache
def training_settings() -> dict[str, Setting]:
    """Every field of the installed `transformers.TrainingArguments`, without importing transformers."""
    found = {}
    for node in _classes_of_transformers().get("TrainingArguments", []):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, kind = node.target.id, ast.unparse(node.annotation)
            if not name.startswith("_") and "ClassVar" not in kind:
                default, help = _default_and_help(node.value)
                found[name] = Setting(name, kind, default, help, "transformers.TrainingArguments")
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
    if spec is None or spec.origin is None:
        return {}
    sources = [Path(spec.origin).parent / name for name in ("training_args.py", "trainer_utils.py")]
    statements = [n for source in sources for n in ast.parse(source.read_text(encoding="utf-8")).body]
    return {node.name: node.body for node in statements if isinstance(node, ast.ClassDef)}


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
