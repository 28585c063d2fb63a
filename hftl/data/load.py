"""A source and the roles of a task -> checked, encoded, seeded splits. Knows the order of steps, not their insides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from hftl.data.check import bad_rows, split_checks
from hftl.data.columns import find_columns
from hftl.data.domains import set_aside
from hftl.data.formats.images import loose_images
from hftl.data.labels import Reading, check_problem_type, check_same, decide, reading_checks
from hftl.data.masks import paired_folders, read_classes, scan_masks
from hftl.data.part import Part, image_roots, inputs, label_column, make_masked, make_part, masked, whole_fingerprint
from hftl.data.scan import check_paths
from hftl.data.source import WORDS, Rows, Source, one_set, open_source
from hftl.data.split import carve, scarce, subset
from hftl.data.survey import Survey, survey
from hftl.data.types import PIXELS, SPLITS, Check, Labels, Masks, Role, Splits, Target
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
    problem_type: str | None = None,
    on_bad_row: str = "error",
    max_train_samples: int | None = None,
    revision: str | None = None,
    target: Target | None = None,
    masks: Masks | None = None,
) -> Splits:
    """Load, check and split data for a task.

    Args:
        source: a csv, tsv, json, jsonl, parquet or arrow file, a folder, a list of files, a Hub id (`name` or
            `name:config`), `hftl:reviews`, `hftl:digits`, a Dataset or a DatasetDict.
        roles: what the task needs from a row, by role name; rows bear labels where one of them is `label`.
        columns: role -> column, where the candidates of the role do not do.
        valid, test: sources of their own, or names of further splits of a Hub source.
        seed: of splits that must be carved from train, and of `max_train_samples`.
        problem_type: forces how labels are read; None guesses from their kind. Without a role `label`: what is learned.
        on_bad_row: "error", or "skip" to leave out rows that are empty, unreadable or without a label, and count them.
        max_train_samples: train on this many rows only, each class with its share.
        revision: of a Hub source.
        target: where a second domain is, to be adapted to.
        masks: how masks read, where they are the labels.

    Raises:
        UserError: a source, a column, a label or a row that is not what it should be.
    """
    if "label" in roles:
        check_problem_type(problem_type)
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"Expected --on_bad_row error or skip; it is {on_bad_row!r}.")
    with _quiet(True):
        loose = None if "label" in roles else loose_images(source)
        opened = _open(source if loose is None else loose, revision, problem_type)
        given = {split: one for split, one in (("valid", valid), ("test", test)) if one is not None}
        for split, one in given.items():
            opened.parts[split] = _given(one, split, opened, problem_type)
        _split_by_column(opened, columns or {})
        unlabelled, other = set_aside(opened, target or Target(), seed)
    if "train" not in opened.parts:
        raise UserError(f"Expected a train split in {opened.name}; it has {', '.join(opened.parts) or 'none'}.")
    with _quiet(sum(len(rows.data) for rows in opened.parts.values()) < _MANY_ROWS):
        loading = _Loading(opened, roles, columns or {}, set(given), seed, masks or Masks())
        if other is not None:
            loading.rows[TARGET] = other
        loading.unlabelled = unlabelled
        return loading.run(problem_type, on_bad_row, max_train_samples)


def read(
    source: Any, roles: dict[str, Role], *, columns: dict[str, str] | None = None, revision: str | None = None
) -> datasets.Dataset:
    """All rows of a source without labels, in order, for prediction: columns carry the names of the input roles.

    Of a source with several splits this is `test`.

    Raises:
        UserError: as `load`; empty rows and unreadable images are left in.
    """
    with _quiet(True):
        loose = loose_images(source)
        opened = open_source(source if loose is None else loose, revision)
        rows = one_set(opened, "test", opened.name)
        wanted = {role: need for role, need in roles.items() if need.kind != "label"}
        given = inputs(rows, find_columns(rows, wanted, columns or {}), wanted)
        check_paths(given, [role for role in given.column_names if wanted[role].kind == "image"], image_roots(rows))
        return given


class _Loading:
    """The state of one `load`: parts by split, and what was noted on the way."""

    def __init__(
        self, opened: Source, roles: dict[str, Role], columns: dict[str, str], given: set[str], seed: int, masks: Masks
    ) -> None:
        self.rows = {split: opened.parts[split] for split in SPLITS if split in opened.parts}
        self.source, self.notes = opened.name, list(opened.notes)
        self.roles, self.mapped, self.given, self.seed, self.masks = roles, columns, given, seed, masks
        self.checks: list[Check] = []
        self.unlabelled: Rows | None = None
        if opened.others:
            self.notes.append(f"{opened.name} also has the splits {', '.join(opened.others)}, which were not used")

    def run(self, problem_type: str | None, on_bad_row: str, max_train_samples: int | None) -> Splits:
        columns = {"train": find_columns(self.rows["train"], self.roles, self.mapped)}
        reading = self._read_labels(columns, problem_type)
        labels = Labels(problem_type or "", [])
        if reading is not None:
            labels = Labels(reading.problem_type, reading.names, list(reading.values))
        parts = {split: self._part(rows, columns[split], reading) for split, rows in self.rows.items()}
        if self.unlabelled is not None:
            parts[UNLABELLED] = self._without_labels(self.unlabelled, columns["train"])
        parts = self._drop_bad(parts, on_bad_row)
        origin = whole_fingerprint(parts, labels)
        unlabelled = parts.pop(UNLABELLED, None)
        self._carve(parts, labels)
        if max_train_samples is not None:
            train = parts["train"]
            rows = subset(max_train_samples, train.classes, len(train.data), self.seed)
            self.notes.append(f"train is {len(rows):,} of {len(train.data):,} rows, seed {self.seed}")
            parts["train"] = train.take(rows)
        parts = {split: parts[split] for split in (*SPLITS, TARGET) if split in parts}
        self.checks += split_checks(parts, labels)
        return Splits(
            train=parts["train"].data,
            valid=parts["valid"].data,
            test=parts["test"].data,
            labels=labels,
            columns=columns["train"],
            source=self.source,
            target=parts[TARGET].data if TARGET in parts else None,
            unlabelled=None if unlabelled is None else unlabelled.data,
            notes=self.notes,
            fingerprints={split: part.fingerprint(labels) for split, part in parts.items()}
            | ({} if unlabelled is None else {UNLABELLED: unlabelled.fingerprint(Labels("", []))}),
            origin=origin,
            checks=self.checks,
        )

    def _part(self, rows: Rows, columns: dict[str, str], reading: Reading | None) -> Part:
        if reading is not None and reading.problem_type == PIXELS:
            return make_masked(rows, columns, self.roles, reading, self.masks)
        return make_part(rows, columns, self.roles, reading)

    def _read_masks(self, columns: dict[str, dict[str, str]]) -> Reading:
        """The classes of masks, which only their pixels tell; the splits without masks are left out."""
        rows = self.rows["train"]
        found = scan_masks(masked(rows, columns["train"], self.roles), image_roots(rows))
        reading = read_classes(self.masks, found, f"the masks of {rows.name}")
        for split in [split for split in self.rows if split != "train"]:
            columns[split] = self._as_in_train(split, columns["train"])
            if "label" not in columns[split]:
                self._leave_out(split)
        return reading

    def _read_labels(self, columns: dict[str, dict[str, str]], problem_type: str | None) -> Reading | None:
        """How the labels of all splits read; None where the task asks for none."""
        if "label" not in self.roles:
            for split in [split for split in self.rows if split != "train"]:
                columns[split] = self._as_in_train(split, columns["train"])
            return None
        if problem_type == PIXELS:
            return self._read_masks(columns)
        where = f"column {columns['train']['label']!r} of {self.rows['train'].name}"
        train = survey(label_column(self.rows["train"], columns["train"]["label"]), where, problem_type)
        reading = decide(train, where, problem_type)
        for split in [split for split in self.rows if split != "train"]:
            rows = self.rows[split]
            found = self._survey_other(rows, columns, split, train, problem_type)
            if found is None:
                self._leave_out(split)
            else:
                check_same(reading, train, found, split, f"column {columns[split]['label']!r} of {rows.name}")
        self.checks += reading_checks(train, reading, where)
        return reading

    def _survey_other(
        self, rows: Rows, columns: dict[str, dict[str, str]], split: str, train: Survey, problem_type: str | None
    ) -> Survey | None:
        """Find the columns of train in valid or test and survey the labels; None where there are none."""
        columns[split] = self._as_in_train(split, columns["train"])
        if "label" not in columns[split]:
            return None
        column = columns[split]["label"]
        found = survey(label_column(rows, column), f"column {column!r} of {rows.name}", problem_type)
        return None if found.unlabelled(train) else found

    def _without_labels(self, rows: Rows, train: dict[str, str]) -> Part:
        """Rows of the target, scanned like all others; their columns are those of train where they are there."""
        wanted = {role: need for role, need in self.roles.items() if need.kind != "label"}
        same = {role: c for role, c in train.items() if role in wanted and c in rows.data.column_names}
        return make_part(rows, find_columns(rows, wanted, same), wanted, None)

    def _as_in_train(self, split: str, train: dict[str, str]) -> dict[str, str]:
        """The columns of another split: those of train where they are there; only the label may be missing."""
        rows = self.rows[split]
        same = {role: column for role, column in train.items() if column in rows.data.column_names}
        return find_columns(rows, {role: replace(self.roles[role], required=role != "label") for role in train}, same)

    def _leave_out(self, split: str) -> None:
        rows = self.rows.pop(split)
        if split in self.given or split == TARGET:
            flag = "target_test" if split == TARGET else split
            raise UserError(f"Expected labels in {rows.name}; it has none. Leave --{flag} out; hftl predict reads it.")
        self.notes.append(f"the {split} split of {self.source} has no labels (missing, or all -1) and was left out")

    def _drop_bad(self, parts: dict[str, Part], on_bad_row: str) -> dict[str, Part]:
        bad = {split: part.scan.reasons for split, part in parts.items() if part.scan.reasons}
        total = sum(len(part.data) for part in parts.values())
        if bad and on_bad_row == "error":
            split, reasons = next(iter(bad.items()))
            row, count = min(reasons), sum(map(len, bad.values()))
            raise UserError(
                f"Expected a full row in data row {row + 1} of {parts[split].name}; it has {reasons[row]} "
                f"({count:,} bad of {total:,} rows). Correct it, or pass --on_bad_row skip."
            )
        self.checks.append(bad_rows(bad, total))
        for split, reasons in bad.items():
            part = parts[split]
            keep = np.setdiff1d(np.arange(len(part.data)), np.fromiter(reasons, np.int64))
            if len(keep) == 0:
                raise UserError(
                    f"Expected at least one good row in {part.name}; all {len(part.data):,} are bad, the first with "
                    f"{reasons[0]}. Correct them, or name another column."
                )
            parts[split] = part.take(keep)
        return parts

    def _carve(self, parts: dict[str, Part], labels: Labels) -> None:
        whole = len(parts["train"].data)
        for split in ("test", "valid"):
            if split in parts:
                continue
            train = parts["train"]
            share = SHARE * whole / len(train.data)
            rest, taken = carve(share, train.scan.keys, train.classes, self.seed, split)
            parts[split], parts["train"] = train.take(taken), train.take(rest)
            part_of = f"{100 * len(taken) / whole:.0f} % of train ({len(taken):,} rows)"
            self.notes.append(f"no {split} split was given: {part_of} was set aside, seed {self.seed}")
            small = scarce(train.scan.keys, train.classes) if train.classes is not None else []
            if small:
                names = ", ".join(repr(labels.names[i]) for i in small[:5]) + (" ..." if len(small) > 5 else "")
                self.notes.append(f"{split} may lack the classes {names}: with fewer than 3 rows, too few to share out")


def _open(source: Any, revision: str | None = None, problem_type: str | None = None) -> Source:
    pairs = paired_folders(source) if problem_type == PIXELS else None
    if pairs is None:
        return open_source(source, revision)
    return replace(open_source(pairs), name=str(source))


def _given(one: Any, split: str, opened: Source, problem_type: str | None) -> Rows:
    if isinstance(one, str) and one in opened.others:
        return opened.others.pop(one)
    return one_set(_open(one, None, problem_type), split, f"--{split} {one}")


def _split_by_column(opened: Source, mapped: dict[str, str]) -> None:
    """Honour a column `split` that says train, valid or test in each row."""
    rows = opened.parts.get("train")
    if rows is None or len(opened.parts) > 1 or "split" in mapped.values() or "split" not in rows.data.column_names:
        return
    codes = {word: SPLITS.index(split) for word, split in WORDS.items()}
    found = []
    for batch in rows.data.select_columns(["split"]).iter(10_000):
        found += [codes.get(str(value).strip().lower(), -1) for value in batch["split"]]
    places = np.array(found, np.int8)
    if (places < 0).any() or not (places == 0).any():
        opened.notes.append(f"the column 'split' of {rows.name} was not used: not every row has train, valid or test")
        return
    for code, split in enumerate(SPLITS):
        here = np.flatnonzero(places == code)
        if len(here):
            name = f"{rows.name} ({split})"
            opened.parts[split] = Rows(rows.data.select(here), name, rows.root, rows.trusted)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Hold back the progress bars of `datasets` where they would only flicker."""
    hide = quiet and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()
