"""Read off whole json and jsonl files what kind of value each column holds. Knows JSON; no data set and no task.

`datasets` decides by the first megabytes, and fails where a later row has another key, a number with a fraction, or a
value after many nulls; Arrow takes a text that spells a date for a date.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from hftl.data.types import quoted
from hftl.errors import UserError

_WORDS = {"bool": "true or false", "int64": "a number", "float64": "a number", "string": "a text"}
Kind = Any
"""The name of a plain type, a dict of kinds by key, a list of one kind, or None where all values were null."""


def features_of(paths: Iterable[Path]) -> datasets.Features:
    """The columns of all rows, with one type each.

    Raises:
        UserError: a column holds values of two kinds; both are named with their lines.
    """
    kinds: dict[str, Kind] = {}
    first: dict[str, str] = {}
    for path in paths:
        for line, row in _rows(path):
            for name, value in row.items():
                found = _kind(value)
                try:
                    both = _joined(kinds.get(name), found)
                except TypeError:
                    here = f"line {line} of {path.name} has {quoted(value)}, {_word(found)}"
                    raise UserError(
                        f"Expected one kind of value in column {name!r}; {first[name]}, and {here}. "
                        "Write all of them as one kind."
                    ) from None
                if name not in first and found is not None:
                    first[name] = f"line {line} of {path.name} has {quoted(value)}, {_word(found)}"
                kinds[name] = both
    return datasets.Features({name: _feature(kind) for name, kind in kinds.items()})


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        if path.suffix.lower() == ".json" and file.read(4096).lstrip().startswith("["):
            file.seek(0)
            yield from enumerate(json.load(file), start=1)
            return
        file.seek(0)
        yield from ((n, json.loads(line)) for n, line in enumerate(file, start=1) if line.strip())


def _kind(value: Any) -> Kind:
    if isinstance(value, dict):
        return {name: _kind(one) for name, one in value.items()}
    if isinstance(value, list):
        inner: Kind = None
        for one in value:
            inner = _joined(inner, _kind(one))
        return [inner]
    names = {bool: "bool", int: "int64", float: "float64", str: "string"}
    return names.get(type(value))


def _joined(one: Kind, other: Kind) -> Kind:
    """The kind that holds both. Raises TypeError where none does."""
    if one is None or other is None or one == other:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _joined(one.get(name), other.get(name)) for name in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        return [_joined(one[0], other[0])]
    if {str(one), str(other)} == {"int64", "float64"}:
        return "float64"
    raise TypeError


def _word(kind: Kind) -> str:
    return "a list" if isinstance(kind, list) else _WORDS.get(str(kind), "an object")


def _feature(kind: Kind) -> Any:
    if isinstance(kind, dict):
        return {name: _feature(one) for name, one in kind.items()}
    if isinstance(kind, list):
        return datasets.List(_feature(kind[0]))
    return datasets.Value(kind or "string")
