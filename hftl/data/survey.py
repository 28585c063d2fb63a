"""Survey a label column in one pass: which values it holds, and of what kind. `readings` says what that means.

Imports no `datasets` before there is a column: a task names its readings, and `--help` imports tasks.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftl.data.types import Check, quoted
from hftl.errors import UserError

if TYPE_CHECKING:
    import datasets

MOST_CLASSES = 50_000
_MISSING_WORDS = {"nan", "na", "n/a", "null", "none"}
_BATCH = 10_000
_LARGEST = 3.4028234e38  # of float32, in which labels are kept
# A leading zero makes a code, not a number: 007 and 7 are two classes.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?")
_ITEM = r"'[^'\\]*'|\"[^\"\\]*\"|True|False|[+-]?(?:0|[1-9]\d*)(?:\.\d*)?"
_ARRAY = re.compile(rf"\[\s*(?:{_ITEM})(?:\s+(?:{_ITEM}))+\s*\]")
_WHOLE = re.compile(r"0|-?[1-9]\d*")
_KINDS = {"bool": "boolean", "int": "integer", "uint": "integer", "float": "float", "decimal": "float"}
_KINDS |= {"string": "string", "large_string": "string", "null": "string"}


@dataclass
class Survey:
    """What was found. `values` are class names as text, at most MOST_CLASSES + 1 of them."""

    where: str  # names the column in errors
    kind: str  # "class" (a ClassLabel), "integer", "boolean", "float" or "string"
    listed: bool
    class_names: list[str] | None = None
    rows: int = 0
    values: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)  # "NA", "null": nothing among numbers, a class among words
    not_number: str | None = None  # a text that is no number
    decimal: bool = False  # some text is a number, but not a plain whole one
    fraction: bool = False  # some number is not whole
    lengths: set[int] = field(default_factory=set)  # of lists
    repeats: bool = False  # some list holds a value twice, so it cannot be a set of classes
    whole: set[str] = field(default_factory=set)  # texts that may hold several classes, and were read as one

    @property
    def words_are_missing(self) -> bool:
        return bool(self.values) and self.kind == "string" and self.not_number is None and not self.listed

    def unlabelled(self, train: Survey) -> bool:
        """No row has a label, or each has -1 and train has not, as in the test splits of GLUE on the Hub."""
        if self.listed:
            return not self.lengths - {0}
        return not self.values | self.words or (self.values == {"-1"} and "-1" not in train.values)


def survey(column: datasets.Dataset, where: str, split: bool = False) -> Survey:
    """Read the only column of a data set in batches.

    Args:
        where: names it in errors.
        split: whether texts may hold several classes (`a|b`).
    """
    import pyarrow.compute as pc

    found = _empty_survey(column, where)
    split = split and found.kind == "string" and not found.listed
    for table in column.with_format("arrow").iter(_BATCH):
        cells = table.column(0).combine_chunks()
        found.rows += len(cells)
        if found.listed or split:
            for cell in cells.to_pylist():
                parts = split_cell(cell) if split else cell
                _add_list(found, parts)
                if split and cell is not None and parts == [cell.strip()] and len(found.whole) <= MOST_CLASSES:
                    found.whole.update(parts)
        else:
            for value in pc.unique(cells).to_pylist():
                _add(found, value)
    found.listed |= split
    return found


def _inner(column: datasets.Dataset) -> tuple[Any, bool]:
    """The feature of the values, and whether they come in lists."""
    import datasets

    feature = next(iter(column.features.values()))
    listed = isinstance(feature, datasets.List | datasets.LargeList)
    return (feature.feature if listed else feature), listed


def class_names(column: datasets.Dataset) -> list[str] | None:
    """The names that a ClassLabel column brings along."""
    inner, _ = _inner(column)
    return list(inner.names) if hasattr(inner, "names") else None


def _empty_survey(column: datasets.Dataset, where: str) -> Survey:
    import datasets

    inner, listed = _inner(column)
    if isinstance(inner, datasets.ClassLabel):
        return Survey(where, "class", listed, list(inner.names))
    dtype = inner.dtype if isinstance(inner, datasets.Value) else type(inner).__name__
    kind = _KINDS.get(re.sub(r"(\d+)?(\(.*\))?$", "", dtype))
    if kind is None:
        held = two_kinds(column[column.column_names[0]][:]) if dtype == "Json" else f"{dtype} values"
        raise UserError(f"Expected texts, numbers or lists of them in {where}; it holds {held}. Pass --label COLUMN.")
    return Survey(where, kind, listed)


def two_kinds(cells: list[Any]) -> str:
    """Two values of two kinds with their rows; of lists, two that are in them."""
    first: tuple[int, Any] | None = None
    listed = all(isinstance(cell, list | None) for cell in cells)
    values = ((row, one) for row, cell in enumerate(cells, start=1) for one in ((cell or []) if listed else [cell]))
    for row, value in values:
        if first is not None and value is not None and type(value) is not type(first[1]):
            return f"{quoted(first[1])} in row {first[0]:,} and {quoted(value)} in row {row:,}; write all as one kind"
        first = first or (None if value is None else (row, value))
    return "values of several kinds"


def _add(found: Survey, value: Any) -> None:
    name = key(value, found.class_names)
    if name is None:
        return
    if found.kind == "string":
        if name.lower() in _MISSING_WORDS:
            found.words.add(name)
            return
        amount = number(name)
        if math.isnan(amount):
            found.not_number = found.not_number or name
        else:
            found.decimal |= not _WHOLE.fullmatch(name)
            found.fraction |= not amount.is_integer()
    elif found.kind == "float":
        found.fraction |= not float(value).is_integer()
    if len(found.values) <= MOST_CLASSES:
        found.values.add(name)


def _add_list(found: Survey, cell: list[Any] | None) -> None:
    if cell is None:
        return
    found.lengths.add(len(cell))
    names = [key(value, found.class_names) for value in cell]
    found.repeats |= len(set(names)) < len(names)
    if len(found.values) <= MOST_CLASSES:
        found.values.update(name for name in names if name is not None)


def key(value: Any, class_names: list[str] | None = None) -> str | None:
    """The class name of a cell, or None where there is no label. -1 is no class of a ClassLabel."""
    if class_names is not None and value is not None:
        return class_names[value] if 0 <= value < len(class_names) else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value.strip() or None
    if value is None or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def number(value: Any) -> float:
    """The number in a cell; NaN where there is none, or none that float32 can hold."""
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if any(c.isdigit() for c in text) and _NUMBER.fullmatch(text) else None
    return float(value) if value is not None and abs(value) <= _LARGEST else math.nan


def split_cell(cell: str | None) -> list[Any] | None:
    """`a|b` or a JSON list -> its parts; none of a blank cell, as of `[]`: no class applies. A null is no label."""
    if cell is None:
        return None
    if cell.lstrip().startswith(("[", "(", "{")):
        try:
            parts = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            parts = _python_list(cell.strip())
        if not isinstance(parts, list | tuple | set):
            return [cell.strip()]
        return [part if isinstance(part, str | int | float | None) else json.dumps(part, default=str) for part in parts]
    return [part.strip() for part in cell.split("|") if part.strip()]


def _python_list(cell: str) -> Any:
    """A list, tuple or set as pandas writes it, `['joy', 'fear']`, or an array, `[1 0 0]`; else None."""
    try:
        if _ARRAY.fullmatch(cell):  # not by Python, to which 'a' 'b' is 'ab'
            return [ast.literal_eval(one) for one in re.findall(_ITEM, cell)]
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def bracketed(values: set[str]) -> str | None:
    """A text that looks like a list or an array, and cannot be read as one."""
    return min((v for v in values if v[0] + v[-1] in ("[]", "()", "{}") and re.search(r"[,;:\s]", v)), default=None)


def glued(values: set[str], signs: str = r"[,;/&+]|\s") -> str | None:
    """A class name that is made of parts of others with a sign between, or of bits; None where there is none."""
    if len({*map(len, values)}) == 1 < len(values) and all(re.fullmatch("[01]{3,}", value) for value in values):
        return min(values)
    for sign in signs.split("|"):
        parts = {value: {part.strip() for part in re.split(sign, value)} for value in values}
        often = Counter(part for found in parts.values() for part in found)
        made = [value for value, found in parts.items() if found != {value} and all(often[part] > 1 for part in found)]
        if made:
            return min(made)
    return None


def near_names(names: Sequence[str]) -> list[Check]:
    """A warning where class names differ in case, spaces, invisible signs or the form of their letters alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        alike.setdefault(" ".join(plain.casefold().split()), []).append(name)
    same = [group for group in alike.values() if len(group) > 1]
    if not same:
        return []
    shown = "; ".join(", ".join(map(repr, group)) for group in same[:3])
    return [Check("labels", "warn", f"classes that a person would read as one: {shown}. Correct them if they are")]


def ordered(values: set[str]) -> list[str]:
    """Class names in the order of their ids: by number where all are numbers, else by letter."""
    if any(math.isnan(number(value)) for value in values):
        return sorted(values)
    return sorted(values, key=lambda value: (number(value), value))
