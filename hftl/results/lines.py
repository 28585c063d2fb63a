"""Write rows one by one to a table whose form its name tells; the file is there once all of it is.

What was written before a failure stays beside its place, under a name that says so.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

from hftl.data.types import counted
from hftl.errors import UserError

FORMS = (".csv", ".tsv", ".jsonl", ".parquet")


def form_of(output: str) -> str:
    """The form of a file by its name; `-` is csv on stdout.

    Raises:
        UserError: a name that tells none.
    """
    suffix = ".csv" if output == "-" else Path(output).suffix.lower()
    if suffix not in FORMS:
        raise UserError(f"--output {output} tells no form. Pass a name that ends in {', '.join(FORMS)}, or -.")
    return suffix


def _flat(cell: Any, words: bool) -> Any:
    """A list as one cell: words of a text with spaces between, all else such as a|b, which reads as several again."""
    if isinstance(cell, dict) or (isinstance(cell, list) and any(isinstance(part, dict | list) for part in cell)):
        return json.dumps(cell, ensure_ascii=False, default=str)
    if not isinstance(cell, list):
        return cell
    parts = [str(part) for part in cell]
    return (" " if words and not any(part.split() != [part] for part in parts) else "|").join(parts)


class Lines:
    """A file that is written line by line beside its place, and moved there at the end of a `with`.

    Args:
        words: columns that hold the words of a text.
    """

    def __init__(self, output: str, words: Collection[str] = ()) -> None:
        self.words = words
        self.output, self.form = Path(output), form_of(output)
        self.scratch = None if output == "-" else Path(f"{output}.partial")
        self.count = 0
        self._writer: Any = None
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._file: Any = sys.stdout if self.scratch is None else self.scratch.open("w", newline="", encoding="utf-8")
        return self

    def add(self, line: dict[str, Any]) -> None:
        """Write a line; the first one names the columns."""
        self.count += 1
        if self.form == ".jsonl":
            self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        elif self.form == ".parquet":
            self._held.append(line)
        else:
            if self._writer is None:
                self._writer = csv.DictWriter(self._file, line, delimiter="\t" if self.form == ".tsv" else ",")
                self._writer.writeheader()
            self._writer.writerow({name: _flat(cell, name in self.words) for name, cell in line.items()})

    def __exit__(self, kind: Any, failure: Any, *_: Any) -> bool:
        if self.scratch is None:
            try:
                sys.stdout.flush()
            except BrokenPipeError:  # who reads has enough, as head has; Python flushes once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return kind is BrokenPipeError
        self._file.close()
        if self.form == ".parquet" and self.count:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(self._held), self.scratch)
        if kind is None:
            self.scratch.replace(self.output)
        elif self.count and not _is_full(failure):
            print(
                f"what was written until then is kept: {counted(self.count, 'row')} in {self.scratch}", file=sys.stderr
            )
        else:
            self.scratch.unlink(missing_ok=True)
        return False


def _is_full(failure: Any) -> bool:
    """Whether a disk has no room: then the part that was written is in the way."""
    return isinstance(failure, OSError) and failure.errno == errno.ENOSPC
