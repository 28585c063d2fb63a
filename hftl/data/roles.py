"""Name what a task needs from a row, and what each way to read its label can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hftl.data.survey import class_names, ordered, survey
from hftl.data.types import Check, Labels, quoted
from hftl.errors import UserError, suggest

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from hftl.data.source import Opened, RawSplit

_ENCODING = 4  # part of the cache key of encoded columns: raise it when `cells` of a reading changes


@dataclass(frozen=True)
class Role:
    """What a task needs from a row.

    `kind` is "text", "words" (a list of texts), "image", "label" or "domain"; `candidates` are columns, best first.
    Of a label, `reads` are the readings to choose from, by the words of `--problem_type`.
    """

    kind: str
    candidates: tuple[str, ...]
    required: bool = True
    reads: Mapping[str, Reading] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    """Columns that go together: that of the role before, and this role's."""

    def __post_init__(self) -> None:
        if self.kind == "label" and not self.reads:
            raise ValueError('Expected how the label reads; the role has none. Write reads={"my_labels": OneClass()}.')


@dataclass(frozen=True)
class Reading:
    """How a label column is read, checked and encoded; `settle` makes the one that fits the train split.

    Methods take what `look` found: a `Survey` of the column, or of masks a `MaskScan`.
    """

    names: tuple[str, ...] = field(default=(), kw_only=True)
    """Class names in the order of their ids, which `settle` finds."""
    values: tuple[int, ...] = field(default=(), kw_only=True)
    """Of masks: the pixel value of each class, which `settle` finds."""

    dtype: ClassVar[str] = "int64"
    amount: ClassVar[bool] = False
    """Whether a label is one number, and no class."""
    listed: ClassVar[bool] = False
    """Whether an encoded label is a list of `dtype`."""
    splits_texts: ClassVar[bool] = False
    """Whether a text like `a|b` holds several classes."""
    noun: ClassVar[tuple[str, str]] = ("class", "classes")
    balanced: ClassVar[bool] = False
    """Whether the check page compares the sizes of classes."""
    weighted: ClassVar[bool] = False
    """Whether `--class_weights` may level them."""

    def folders(self, source: object) -> Opened | None:
        """The rows of a source that only this reading makes sense of; None of any other."""
        return None

    def look(self, raw: RawSplit, column: str, inputs: Callable[[], datasets.Dataset]) -> Any:
        """What a column of labels holds; `inputs` gives the columns of the other roles."""
        return survey(raw.labels(column), f"column {column!r} of {raw.name}", self.splits_texts)

    def fits(self, train: Any) -> bool:
        """Whether this is the natural reading of a column; where none is, the first that the task names is taken."""
        return False

    def settle(self, train: Any, offered: Mapping[str, Reading]) -> Self:
        """This reading with what train says: class names, and how they are written.

        Raises:
            UserError: train's labels do not read so; the sentence names another of `offered` that may.
        """
        raise NotImplementedError

    def learnt(self, labels: Labels, raw: RawSplit, column: str) -> Self:
        """This reading for other rows, of which a model has learnt the labels; one that it does not know is missing.

        Raises:
            UserError: it cannot be told how the column reads.
        """
        return replace(self, names=tuple(labels.names), values=tuple(labels.values))

    def notes(self, train: Any, offered: Mapping[str, Reading]) -> list[Check]:
        """Notes on a reading that may not be the one that was meant."""
        return []

    def check_same(self, train: Any, other: Any, split: str) -> None:
        """Raise `UserError` where a later split has labels that train lacks, or another kind of label."""
        if other.listed != train.listed:
            kinds = ("lists", "single labels") if other.listed else ("single labels", "lists")
            raise UserError(
                f"Expected the same kind of label in all splits; {other.where} has {kinds[0]} and train has {kinds[1]}."
            )
        seen = train.values | train.words
        if new := self._new(train, other) - seen:
            raise UserError(
                f"Expected the labels of {other.where} among those of train ({_some(ordered(seen))}); {split} also has "
                f"{_some(ordered(new))}.{suggest(min(new), seen)} Correct them, or add such rows to train."
            )

    def _new(self, train: Any, other: Any) -> set[str]:
        return other.values | (set() if train.words_are_missing else other.words)

    def encode(self, raw: RawSplit, column: str) -> datasets.Dataset:
        """The column `label`, encoded; a missing label is -1, NaN or, of a tag, -100."""
        import datasets

        cells, value = raw.labels(column), datasets.Value(self.dtype)
        return cells.map(
            _encode,
            batched=True,
            fn_kwargs={"reading": self, "class_names": class_names(cells), "version": _ENCODING},
            features=datasets.Features({"label": datasets.List(value) if self.listed else value}),
            desc="Reading labels",
        )

    def cells(self, cells: list[Any], class_names: list[str] | None) -> list[Any]:
        """A batch of cells, encoded; `class_names` are those of a ClassLabel column."""
        raise NotImplementedError

    def shown(self, encoded: Any) -> str:
        """An encoded label in words, for the check page."""
        return repr(self.names[encoded]) if encoded >= 0 else "no label"

    def held(self, batches: Iterator[np.ndarray], found: Any) -> np.ndarray | None:
        """What is kept of each row's label in memory; None: labels are read in batches when they are asked for."""
        import numpy as np

        return None if self.listed else np.concatenate(list(batches))

    def flaws(self, data: datasets.Dataset, batches: Iterable[np.ndarray], found: Any) -> Iterator[tuple[int, str]]:
        """Rows whose label cannot be used, and why."""
        start = 0
        for values in batches:
            first = values[:, 0] if self.listed else values
            missing = first == -1 if self.dtype == "int64" else first != first  # NaN alone is not itself
            yield from ((start + row, "no label") for row in missing.nonzero()[0].tolist())
            start += len(values)

    def digest(self, values: np.ndarray) -> bytes:
        """What the fingerprint is made of."""
        return values.tobytes()

    def count(self, values: np.ndarray) -> np.ndarray:
        """(classes,) int64: how often each class is in a batch."""
        import numpy as np

        return np.bincount(values[values >= 0], minlength=len(self.names))

    def summary(self, splits: Mapping[str, Iterable[np.ndarray]]) -> tuple[str, list[dict[str, Any]]]:
        """What the check page says of the labels of all splits: the end of a sentence, and the rows of a table."""
        counts: dict[str, Any] = {split: sum(map(self.count, batches)) for split, batches in splits.items()}
        rows = [
            {self.noun[0]: name, **{split: int(of[i]) for split, of in counts.items()}}
            for i, name in enumerate(self.names)
        ]
        return f"; {len(self.names)} {self.noun[1]}", rows


def asked_word(offered: Mapping[str, Reading], word: str | None) -> str | None:
    """The word of the reading to take: as asked, or the only one; None where the column will tell.

    Raises:
        UserError: a word that the task does not offer.
    """
    *most, last = offered
    if word is None:
        return None if most else last
    if word not in offered:
        known = f"{', '.join(most)} or {last}" if most else last
        raise UserError(f"Expected --problem_type {known}; it is {word!r}.{suggest(word, offered)}")
    return word


def other_word(offered: Mapping[str, Reading], kind: type[Reading], sentence: str) -> str:
    """A sentence with the word of a reading of this kind; "" where the task does not offer one."""
    word = next((word for word, one in offered.items() if isinstance(one, kind)), None)
    return sentence.format(word) if word else ""


def _encode(
    batch: dict[str, list[Any]], reading: Reading, class_names: list[str] | None, version: int
) -> dict[str, list[Any]]:
    return {"label": reading.cells(batch["label"], class_names)}


def _some(names: list[str]) -> str:
    return ", ".join(map(quoted, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
