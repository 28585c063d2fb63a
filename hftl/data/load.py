"""Load, check, encode and split the data of a task, from a source and the roles of the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from hftl.data.carve import carve, scarce, subset
from hftl.data.check import bad_rows, split_checks
from hftl.data.columns import columns_check, find_columns, inputs, several_columns, split_by_column
from hftl.data.domains import set_aside
from hftl.data.formats.images import loose_images
from hftl.data.roles import Reading, Role, asked_word
from hftl.data.source import Opened, RawSplit, one_set, open_source
from hftl.data.split import Split, read_split, whole_fingerprint
from hftl.data.survey import Survey, class_names, near_names
from hftl.data.types import SPLITS, Check, Labels, Splits, Target, quoted
from hftl.errors import UserError

SHARE = 0.1  # of the rows of train, for a split that is missing
TARGET = "target"  # the split that is only measured: labelled rows of another domain
UNLABELLED = "unlabelled"  # rows that are trained with, and have no label
_MANY_ROWS = 100_000  # below, a progress bar is noise


def load(
    source: Any,
    roles: dict[str, Role],
    *,
    columns: dict[str, str] | None = None,
    valid: Any = None,
    test: Any = None,
    seed: int = 42,
    read_as: str | None = None,
    on_bad_row: str = "error",
    max_train_samples: int | None = None,
    revision: str | None = None,
    target: Target | None = None,
) -> Splits:
    """Load, check and split data for a task.

    Args:
        source: a csv, tsv, json, jsonl, parquet or arrow file, a folder, a list of files, a Hub id (`name` or
            `name:config`), `hftl:reviews`, `hftl:digits`, a Dataset or a DatasetDict.
        roles: what the task needs from a row, by role name; rows bear labels where one of them is `label`.
        columns: role -> column, where the candidates of the role do not do.
        valid, test: sources of their own, or names of further splits of a Hub source.
        seed: of splits that must be carved from train, and of `max_train_samples`.
        read_as: which reading of the role `label`; None takes the natural one. Without that role: what is learned.
        on_bad_row: "error", or "skip" to leave out rows that are empty, unreadable or without a label, and count them.
        max_train_samples: train on this many rows only, each class with its share.
        revision: of a Hub source.
        target: where a second domain is, to be adapted to.

    Raises:
        UserError: a source, a column, a label or a row that is not what it should be.
    """
    offered = roles["label"].reads if "label" in roles else {}
    word = asked_word(offered, read_as) if offered else read_as
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"Expected --on_bad_row error or skip; it is {on_bad_row!r}.")
    given = {split: one for split, one in (("valid", valid), ("test", test)) if one is not None}
    with quiet(True):
        opened = _open_all(source, given, revision, offered.get(word or ""), loose=not offered)
        split_by_column(opened, roles, columns or {})
        unlabelled, other = set_aside(opened, target or Target(), seed)
    if "train" not in opened.splits:
        raise UserError(f"Expected a train split in {opened.name}; it has {', '.join(opened.splits) or 'none'}.")
    with quiet(sum(len(raw.data) for raw in opened.splits.values()) < _MANY_ROWS):
        loading = _Loading(opened, roles, columns or {}, set(given), seed)
        if other is not None:
            loading.raw[TARGET] = other
        loading.unlabelled = unlabelled
        return loading.run(word, on_bad_row, max_train_samples)


class _Loading:
    """The state of one `load`: raw splits, and what was noted on the way."""

    def __init__(
        self, opened: Opened, roles: dict[str, Role], columns: dict[str, str], given: set[str], seed: int
    ) -> None:
        self.raw = {split: opened.splits[split] for split in SPLITS if split in opened.splits}
        self.source, self.notes = opened.name, list(opened.notes)
        self.roles, self.mapped, self.given, self.seed = roles, columns, given, seed
        self.columns: dict[str, dict[str, str]] = {}
        self.checks = [Check("files", "note", sentence) for sentence in opened.unread]
        self.unlabelled: RawSplit | None = None
        if opened.others:
            self.notes.append(f"{opened.name} also has the splits {', '.join(opened.others)}, which were not used")

    def run(self, word: str | None, on_bad_row: str, max_train_samples: int | None) -> Splits:
        if label := self.mapped.get("label"):
            self.raw = {split: several_columns(raw, label) for split, raw in self.raw.items()}
        self.columns["train"] = find_columns(self.raw["train"], self.roles, self.mapped)
        self.checks.insert(0, columns_check(self.raw["train"], self.columns["train"]))
        labels, reading, found = Labels(word or "", []), None, dict[str, Any]()
        if "label" in self.roles:
            word, reading, found = self._read_labels(word)
            labels = Labels(word, list(reading.names), list(reading.values), reading.amount)
        for split in self.raw:
            self._find_columns(split)
        splits = {split: self._split(split, reading, found.get(split)) for split in self.raw}
        if self.unlabelled is not None:
            splits[UNLABELLED] = self._without_labels(self.unlabelled)
        splits = self._drop_bad(splits, on_bad_row)
        origin = whole_fingerprint(splits, labels)
        unlabelled = splits.pop(UNLABELLED, None)
        first = 1 + sum(one.name == "label form" for one in self.checks)
        self.checks.insert(first, self._carve(splits, labels))
        if max_train_samples is not None:
            train = splits["train"]
            rows = subset(max_train_samples, train.classes, len(train.data), self.seed)
            self.notes.append(f"train is {len(rows):,} of {len(train.data):,} rows, seed {self.seed}")
            splits["train"] = train.take(rows)
        splits = {split: splits[split] for split in (*SPLITS, TARGET) if split in splits}
        self.checks += split_checks(splits, reading)
        return Splits(
            train=splits["train"].data,
            valid=splits["valid"].data,
            test=splits["test"].data,
            labels=labels,
            columns=self.columns["train"],
            source=self.source,
            target=splits[TARGET].data if TARGET in splits else None,
            unlabelled=None if unlabelled is None else unlabelled.data,
            notes=self.notes,
            fingerprints={split: one.fingerprint(labels) for split, one in splits.items()}
            | ({} if unlabelled is None else {UNLABELLED: unlabelled.fingerprint(Labels("", []))}),
            origin=origin,
            checks=self.checks,
        )

    def _read_labels(self, word: str | None) -> tuple[str, Reading, dict[str, Any]]:
        """How the labels of all splits read, the word for it, and what their columns hold."""
        offered = self.roles["label"].reads
        first = offered[word] if word else next(iter(offered.values()))  # where none is asked for, any may look
        found = {"train": self._look("train", first)}
        word = word or next((word for word, one in offered.items() if one.fits(found["train"])), next(iter(offered)))
        reading = offered[word].settle(found["train"], offered)
        for split in [split for split in self.raw if split != "train"]:
            self._find_columns(split)
            if "label" in self.columns[split]:
                found[split] = self._look(split, first)
            if split not in found or found[split].unlabelled(found["train"]):
                self._leave_out(split)
            else:
                reading.check_same(found["train"], found[split], split)
        if isinstance(found["train"], Survey):
            self.checks.insert(1, self._said(word, reading))
            self.checks += near_names(reading.names)
        self.checks += reading.notes(found["train"], offered)
        return word, reading, found

    def _said(self, word: str, reading: Reading) -> Check:
        """How labels were read, with two rows."""
        column, raw = self.columns["train"]["label"], self.raw["train"]
        cells = raw.labels(column).select(range(min(2, len(raw.data))))
        read = reading.cells(cells["label"][:], class_names(cells))
        shown = "; ".join(f"{quoted(a)} is {reading.shown(b)}" for a, b in zip(cells["label"][:], read, strict=True))
        return Check("label form", "ok", f"column {column!r} reads as {word}: {shown}")

    def _look(self, split: str, reading: Reading) -> Any:
        return reading.look(self.raw[split], self.columns[split]["label"], lambda: self._inputs(split))

    def _inputs(self, split: str) -> datasets.Dataset:
        return inputs(self.raw[split], self.columns[split], self.roles)

    def _split(self, split: str, reading: Reading | None, found: Any) -> Split:
        column = self.columns[split].get("label", "")
        return read_split(self.raw[split], self._inputs(split), self.roles, column, reading, found)

    def _without_labels(self, raw: RawSplit) -> Split:
        """Rows of the target, scanned like all others; their columns are those of train where they are there."""
        wanted = {role: need for role, need in self.roles.items() if need.kind != "label"}
        columns = find_columns(raw, wanted, self._of_train(raw, wanted))
        return read_split(raw, inputs(raw, columns, wanted), wanted)

    def _find_columns(self, split: str) -> None:
        """The columns of another split: those of train where they are there; only the label may be missing."""
        if split not in self.columns:
            raw, train = self.raw[split], self.columns["train"]
            roles = {role: replace(self.roles[role], required=role != "label") for role in train}
            self.columns[split] = find_columns(raw, roles, self._of_train(raw, roles))

    def _of_train(self, raw: RawSplit, roles: dict[str, Role]) -> dict[str, str]:
        there = raw.data.column_names
        return {role: column for role, column in self.columns["train"].items() if role in roles and column in there}

    def _leave_out(self, split: str) -> None:
        raw = self.raw.pop(split)
        if split in self.given or split == TARGET:
            flag = "target_test" if split == TARGET else split
            raise UserError(f"Expected labels in {raw.name}; it has none. Leave --{flag} out; hftl predict reads it.")
        self.notes.append(f"the {split} split of {self.source} has no labels (missing, or all -1) and was left out")

    def _drop_bad(self, splits: dict[str, Split], on_bad_row: str) -> dict[str, Split]:
        bad = {split: one.scan.reasons for split, one in splits.items() if one.scan.reasons}
        total = sum(len(one.data) for one in splits.values())
        if bad and on_bad_row == "error":
            split, reasons = next(iter(bad.items()))
            row, count = min(reasons), sum(map(len, bad.values()))
            raise UserError(
                f"Expected a full row in data row {row + 1} of {splits[split].name}; it has {reasons[row]} "
                f"({count:,} bad of {total:,} rows). Correct it, or pass --on_bad_row skip."
            )
        self.checks.append(bad_rows(bad, total))
        for split, reasons in bad.items():
            one = splits[split]
            keep = np.setdiff1d(np.arange(len(one.data)), np.fromiter(reasons, np.int64))
            if len(keep) == 0:
                raise UserError(
                    f"Expected at least one good row in {one.name}; all {len(one.data):,} are bad, the first with "
                    f"{reasons[0]}. Correct them, or name another column."
                )
            splits[split] = one.take(keep)
        return splits

    def _carve(self, splits: dict[str, Split], labels: Labels) -> Check:
        """Set aside what is missing of train, valid and test, and say which were given."""
        whole, said = len(splits["train"].data), f"given: {', '.join(split for split in SPLITS if split in splits)}"
        for split in ("test", "valid"):
            if split in splits:
                continue
            train = splits["train"]
            share = SHARE * whole / len(train.data)
            rest, taken = carve(share, train.scan.keys, train.classes, self.seed, split)
            splits[split], splits["train"] = train.take(taken), train.take(rest)
            part_of = f"{100 * len(taken) / whole:.0f} % of train ({len(taken):,} rows)"
            self.notes.append(f"no {split} split was given: {part_of} was set aside, seed {self.seed}")
            said += f"; {split} is {part_of}, set aside with seed {self.seed}"
            small = scarce(train.scan.keys, train.classes) if train.classes is not None else []
            if small:
                names = ", ".join(repr(labels.names[i]) for i in small[:5]) + (" ..." if len(small) > 5 else "")
                self.notes.append(f"{split} may lack the classes {names}: with fewer than 3 rows, too few to share out")
        return Check("splits", "ok", said)


def _open(source: Any, revision: str | None, reading: Reading | None) -> Opened:
    return (reading.folders(source) if reading else None) or open_source(source, revision)


def _open_all(source: Any, given: dict[str, Any], revision: str | None, reading: Reading | None, loose: bool) -> Opened:
    """The source with the splits that have sources of their own; `loose`: its images may lie in it without a table."""
    images = loose_images(source) if loose else None
    opened = _open(source if images is None else images, revision, reading)
    for split, one in given.items():
        opened.splits[split] = _given(one, split, opened, reading)
    return opened


def _given(one: Any, split: str, opened: Opened, reading: Reading | None) -> RawSplit:
    if isinstance(one, str) and one in opened.others:
        return opened.others.pop(one)
    given = _open(one, None, reading)
    opened.unread += given.unread
    return one_set(given, split, f"--{split} {one}")


@contextmanager
def quiet(quiet: bool) -> Iterator[None]:
    """Hold back the progress bars of `datasets` where they would only flicker."""
    hide = quiet and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()
