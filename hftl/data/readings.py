"""Read a label column: one class a row, several classes, a number, or a tag for each word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hftl.data.roles import Reading, other_word
from hftl.data.survey import MOST_CLASSES, Survey, bracketed, glued, key, number, ordered, split_cell, survey
from hftl.data.types import IGNORED, Check, Labels, quoted
from hftl.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from hftl.data.source import RawSplit


@dataclass(frozen=True)
class OneClass(Reading):
    """One class a row: int64 ids. What fits no other reading is read so."""

    lower: bool = False
    """Whether "True" and "true" are one class."""

    balanced: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    def settle(self, train: Survey, offered: Mapping[str, Reading]) -> Self:
        _check_single(train, "label", offered)
        lower = train.kind == "string" and {value.lower() for value in train.values} <= {"true", "false"}
        values = {value.lower() for value in train.values} if lower else train.values
        values = values if train.words_are_missing else values | train.words
        _check_classes(train, values, offered)
        names = train.class_names or ordered({key(number(v)) or v for v in values} if train.decimal else values)
        return replace(self, names=tuple(names), lower=lower)

    def learnt(self, labels: Labels, raw: RawSplit, column: str) -> Self:
        return replace(super().learnt(labels, raw, column), lower={*labels.names} <= {"true", "false"})

    def notes(self, train: Survey, offered: Mapping[str, Reading]) -> list[Check]:
        cure = other_word(offered, Several, "if they are several classes, pass --problem_type {}")
        sign = next((sign for sign in ("|", "[") if any(sign in name for name in self.names)), None)
        held = repr(sign) if sign else glued({*self.names}, "[,;]") and "names of others"
        return [Check("labels", "note", f"some labels in {train.where} hold {held}; {cure}")] if cure and held else []

    def _new(self, train: Survey, other: Survey) -> set[str]:
        new = super()._new(train, other)
        if self.lower:
            new = {value for value in new if value.lower() not in self.names}
        if train.decimal or train.kind == "float":
            new = {value for value in new if (key(number(value)) or value) not in self.names}
        return new

    def cells(self, cells: list[Any], class_names: list[str] | None) -> list[Any]:
        ids: dict[str | None, int] = {name: i for i, name in enumerate(self.names)}
        names = [key(cell, class_names) for cell in cells]
        names = [name.lower() if name and self.lower else name for name in names]
        # "1.0" is class 1 where whole numbers were forced to be classes
        known = {name: ids.get(name, ids.get(key(number(name)), -1)) for name in set(names)}
        return [known[name] for name in names]


@dataclass(frozen=True)
class Several(Reading):
    """Any number of classes a row: float32 vectors of 0 and 1, an entry a class. Lists are read so."""

    vectors: bool = False
    """Whether cells are such vectors already."""

    dtype: ClassVar[str] = "float32"
    listed: ClassVar[bool] = True
    splits_texts: ClassVar[bool] = True
    balanced: ClassVar[bool] = True

    def fits(self, train: Survey) -> bool:
        return train.listed

    def settle(self, train: Survey, offered: Mapping[str, Reading]) -> Self:
        """Vectors of 0 and 1 are told from lists of ids by what a set of ids cannot be: with repeats, or of floats."""
        if self._holds_vectors(train):
            return replace(self, names=tuple(map(str, range(max(train.lengths)))), vectors=True)
        if train.listed and train.kind == "float":
            raise UserError(
                f"Expected lists of class names, of ids, or of 0 and 1 in {train.where}; they hold other numbers."
            )
        values = train.values | train.words
        if not values:
            raise UserError(f"Expected classes in {train.where}; no row of train has one.")
        _check_many(train, values, offered)
        if bad := bracketed(train.whole) or (max(train.lengths, default=0) <= 1 and glued(train.whole)):
            raise UserError(
                f"Cells of {train.where} such as {quoted(bad)} may be several classes or one whose name has such a "
                'sign. Write several as a|b or ["a", "b"], and one as ["a"].'
            )
        return replace(self, names=tuple(train.class_names or ordered(values)))

    def _holds_vectors(self, found: Survey) -> bool:
        one_length = len(found.lengths) == 1 and max(found.lengths, default=0) > 1
        bits = found.listed and one_length and set() < found.values <= {"0", "1", "true", "false"}
        if bits and found.kind != "class" and not found.repeats and found.kind not in ("float", "boolean"):
            raise UserError(
                f"Every row of {found.where} holds 0 and 1 once: that may be a vector of two classes, or the ids of "
                "both. Write class names, such as a|b, in place of numbers."
            )
        return bits and (found.kind in ("float", "boolean") or found.repeats)

    def learnt(self, labels: Labels, raw: RawSplit, column: str) -> Self:
        size, found = len(labels.names), survey(raw.labels(column), f"column {column!r} of {raw.name}", True)
        as_vectors = labels.names == [*map(str, range(size))] and found.lengths == {size} and self._holds_vectors(found)
        return replace(super().learnt(labels, raw, column), vectors=as_vectors)

    def _new(self, train: Survey, other: Survey) -> set[str]:
        if not self.vectors:
            return super()._new(train, other)
        if other.lengths - train.lengths:
            raise UserError(f"Expected {len(self.names)} numbers a row in {other.where}, as in train.")
        return set()

    def cells(self, cells: list[Any], class_names: list[str] | None) -> list[Any]:
        ids = {name: i for i, name in enumerate(self.names)}
        return [self._vector(split_cell(one) if isinstance(one, str) else one, ids, class_names) for one in cells]

    def _vector(self, cell: Any, ids: dict[str, int], class_names: list[str] | None) -> list[float]:
        if cell is None:
            return [math.nan] * len(ids)
        if self.vectors:
            bits = [key(value) for value in cell]
            return [math.nan] * len(ids) if None in bits else [float(_BITS.get(bit, bit)) for bit in bits if bit]
        vector = [0.0] * len(ids)
        for value in cell if isinstance(cell, list) else [cell]:
            name = key(value, class_names)
            if name is not None and name not in ids:  # of rows that are predicted alone: training refuses them
                return [math.nan] * len(ids)
            if name is not None:
                vector[ids[name]] = 1.0
        return vector

    def shown(self, encoded: Any) -> str:
        named = [name for name, bit in zip(self.names, encoded, strict=True) if bit == 1]
        return f"{{{', '.join(named[:4])}{', ...' if len(named) > 4 else ''}}}"

    def count(self, values: np.ndarray) -> np.ndarray:
        return values.sum(axis=0).astype("int64")

    def summary(self, splits: Mapping[str, Iterable[np.ndarray]]) -> tuple[str, list[dict[str, Any]]]:
        kept = {split: list(batches) for split, batches in splits.items()}
        none = sum(int((~values.any(axis=1)).sum()) for batches in kept.values() for values in batches)
        sentence, rows = super().summary(kept)
        return sentence + (f", none of which {none:,} rows have" if none else ""), rows


@dataclass(frozen=True)
class Amount(Reading):
    """A number a row: float32. Floats are read so, and texts that spell numbers, as all of a csv does."""

    dtype: ClassVar[str] = "float32"
    amount: ClassVar[bool] = True

    def fits(self, train: Survey) -> bool:
        spelt = train.kind == "string" and train.decimal and train.not_number is None
        return not train.listed and (train.kind == "float" or spelt)

    def settle(self, train: Survey, offered: Mapping[str, Reading]) -> Self:
        _check_single(train, "number", offered)
        if train.not_number is not None:
            asked = other_word(offered, Amount, " for --problem_type {}")
            cure = other_word(offered, OneClass, ", or pass --problem_type {}")
            raise UserError(
                f"Expected numbers in {train.where}{asked}; it has {quoted(train.not_number)}. Correct it{cure}."
            )
        if len({number(value) for value in train.values}) == 1:
            raise UserError(f"Expected different numbers in {train.where}; every row of train has {min(train.values)}.")
        return self

    def notes(self, train: Survey, offered: Mapping[str, Reading]) -> list[Check]:
        cure = other_word(offered, OneClass, "if they are classes, pass --problem_type {}")
        amounts = {number(value) for value in train.values}  # 1 and 1.0 are one
        few = len(amounts) <= 20 and (train.decimal or (train.kind == "float" and not train.fraction))
        if not cure or not few:
            return []
        kind = "were taken" if train.fraction else "are all whole and were taken"
        here = f"the {len(amounts)} different numbers in {train.where} {kind} as amounts"
        return [Check("labels", "note", f"{here}{other_word(offered, Amount, ' ({})')}; {cure}")]

    def _new(self, train: Survey, other: Survey) -> set[str]:
        if other.not_number is not None:
            raise UserError(f"Expected numbers in {other.where}, as in train; it has {quoted(other.not_number)}.")
        return set()

    def cells(self, cells: list[Any], class_names: list[str] | None) -> list[Any]:
        return [number(cell) for cell in cells]

    def shown(self, encoded: Any) -> str:
        return f"{encoded:g}"

    def summary(self, splits: Mapping[str, Iterable[np.ndarray]]) -> tuple[str, list[dict[str, Any]]]:
        rows = []
        for split, (values,) in splits.items():
            numbers = {"min": values.min(), "mean": values.mean(dtype="float64"), "max": values.max()}
            rows.append({"split": split, **{name: round(float(value), 4) for name, value in numbers.items()}})
        return "", rows


@dataclass(frozen=True)
class Tags(Reading):
    """A class for each word of the first input: lists of int64 ids."""

    unknown: int = IGNORED
    """What a word without a tag, or with one that is none of `names`, gets."""

    listed: ClassVar[bool] = True
    noun: ClassVar[tuple[str, str]] = ("tag", "tags")

    def settle(self, train: Survey, offered: Mapping[str, Reading]) -> Self:
        if not train.listed:
            raise UserError(f"Expected a list of tags in each row of {train.where}, one a word. Pass --label COLUMN.")
        _check_classes(train, train.values, offered)
        if train.class_names is None and not any(math.isnan(number(value)) for value in train.values):
            raise UserError(
                f"Expected tags by name in {train.where}, such as B-PER and O; they are numbers that nobody has named, "
                "and what is an entity cannot be told. Save them as names, or as a ClassLabel."
            )
        return replace(self, names=tuple(train.class_names or ordered(train.values)))

    def cells(self, cells: list[Any], class_names: list[str] | None) -> list[Any]:
        ids: dict[str | None, int] = {name: i for i, name in enumerate(self.names)}
        return [[ids.get(key(value, class_names), self.unknown) for value in cell or []] for cell in cells]

    def learnt(self, labels: Labels, raw: RawSplit, column: str) -> Self:
        return replace(super().learnt(labels, raw, column), unknown=-1)  # such a row is predicted, and not scored

    def shown(self, encoded: Any) -> str:
        named = [self.names[i] if i >= 0 else "-" for i in encoded[:6]]
        return f"{' '.join(named)}{' ...' if len(encoded) > 6 else ''}"

    def flaws(self, data: datasets.Dataset, batches: Iterable[np.ndarray], found: Any) -> Iterator[tuple[int, str]]:
        """Rows that have not one tag a word."""
        import pyarrow.compute as pc

        start, columns = 0, [data.column_names[0], "label"]
        for table in data.select_columns(columns).with_format("arrow").iter(10_000):
            words, tags = (pc.list_value_length(table[name]).to_numpy() for name in columns)
            for i in (words != tags).nonzero()[0].tolist():
                yield start + i, f"{words[i]} words and {tags[i]} tags"
            start += len(table)


_BITS = {"true": 1.0, "false": 0.0}


def _check_single(train: Survey, noun: str, offered: Mapping[str, Reading]) -> None:
    if train.listed:
        cure = other_word(offered, Several, " Pass --problem_type {}.")
        raise UserError(f"Expected one {noun} a row in {train.where}; its rows hold lists.{cure}")


def _check_classes(train: Survey, values: set[str], offered: Mapping[str, Reading]) -> None:
    if not values:
        raise UserError(f"Expected labels in {train.where}; no row of train has one. Pass --label COLUMN.")
    if len(values) == 1:
        raise UserError(
            f"Expected at least two classes in {train.where}; every row of train is {quoted(min(values))}. "
            "Add rows of another class, or pass --label COLUMN."
        )
    _check_many(train, values, offered)
    if len(values) == train.rows >= 20 and train.class_names is None:
        raise UserError(
            f"Expected labels that repeat in {train.where}; each of the {train.rows:,} rows of train has its own. "
            f"Pass --label COLUMN{_or_amounts(offered)}."
        )


def _check_many(train: Survey, values: set[str], offered: Mapping[str, Reading]) -> None:
    if len(values) > MOST_CLASSES:
        raise UserError(
            f"Expected at most {MOST_CLASSES:,} classes in {train.where}; it has more. "
            f"Pass --label COLUMN{_or_amounts(offered)}."
        )


def _or_amounts(offered: Mapping[str, Reading]) -> str:
    return other_word(offered, Amount, ", or --problem_type {} for numbers")
