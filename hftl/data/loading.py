"""`datasets.load_dataset`, without what it does not survive and what it says beside us. Knows nothing of columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.json
from datasets.packaged_modules.json import json as builder

_NULL = re.compile(rb"(?:^|[\r\n])\s*null")
"""The start of a block of lines may be the start of any of them: blocks are of some 300 KB, and read side by side."""


def load_dataset(*source: Any, **options: Any) -> Any:
    """As `datasets.load_dataset`; its exceptions are not logged besides; a row of json that is `null` is one."""
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with _survived():
            return datasets.load_dataset(*source, **options)
    finally:
        datasets.logging.set_verbosity(level)


@contextmanager
def _survived() -> Iterator[None]:
    """While `datasets` reads, a row that is `null` is an error of Arrow's.

    pyarrow (26.0) reads memory that is not its own where a block of lines starts with one, and takes the process along.
    """
    reader: Any = builder
    usual = reader.paj
    reader.paj = SimpleNamespace(read_json=_read, ReadOptions=pa.json.ReadOptions)
    try:
        yield
    finally:
        reader.paj = usual


def _read(lines: Any, **options: Any) -> pa.Table:
    if _NULL.search(lines.getvalue()):
        raise pa.ArrowInvalid("a row is null, and not an object")
    return pa.json.read_json(lines, **options)
