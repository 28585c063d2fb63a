"""Which column plays which role. Knows names of columns, not what is in them, but for the kind of text."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

from hftl.data.source import Rows
from hftl.data.types import Role
from hftl.errors import UserError, suggest


def find_columns(rows: Rows, roles: dict[str, Role], mapped: dict[str, str]) -> dict[str, str]:
    """Role -> column: as mapped, else the first candidate that is there, whatever its case.

    Raises:
        UserError: a required role without a column, or a mapped column that is not there.
    """
    there = rows.data.column_names
    found: dict[str, str] = {}
    for role, wanted in mapped.items():
        if role not in roles:
            raise UserError(
                f"Expected --text, --image or another input of this task; {role!r} is none.{suggest(role, roles)}"
            )
        if wanted not in there:
            raise UserError(_missing(wanted, role, rows, found, near=wanted))
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
            raise UserError(_missing(need.candidates[0], role, rows, found, near=""))
    return {role: found[role] for role in roles if role in found}


def _missing(wanted: str, role: str, rows: Rows, found: dict[str, str], near: str) -> str:
    there = [name if len(name) <= 30 else name[:27] + "..." for name in rows.data.column_names]
    free = [name for name in there if name not in found.values()]
    # labels tend to come last, inputs first
    guess = (free[-1] if role == "label" else free[0]) if free else "COLUMN"
    listed = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "")
    hint = suggest(near, there) if near else ""
    return f"Expected a column {wanted!r} in {rows.name}; it has {listed}.{hint} Pass --{role} {guess}."


def check_words(data: datasets.Dataset, columns: Sequence[tuple[str, str]], where: str) -> None:
    """Raise `UserError` where a column of words, given as `(role, column)`, holds no lists of texts."""
    for role, column in columns:
        inner = getattr(data.features[column], "feature", None)
        if getattr(inner, "dtype", "") not in ("string", "large_string"):
            raise UserError(
                f"Expected a list of words in each row of column {column!r} of {where}, as jsonl and parquet have it. "
                f"Pass --{role} COLUMN."
            )


def check_text(data: datasets.Dataset, columns: Sequence[tuple[str, str]], where: str) -> None:
    """Raise `UserError` where a text column, given as `(role, column)`, holds something else."""
    for role, column in columns:
        feature = data.features[column]
        dtype = getattr(feature, "dtype", type(feature).__name__)
        if dtype not in ("string", "large_string"):
            raise UserError(f"Expected text in column {column!r} of {where}; it holds {dtype}. Pass --{role} COLUMN.")
