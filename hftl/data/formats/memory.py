"""Read rows that are in memory already: tables of pandas, dicts, generators. Knows no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import pyarrow as pa

from hftl.data.types import split_of
from hftl.errors import UserError


def in_memory(source: Any) -> datasets.Dataset | None:
    """A DataFrame, a list or generator of dicts, or a dict of columns as a data set; None of anything else.

    Raises:
        UserError: a column holds values of two kinds, or rows are no dicts.
    """
    kind = type(source).__name__
    if isinstance(source, Iterator):
        source = list(source)
    try:
        if hasattr(source, "to_dict") and hasattr(source, "columns") and hasattr(source, "iloc"):
            plain = source.reset_index(drop=True).rename(columns=str)
            return datasets.Dataset.from_pandas(plain, preserve_index=False)
        if isinstance(source, Mapping) and _columns(source):
            return datasets.Dataset.from_dict({str(name): list(cells) for name, cells in source.items()})
        if not isinstance(source, list | tuple) or not source or not isinstance(source[0], Mapping):
            if kind == "generator":
                raise UserError(f"Expected dicts such as {{'text': ..., 'label': ...}} from the {kind}; others came.")
            return None
        names = dict.fromkeys(str(name) for row in source for name in row)
        return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in source])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, AttributeError) as failure:
        reason = " ".join(str(failure).split())
        raise UserError(f"Expected one kind of value in each column of the {kind}; {reason}. Correct it.") from failure


def _columns(source: Mapping[str, Any]) -> bool:
    """Whether a dict holds columns of one length, and not splits."""
    cells = [*source.values()]
    lists = all(isinstance(one, list | tuple) or hasattr(one, "tolist") for one in cells)
    rows = any(isinstance(one, list | tuple) and one and isinstance(one[0], Mapping) for one in cells)
    tables = any(hasattr(one, "columns") for one in cells)
    named = any(split_of(str(name)) for name in source)
    return bool(cells) and lists and not rows and not tables and not named and len({len(one) for one in cells}) == 1
