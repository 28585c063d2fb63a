"""Open the rows that are to be predicted: inputs by role, the columns beside them, and labels where there are some."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from hftl.data.columns import find_columns, inputs, several_columns, several_names, split_by_column
from hftl.data.formats.images import files_under, loose_images, unread
from hftl.data.load import quiet
from hftl.data.roles import Reading, Role
from hftl.data.scan import check_paths
from hftl.data.source import Opened, RawSplit, open_source
from hftl.data.types import WORDS, Labels
from hftl.errors import UserError, suggest
from hftl.paths import expanded


@dataclass
class NewRows:
    """Rows in the order of their source; `len` and the number of a row are those of `inputs`."""

    inputs: datasets.Dataset
    """Columns by role, undecoded."""
    columns: dict[str, str]
    """Role -> the source's own name of its column, the label's included where there is one."""
    notes: list[str]
    """Sentences on what of the source was read, and what was not."""
    _raw: RawSplit
    _root: Path | None
    """The folder that names of files are told relative to."""

    def __len__(self) -> int:
        return len(self.inputs)

    def line(self, number: int, only: bool = False) -> dict[str, Any]:
        """A row as it came: the source's columns under their own names; images by the names of their files.

        Args:
            only: leave out the columns that are no input.
        """
        roles = {column: role for role, column in self.columns.items() if role != "label"}
        row = self.inputs[number]
        found = {column: self._named(row[role]) for column, role in roles.items()}
        if not only and self._features:
            found |= {name: _cell(cell, self._features[name]) for name, cell in self._beside[number].items()}
        return {name: found[name] for name in self._raw.data.column_names if name in found}

    @functools.cached_property
    def _beside(self) -> datasets.Dataset:
        """The columns that are no input, but for images."""
        data = self._raw.data.with_format(None)
        inputs = {column for role, column in self.columns.items() if role != "label"}
        kept = [n for n, one in data.features.items() if n not in inputs and not isinstance(one, datasets.Image)]
        return data.select_columns(kept)

    @functools.cached_property
    def _features(self) -> dict[str, Any]:
        return dict(self._beside.features)  # which datasets copies whole each time

    def _named(self, value: Any) -> Any:
        """A text or its words as they are, an image by the name of its file, relative to the data."""
        if not isinstance(value, dict):
            return value
        path = value.get("path") or ""
        inside = os.path.relpath(path, self._root) if self._root and os.path.isabs(path) else path
        return path if inside.startswith("..") else inside

    def labels(self, role: Role, labels: Labels) -> datasets.Dataset | None:
        """A column `label` encoded as a model has learnt these labels; None where the source has none.

        A label that the model does not know is one that is missing, as `hftl.data.roles.Reading.encode` has it.

        Raises:
            UserError: the column reads in another way than what was learnt.
        """
        column = self.columns.get("label")
        if column is None:
            return None
        try:
            with quiet(True):
                raw = several_columns(self._raw, column)
                return role.reads[labels.read_as].learnt(labels, raw, column).encode(raw, column)
        except (KeyError, ValueError, TypeError, AttributeError):  # lists where one class was learnt, and the like
            raise UserError(f"they do not read as {labels.read_as}") from None


def _cell(value: Any, feature: Any) -> Any:
    """A value as it came; the number of a class by its name."""
    if isinstance(feature, datasets.ClassLabel) and value is not None:
        return feature.int2str(value) if value >= 0 else None
    return None if isinstance(value, float) and math.isnan(value) else value


def new_rows(
    source: Any,
    roles: dict[str, Role],
    *,
    columns: dict[str, str] | None = None,
    trained: dict[str, str] | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> NewRows:
    """All rows of a source, or of one split of it.

    Args:
        roles: what a row must have; `label` need not be there.
        columns: role -> column, where the candidates of the role do not do.
        trained: the same, as training had them; its label need not be there.
        split: which one, by its name; else `test` of a source with several, and all rows of a table with a column
            that says the split.

    Raises:
        UserError: as `hftl.data.load.load`, and a split that is not there; empty and unreadable rows are left in.
    """
    with quiet(True):
        opened = _opened(source, roles["label"].reads if "label" in roles else {}, revision)
        needs = {role: replace(need, required=need.required and need.kind != "label") for role, need in roles.items()}
        learnt, asked = trained or {}, columns or {}
        raw, note = _asked(opened, split, roles, {**learnt, **asked})
        there = raw.data.column_names
        folded = {name.lower(): name for name in reversed(there)} | {name: name for name in there}
        mapped = {role: folded.get(name, folded.get(name.lower(), name)) for role, name in learnt.items()} | asked
        label = mapped.get("label", "")
        bits = several_names(raw, label)
        if bits or (label not in there and "label" not in asked):
            mapped.pop("label", None)
        chosen = find_columns(raw, {role: need for role, need in needs.items() if not bits or role != "label"}, mapped)
        given = inputs(raw, chosen, needs)
        check_paths(given, [role for role in given.column_names if needs[role].kind == "image"], raw.roots)
    place = expanded(source) if isinstance(source, str | Path) else None
    folder = raw.root or (place and next((path for path in (place, place.parent) if path.is_dir()), None))
    chosen |= {"label": label} if bits else {}
    read = ", ".join(f"{role} = {column}" for role, column in chosen.items())
    notes = [f"columns: {read}", *note, *opened.notes, *opened.unread]
    return NewRows(given, chosen, notes, raw, folder.resolve() if folder else None)


def typed_rows(role: str, lines: Iterable[str]) -> NewRows:
    """Rows of a text or a path a line."""
    table = datasets.Dataset.from_dict({role: [line.rstrip("\n") for line in lines]})
    return NewRows(table, {role: role}, [], RawSplit(table, "stdin"), None)


def _opened(source: Any, reads: Mapping[str, Reading], revision: str | None) -> Opened:
    """What training opens, and images that lie in a folder without a label."""
    place = expanded(source).resolve() if isinstance(source, str | Path) and source else None
    loose = None if place is None else loose_images(place)
    if loose is None or place is None:
        paired = next((found for one in reads.values() if (found := one.folders(source))), None)
        return paired or open_source(source, revision)
    opened = replace(open_source(loose), name=str(source))
    if place.is_dir():
        used = {cell["path"] for raw in opened.splits.values() for cell in raw.data["image"]}
        opened.unread += unread(files_under(place), used, "image(s) outside the splits")
        if len(opened.splits) == 1 and any(Path(path).parent != place for path in used):
            opened.notes.append("images lie in the folder itself, so the folders in it were not read as labels")
    return opened


def _asked(
    opened: Opened, split: str | None, roles: dict[str, Role], mapped: dict[str, str]
) -> tuple[RawSplit, list[str]]:
    """The rows that were asked for, and a sentence on those that were not."""
    whole = next(iter(opened.splits.values())) if len(opened.splits) == 1 and not opened.others else None
    split_by_column(opened, roles, mapped)
    there = opened.splits | opened.others
    mine = split if split is None or split in there else WORDS.get(split.lower(), split)
    if mine is None and whole is not None:
        said = f"all rows were read, of the splits {', '.join(there)}; --split takes one"
        return whole, [said] if len(there) > 1 else []
    mine = "test" if mine is None else mine
    if mine not in there:
        known = ", ".join(there)
        if split is None:
            raise UserError(f"Expected one set of rows in {opened.name}; it has {known}. Pass --split NAME.")
        raise UserError(f"{opened.name} has no split {split!r}; it has {known}.{suggest(split, there)}")
    others = ", ".join(name for name in there if name != mine)
    return there[mine], [f"the split {mine} was read; --split takes {others}, too"] if others else []
