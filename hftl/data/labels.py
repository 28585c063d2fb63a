"""What a label column means: one class, several classes, or a number. Knows one column, not where it came from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import datasets

from hftl.data.survey import MOST_CLASSES, Survey, class_names, key, number, split_cell
from hftl.data.types import MULTI, PIXELS, PROBLEM_TYPES, REGRESSION, SINGLE, TAGS, Check, told
from hftl.errors import UserError, suggest

_ENCODING = 1  # part of the cache key of encoded columns: raise it when `_encode` changes


@dataclass(frozen=True)
class Reading:
    """How to encode the cells of a label column."""

    problem_type: str
    names: list[str]
    split: bool = False  # cells are texts that hold several classes
    multi_hot: bool = False  # cells are vectors of 0 and 1 already
    lower: bool = False  # "True" and "true" are one class
    values: tuple[int, ...] = ()  # of masks: the pixel value of each class


def check_problem_type(problem_type: str | None) -> None:
    """Raise `UserError` for a word that transformers does not know."""
    if problem_type is not None and problem_type not in (*PROBLEM_TYPES, TAGS, PIXELS):
        known = f"{SINGLE}, {MULTI} or {REGRESSION}"
        raise UserError(
            f"Expected --problem_type {known}; it is {problem_type!r}.{suggest(problem_type, PROBLEM_TYPES)}"
        )


def decide(train: Survey, where: str, problem_type: str | None) -> Reading:
    """Read the label column of train. `problem_type` forces the reading; None takes the natural one.

    Lists are several classes, floats are numbers, everything else is one class a row. Text that spells numbers, as
    all of a csv does, counts as the numbers it spells.
    """
    chosen = problem_type or _natural(train)
    if chosen == REGRESSION:
        return _numbers(train, where)
    if chosen == MULTI:
        return _several(train, where)
    if chosen == TAGS:
        return _tags(train, where)
    if train.listed:
        raise UserError(f"Expected one label a row in {where}; its rows hold lists. Pass --problem_type {MULTI}.")
    lower = train.kind == "string" and {value.lower() for value in train.values} <= {"true", "false"}
    values = {value.lower() for value in train.values} if lower else train.values
    values = values if train.words_are_missing else values | train.words
    _check_classes(train, values, where)
    names = train.class_names or ordered({key(number(v)) or v for v in values} if train.decimal else values)
    return Reading(SINGLE, names, lower=lower)


def _natural(train: Survey) -> str:
    if train.listed:
        return MULTI
    numbers = train.kind == "float" or (train.kind == "string" and train.decimal and train.not_number is None)
    return REGRESSION if numbers else SINGLE


def _numbers(train: Survey, where: str) -> Reading:
    if train.listed:
        raise UserError(f"Expected one number a row in {where}; its rows hold lists. Pass --problem_type {MULTI}.")
    if train.not_number is not None:
        raise UserError(
            f"Expected numbers in {where} for --problem_type {REGRESSION}; it has {told(train.not_number)}. "
            f"Correct it, or pass --problem_type {SINGLE}."
        )
    if len(train.values) == 1:
        raise UserError(f"Expected different numbers in {where}; every row of train has {min(train.values)}.")
    return Reading(REGRESSION, [])


def _several(train: Survey, where: str) -> Reading:
    """Vectors of 0 and 1 are told from lists of ids by what a set of ids cannot be: with repeats, or of floats."""
    one_length = len(train.lengths) == 1 and max(train.lengths, default=0) > 1
    bits = one_length and train.values <= {"0", "1", "true", "false"}
    if train.listed and bits and (train.kind in ("float", "boolean") or (train.kind == "integer" and train.repeats)):
        return Reading(MULTI, [str(i) for i in range(max(train.lengths))], multi_hot=True)
    if train.listed and train.kind == "float":
        raise UserError(f"Expected lists of class names, of ids, or of 0 and 1 in {where}; they hold other numbers.")
    values = train.values | train.words
    if not values:
        raise UserError(f"Expected classes in {where}; no row of train has one.")
    _check_many(values, where)
    split = train.listed and train.kind == "string"
    return Reading(MULTI, train.class_names or ordered(values), split=split)


def _tags(train: Survey, where: str) -> Reading:
    if not train.listed:
        raise UserError(f"Expected a list of tags in each row of {where}, one a word. Pass --label COLUMN.")
    _check_classes(train, train.values, where)
    return Reading(TAGS, train.class_names or ordered(train.values))


def _check_classes(train: Survey, values: set[str], where: str) -> None:
    if not values:
        raise UserError(f"Expected labels in {where}; no row of train has one. Pass --label COLUMN.")
    if len(values) == 1:
        raise UserError(
            f"Expected at least two classes in {where}; every row of train is {told(min(values))}. "
            "Add rows of another class, or pass --label COLUMN."
        )
    _check_many(values, where)
    if len(values) == train.rows >= 20 and train.class_names is None:
        raise UserError(
            f"Expected labels that repeat in {where}; each of the {train.rows:,} rows of train has its own. "
            f"Pass --label COLUMN, or --problem_type {REGRESSION} for numbers."
        )


def _check_many(values: set[str], where: str) -> None:
    if len(values) > MOST_CLASSES:
        raise UserError(
            f"Expected at most {MOST_CLASSES:,} classes in {where}; it has more. "
            f"Pass --label COLUMN, or --problem_type {REGRESSION} for numbers."
        )


def ordered(values: set[str]) -> list[str]:
    """Class names in the order of their ids: by number where all are numbers, else by letter."""
    if any(math.isnan(number(value)) for value in values):
        return sorted(values)
    return sorted(values, key=lambda value: (number(value), value))


def check_same(reading: Reading, train: Survey, other: Survey, split: str, where: str) -> None:
    """Raise `UserError` where a later split has labels that train lacks, or another kind of label."""
    if other.listed != train.listed:
        kinds = ("lists", "single labels") if other.listed else ("single labels", "lists")
        raise UserError(
            f"Expected the same kind of label in all splits; {where} has {kinds[0]} and train has {kinds[1]}."
        )
    if reading.problem_type == REGRESSION:
        if other.not_number is not None:
            raise UserError(f"Expected numbers in {where}, as in train; it has {told(other.not_number)}.")
        return
    if reading.multi_hot:
        if other.lengths - train.lengths:
            raise UserError(f"Expected {len(reading.names)} numbers a row in {where}, as in train.")
        return
    seen = train.values | train.words
    new = (other.values | (set() if train.words_are_missing else other.words)) - seen
    if reading.lower:
        new = {value for value in new if value.lower() not in reading.names}
    if train.decimal or train.kind == "float":
        new = {value for value in new if (key(number(value)) or value) not in reading.names}
    if new:
        guess = suggest(min(new), seen)
        raise UserError(
            f"Expected the labels of {where} among those of train ({_some(ordered(seen))}); "
            f"{split} also has {_some(ordered(new))}.{guess} Correct them, or add such rows to train."
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(told, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def reading_checks(train: Survey, reading: Reading, where: str) -> list[Check]:
    """Notes on a reading that may not be the one that was meant."""
    whole = reading.problem_type == REGRESSION and not train.fraction and len(train.values) <= 20
    if whole and (train.kind == "float" or train.decimal):
        count = len(train.values)
        sentence = (
            f"the {count} different numbers in {where} are all whole and were taken as amounts (regression); "
            f"if they are classes, pass --problem_type {SINGLE}"
        )
        return [Check("labels", "note", sentence)]
    if reading.problem_type == SINGLE and any("|" in name for name in reading.names):
        sentence = f"some labels in {where} hold '|'; if they are several classes, pass --problem_type {MULTI}"
        return [Check("labels", "note", sentence)]
    return []


def encode(column: datasets.Dataset, reading: Reading) -> datasets.Dataset:
    """The column `label` as int64 ids, float32 multi-hot lists or float32 numbers; a missing one is -1 or NaN.

    Tags are int64 lists, a missing one -100.
    """
    types = {
        SINGLE: datasets.Value("int64"),
        MULTI: datasets.List(datasets.Value("float32")),
        REGRESSION: datasets.Value("float32"),
        TAGS: datasets.List(datasets.Value("int64")),
    }
    return column.map(
        _encode,
        batched=True,
        fn_kwargs={"reading": asdict(reading), "class_names": class_names(column), "version": _ENCODING},
        features=datasets.Features({"label": types[reading.problem_type]}),
        desc="Reading labels",
    )


def _encode(
    batch: dict[str, list[Any]], reading: dict[str, Any], class_names: list[str] | None, version: int
) -> dict[str, list[Any]]:
    how = Reading(**reading)
    cells = batch["label"]
    if how.problem_type == REGRESSION:
        return {"label": [number(cell) for cell in cells]}
    ids = {name: i for i, name in enumerate(how.names)}
    if how.problem_type == MULTI:
        return {"label": [_multi_hot(cell, how, ids, class_names) for cell in cells]}
    if how.problem_type == TAGS:
        return {"label": [[_tag(value, ids, class_names) for value in cell or []] for cell in cells]}
    names = [key(cell, class_names) for cell in cells]
    if how.lower:
        names = [name and name.lower() for name in names]
    return {"label": [_id(name, ids) for name in names]}


def _id(name: str | None, ids: dict[str, int]) -> int:
    if name is None:
        return -1
    found = ids.get(name)
    # "1.0" is class 1 where whole numbers were forced to be classes
    return found if found is not None else ids.get(key(number(name)) or "", -1)


def _tag(value: Any, ids: dict[str, int], class_names: list[str] | None) -> int:
    name = key(value, class_names)
    return -100 if name is None else ids[name]


def _multi_hot(cell: Any, how: Reading, ids: dict[str, int], class_names: list[str] | None) -> list[float]:
    if how.split:
        cell = split_cell(cell) if isinstance(cell, str) else cell
    if cell is None:
        return [math.nan] * len(how.names)
    if how.multi_hot:
        return [float(value) for value in cell]
    hot = [0.0] * len(how.names)
    for value in cell if isinstance(cell, list) else [cell]:
        name = key(value, class_names)
        if name is not None:
            hot[ids[name]] = 1.0
    return hot
