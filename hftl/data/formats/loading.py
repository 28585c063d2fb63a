"""Load data sets with `datasets`, quietly, and refuse what would end the process or is no valid Arrow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import datasets
import pyarrow as pa
import pyarrow.json
from datasets.exceptions import DatasetGenerationError

DECODED = ("csv", "json")
"""Builders of `datasets` that decode each text as they read it."""
_NULL = re.compile(rb"(?:^|[\r\n])\s*null")
"""The start of a block of lines may be the start of any of them: blocks are of some 300 KB, and read side by side."""


def load_dataset(*source: Any, texts: Sequence[str] = (), **options: Any) -> Any:
    """As `datasets.load_dataset`; its exceptions are not logged besides; a row of json that is `null` is one.

    Args:
        texts: columns of json that stay texts, although pyarrow would take "2024-01-02" for a moment.
    """
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with _json_read_with_care(texts):
            made = datasets.load_dataset(*source, **options)
    finally:
        datasets.logging.set_verbosity(level)
    return made if source[0] in DECODED else _validated(made)


def load_from_disk(folder: str) -> Any:
    """As `datasets.load_from_disk`, which maps what it finds into memory and believes it."""
    return _validated(datasets.load_from_disk(folder))


def _validated(made: Any) -> Any:
    """Arrow and parquet hold bytes that nobody has looked at: texts that are not UTF-8, offsets that lead elsewhere."""
    for rows in made.values() if isinstance(made, dict) else [made]:
        try:
            rows.data.table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DatasetGenerationError(str(error)) from error
    return made


@contextmanager
def _json_read_with_care(texts: Sequence[str]) -> Iterator[None]:
    """Have `pyarrow.json.read_json` keep texts, and refuse a row `null`, as it refuses all else that is no object.

    pyarrow (26.0) reads memory that is not its own where a block of lines starts with one, and the process dies. A look
    at the files beforehand would not do: those of the Hub are fetched inside `datasets`, and a list over many lines may
    well hold a line `null`: such a file `datasets` reads in another way, once this one has refused it.
    """
    read, schema = pyarrow.json.read_json, pa.schema([(name, pa.string()) for name in texts])

    def checked(lines: Any, **options: Any) -> pa.Table:
        if _NULL.search(lines.getvalue()):
            raise pa.ArrowInvalid("a row is null, and not an object")
        if texts:
            options["parse_options"] = pyarrow.json.ParseOptions(explicit_schema=schema)
        return read(lines, **options)

    with mock.patch.object(pyarrow.json, "read_json", checked):
        yield
