"""Find the column of each role, and bring the inputs to the names of their roles."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hftl.data.formats.images import IMAGE, as_images
from hftl.data.roles import Role
from hftl.data.source import Opened, RawSplit
from hftl.data.survey import two_kinds
from hftl.data.types import SPLITS, WORDS, Check, quoted, split_of
from hftl.errors import UserError, suggest

_BITS = {"0": False, "1": True, "false": False, "true": True}


def find_columns(raw: RawSplit, roles: dict[str, Role], mapped: dict[str, str]) -> dict[str, str]:
    """Role -> column: as mapped, else the first candidate that is there, whatever its case.

    Raises:
        UserError: a required role without a column, or a mapped column that is not there.
    """
    there = raw.data.column_names
    found: dict[str, str] = {}
    for role, wanted in mapped.items():
        if role not in roles:
            raise UserError(
                f"Expected --text, --image or another input of this task; {role!r} is none.{suggest(role, roles)}"
            )
        if wanted not in there:
            raise UserError(_missing(wanted, role, raw, found, near=wanted))
        if wanted in found.values():
            raise UserError(f"Expected a column of its own for --{role}; {wanted!r} has another role. Pass another.")
        found[role] = wanted
    folded = {name.lower(): name for name in reversed(there)}
    _find_pairs(roles, folded, found)
    for role, need in roles.items():
        if role in found:
            continue
        names = need.candidates + (("file_name",) if need.kind == "image" else ())
        taken = set(found.values())
        column = next((folded[n.lower()] for n in names if folded.get(n.lower()) not in (None, *taken)), None)
        if column is not None:
            found[role] = column
        elif need.required:
            raise UserError(_missing(need.candidates[0], role, raw, found, near=""))
    return {role: found[role] for role in roles if role in found}


def _find_pairs(roles: dict[str, Role], folded: dict[str, str], found: dict[str, str]) -> None:
    """Take two columns that are known to go together, unless the first role has a better one, or is another's."""
    order = [*roles]
    for role, need in roles.items():
        first = order[order.index(role) - 1]
        if not need.pairs or role in found or roles[first].candidates[0] in folded:
            continue
        here = [(folded[a], folded[b]) for a, b in need.pairs if a in folded and b in folded]
        here = [pair for pair in here if found.get(first, pair[0]) == pair[0] and pair[1] not in found.values()]
        if here:
            found[first], found[role] = here[0]


def columns_check(raw: RawSplit, columns: dict[str, str]) -> Check:
    """Which column has which role, and which have none."""
    read = ", ".join(f"{role} = {column}" for role, column in columns.items())
    rest = [name for name in raw.data.column_names if name not in columns.values()]
    unread = f"; not read: {', '.join(rest[:8])}" + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
    return Check("columns", "ok", read + (unread if rest else ""))


def several_names(raw: RawSplit, wanted: str) -> list[str]:
    """The columns of `a,b,c`; none where that is one column, or where one is not there."""
    names, there = [name.strip() for name in wanted.split(",")], raw.data.column_names
    return names if wanted not in there and len(names) > 1 and {*names} <= {*there} else []


def several_columns(raw: RawSplit, wanted: str) -> RawSplit:
    """A column `a,b,c` made of columns of 0 and 1: of each row the names of those that hold 1.

    Raises:
        UserError: one of them holds something else.
    """
    names = several_names(raw, wanted)
    if not names:
        return raw
    cells: list[list[str]] = [[] for _ in range(len(raw.data))]
    for name in names:
        for row, cell in enumerate(raw.data.select_columns([name])[name][:]):
            bit = _BITS.get(str(cell).strip().lower().removesuffix(".0"))
            if bit is None:
                raise UserError(
                    f"Expected 0 or 1 in column {name!r} of {raw.name}, one of several labels; row {row + 1} has "
                    f"{quoted(cell)}."
                )
            if bit:
                cells[row].append(name)
    feature = datasets.List(datasets.Value("string"))
    made = datasets.Dataset.from_dict({wanted: cells}, features=datasets.Features({wanted: feature}))
    data = datasets.concatenate_datasets([raw.data.remove_columns(names), made], axis=1)
    return replace(raw, data=data)


def _like_text(raw: RawSplit, free: list[str]) -> str | None:
    """The column with the most text that does not come again, in the first rows; addresses and codes are no text."""
    head = raw.data.select(range(min(len(raw.data), 100))).with_format(None)
    lengths = {}
    for name in free:
        if getattr(raw.data.features.get(name), "dtype", "") in ("string", "large_string"):
            cells = {cell for cell in head[name] if cell and (" " in cell.strip() or not cell.isascii())}
            lengths[name] = sum(map(len, cells)) if 2 * len(cells) > len(head) else 0
    return max(lengths, key=lengths.__getitem__) if any(lengths.values()) and len(raw.data) > 2 else None


def _like_labels(raw: RawSplit, free: list[str]) -> str | None:
    """Columns of 0 and 1, all of them; else the last column whose values come again and again."""
    head = raw.data.select(range(min(len(raw.data), 200))).with_format(None)
    cells = {name: [str(cell) for cell in head[name]] for name in free if name in raw.data.column_names}
    bits = [name for name, values in cells.items() if {v.lower().removesuffix(".0") for v in values} <= _BITS.keys()]
    if len(bits) > 1:
        return ",".join(bits)
    again = [name for name, values in cells.items() if 1 < len(set(values)) <= len(values) / 2]
    return again[-1] if again else None


