"""Find the column of each role, and bring the inputs to the names of their roles."""

from __future__ import annotations

import datasets

from hftl.data.formats.images import as_images
from hftl.data.roles import Role
from hftl.data.source import RawSplit
from hftl.errors import UserError, suggest


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


def _missing(wanted: str, role: str, raw: RawSplit, found: dict[str, str], near: str) -> str:
    there = [name if len(name) <= 30 else name[:27] + "..." for name in raw.data.column_names]
    free = [name for name in there if name not in found.values()]
    # labels tend to come last, inputs first
    guess = (free[-1] if role == "label" else free[0]) if free else "COLUMN"
    listed = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "")
    hint = suggest(near, there) if near else ""
    return f"Expected a column {wanted!r} in {raw.name}; it has {listed}.{hint} Pass --{role} {guess}."


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
    if kind == "text" and dtype not in texts:
        raise UserError(f"Expected text in column {column!r} of {raw.name}; it holds {dtype}. Pass --{role} COLUMN.")
    if kind == "words" and getattr(getattr(feature, "feature", None), "dtype", "") not in texts:
        raise UserError(
            f"Expected a list of words in each row of column {column!r} of {raw.name}, as jsonl and parquet have it. "
            f"Pass --{role} COLUMN."
        )
