"""Name what data is made of: labels, the lines of the check page, the splits that a task trains and measures on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.settings.fields import IN, flag

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "valid", "test")
WORDS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid"}
WORDS |= {"test": "test", "testing": "test", "trn": "train", "tst": "test", "trainset": "train", "testset": "test"}
WORDS |= {"valset": "valid", "validset": "valid", "devset": "valid"}
IGNORED = -100
"""The label of what enters neither loss nor metric, as torch's cross-entropy has it."""


def quoted(value: object) -> str:
    """A cell as an error shows it: its `repr`, 80 characters at most."""
    shown = repr(value[:80] if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def counted(n: int, noun: str) -> str:
    """1 row, 2 rows, 1,000 rows."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def verb(n: int, word: str) -> str:
    """1 repeats, 2 repeat."""
    return f"{word}s" if n == 1 else word


def split_of(name: str) -> str | None:
    """The split that a file, a folder or a Hub split is named after: `reviews-dev.csv` -> "valid"."""
    words = [WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS]
    return words[0] if words else None


@dataclass(frozen=True)
class Data:
    """Which rows a run reads, whatever they hold."""

    data: Any = flag(
        "hftl:reviews",
        "csv, tsv, jsonl, parquet, arrow, a folder, or a Hub id (name or name:config)",
        IN,
        of_several="never",
    )
    data_revision: str | None = flag(None, "branch, tag or commit of a Hub data set", IN, of_several="never")
    valid: str | None = flag(None, "validation data, where it is a source of its own", IN, of_several="each")
    test: str | None = flag(None, "test data, where it is a source of its own", IN, of_several="each")
    max_train_samples: int | None = flag(
        None, "train on this many rows only, chosen with the seed", IN, range="[1, inf)", of_several="both"
    )
    on_bad_row: str = flag(
        "error", "error, or skip and count rows that are empty or unreadable", IN, choices=("error", "skip")
    )
    data_sha256: str | None = flag(
        None, "as recipe.yaml has it: the run says so where the data has changed since", IN, of_several="each"
    )


@dataclass(frozen=True)
class Target:
    """Where the target domain of an adaptation is: sources of its own, or a value of a column of the data."""

    of_several: ClassVar[str] = "never"

    unlabelled: str | None = flag(None, "rows of a target domain to adapt to; no label of theirs is read", IN)
    target_test: str | None = flag(None, "labelled rows of the target domain, to measure on at the end", IN)
    domain: str | None = flag(None, "the column that names each row's domain; test is measured for each", IN)
    target: str | None = flag(None, "with --domain: the domain to adapt to; its labels are used for measuring only", IN)
    source: list[str] = flag(None, "with --domain: the domains to learn from; else all but --target", IN, factory=list)


@dataclass
class Labels:
    """What the labels are: the word under which the task reads them, and class names in the order of their ids."""

    read_as: str
    names: list[str]
    values: list[int] = field(default_factory=list)
    """Of masks: the pixel value of each class."""
    amount: bool = False
    """Whether a label is one number, and no class."""


@dataclass
class Check:
    """One line of the check page. `level` is "ok", "note" or "warn" (an error raises UserError instead)."""

    name: str
    level: str
    sentence: str
    details: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Splits:
    """Three data sets ready for a task: columns carry the names of the roles, `label` is encoded by its reading.

    An image cell is `{"bytes": bytes | None, "path": str | None}`, undecoded.
    """

    train: Dataset
    valid: Dataset
    test: Dataset
    labels: Labels
    columns: dict[str, str]
    """Role -> the column's name at the source."""
    source: str
    notes: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Split -> sha256 of its content: independent of file names, formats, cache folders and batches."""
    origin: str = ""
    """sha256 of all rows as they came, before the seed parted them."""
    checks: list[Check] = field(default_factory=list)
    unlabelled: Dataset | None = None
    """Rows of the target domain to train with: the input roles alone."""
    target: Dataset | None = None
    """Labelled rows of the target domain, for measuring only."""