def _like_data(raw: RawSplit) -> str | None:
    """A name that is a value of its own column, or a sentence: the file begins with a row of data."""
    head = raw.data.select(range(min(len(raw.data), 200))).with_format(None)
    plain = [name for name in head.column_names if getattr(head.features[name], "dtype", "") == "string"]
    again = [name for name in plain if name in set(head[name]) and not name.isdigit()]
    return next(iter(again), next((name for name in plain if len(name.split()) > 4), None))


def _missing(wanted: str, role: str, raw: RawSplit, found: dict[str, str], near: str) -> str:
    if not near and (data := _like_data(raw)):
        held = f"{quoted(data)} in the first row of {raw.name}, which reads like data"
        return f"Expected names of columns, such as text and label; there is {held}. Add a header."
    there = [name if len(name) <= 30 else name[:27] + "..." for name in raw.data.column_names]
    free = [name for name in there if name not in found.values()]
    # labels tend to come last, inputs first
    like = {"label": _like_labels, "text": _like_text}.get(role if role == "label" else role.partition("_")[0])
    guess = (like and like(raw, free)) or (free[-1] if role == "label" else free[0]) if free else "COLUMN"
    listed = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "")
    hint = suggest(near, there) if near else ""
    return f"Expected a column {wanted!r} in {raw.name}; it has {listed}.{hint} Pass --{role} {shlex.quote(guess)}."


def inputs(raw: RawSplit, columns: dict[str, str], roles: dict[str, Role]) -> datasets.Dataset:
    """The input columns under the names of their roles; images stay undecoded.

    Raises:
        UserError: a column that holds something else than its role needs.
    """
    wanted = [(role, column) for role, column in columns.items() if roles[role].kind != "label"]
    for role, column in wanted:
        _check(raw, role, column, roles[role].kind)
    pieces = []
    for role, column in wanted:
        piece = raw.data.select_columns([column])
        piece = piece if column == role else piece.rename_column(column, role)
        if roles[role].kind == "image":
            piece = as_images(piece, role, raw.root, f"column {column!r} of {raw.name}")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces, axis=1)


def _check(raw: RawSplit, role: str, column: str, kind: str) -> None:
    feature, texts = raw.data.features[column], ("string", "large_string")
    dtype = getattr(feature, "dtype", type(feature).__name__)
    inner = getattr(feature, "feature", None)
    inner = getattr(inner, "dtype", type(inner).__name__)
    if kind == "text" and dtype not in texts:
        held = two_kinds(raw.data[column][:]) if dtype == "Json" else dtype
        raise UserError(f"Expected text in column {column!r} of {raw.name}; it holds {held}. Pass --{role} COLUMN.")
    if kind == "words" and inner == "Json":
        held = two_kinds(raw.data[column][:])
        raise UserError(f"Expected words alone in column {column!r} of {raw.name}; it holds {held}.")
    if kind == "words" and inner not in texts:
        raise UserError(
            f"Expected a list of words in each row of column {column!r} of {raw.name}, as jsonl and parquet have it. "
            f"Pass --{role} COLUMN."
        )


def split_by_column(opened: Opened, roles: dict[str, Role], mapped: dict[str, str]) -> None:
    """Honour a column `split` that says train, valid or test in each row, or folders of images that are named so."""
    raw = opened.splits.get("train")
    if raw is None or len(opened.splits) > 1:
        return
    outright = "split" in raw.data.column_names and "split" not in mapped.values()
    column = "split" if outright else _file_names(raw, roles, mapped)
    if column is None:
        return
    said = "the column 'split'" if outright else f"the folders in the file names of column {column!r}"
    ask = _said_outright if outright else _said_by_folder
    root = "" if raw.root is None else str(raw.root.resolve())
    found = [ask(cell, root) for batch in raw.data.select_columns([column]).iter(10_000) for cell in batch[column]]
    if None in found or "train" not in found:
        if outright or any(found):
            opened.notes.append(f"{said} of {raw.name} did not make splits: not every row has train, valid or test")
        return
    if not outright:
        opened.notes.append(f"splits are as {said} have them")
    for split in SPLITS:
        here = np.flatnonzero(np.array([one == split for one in found]))
        if len(here):
            opened.splits[split] = raw.take(here, split)


def _file_names(raw: RawSplit, roles: dict[str, Role], mapped: dict[str, str]) -> str | None:
    """The column that names files of images below the data's folder, where there is one."""
    for role in (role for role, need in roles.items() if need.kind == "image"):
        names = [mapped[role]] if role in mapped else [*roles[role].candidates, "file_name"]
        column = next((name for name in names if name in raw.data.column_names), None)
        if column is not None and raw.root is not None:
            feature = raw.data.features[column]
            return column if feature == IMAGE or getattr(feature, "dtype", "") == "string" else None
    return None


def _said_outright(cell: Any, root: str) -> str | None:
    return WORDS.get(str(cell).strip().lower())


def _said_by_folder(cell: Any, root: str) -> str | None:
    """The split that a folder on the way to a file names; of photos/ants/1.jpg the folder of a class names none."""
    by_class = isinstance(cell, dict)
    path = (cell or {}).get("path") if by_class else cell
    if not path:
        return None
    parts = Path(os.path.relpath(path, root) if by_class else path).parts[by_class:-1]
    return next((split for part in parts if (split := split_of(part))), None)
