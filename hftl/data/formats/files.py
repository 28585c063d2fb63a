"""Read one file, or several of a kind, as a memory-mapped Dataset: csv, tsv, json, parquet and arrow.

Cells of csv and tsv stay text: type inference would turn "NA" into nothing and "007" into 7, and would fail where one
chunk of a large file reads as whole numbers and the next does not.
"""

from __future__ import annotations

import csv
import errno
import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import datasets
from datasets.exceptions import DatasetGenerationError

from hftl.data.formats.json_types import features_of
from hftl.data.formats.loading import load_dataset
from hftl.errors import UserError

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".zst", ".lz4", ".7z", ".rar")
_PACKED_STARTS = (
    *(b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"),
    *(b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!"),
)
_LONGEST_NAME = 1000
_ESCAPED = re.compile(rb'(?:^|,)"(?:[^"\\\r\n]|\\.)*\\"[^",\r\n]')
"""A cell in quotes with a quote in it that neither ends it nor is doubled."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_files(paths: list[Path]) -> datasets.Dataset:
    """Read files of one format, in the given order, through the cache of `datasets`.

    Raises:
        UserError: a file that is empty, of another encoding, ragged, or not what its ending says.
    """
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise UserError(f"Expected files of one format for a split; {_names(paths)} mix {', '.join(suffixes)}.")
    for path in paths:
        _readable(path)
    builder = FORMATS[suffixes[0]]
    options = _csv_options(paths) if builder == "csv" else {"encoding": "utf-8-sig"} if builder == "json" else {}
    files = [glob.escape(str(path.resolve())) for path in paths]
    try:
        made = load_dataset(builder, data_files={"train": files}, split="train", **options)
        dates = builder == "json" and any("timestamp" in str(one) for one in made.features.values())
        return _json(paths, files, options) if dates else made
    except (DatasetGenerationError, ValueError, StopIteration, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; Arrow's own have no number
            raise
        cause = error.__cause__ or error
        if builder == "json" and "corresponds to no data" not in str(cause):
            for path in paths:
                if sentence := explain_encoding(path):
                    raise UserError(sentence) from error
                _find_bad_json(path)  # ends with a sentence where a line is none
            try:
                return _json(paths, files, options)
            except (DatasetGenerationError, ValueError, OSError, TypeError, RecursionError) as again:
                cause = again.__cause__ or again
        _explain(paths, builder, cause)


def _json(paths: list[Path], files: list[str], options: dict[str, Any]) -> datasets.Dataset:
    """Rows whose columns have the types that the whole files tell."""
    features = features_of(paths)
    texts = [name for name, one in features.items() if one == datasets.Value("string")]
    return load_dataset("json", data_files={"train": files}, split="train", features=features, texts=texts, **options)


def unpack_first(path: Path) -> UserError:
    """What is said of an archive: only the person who unpacks it knows where, and how much may come out of it."""
    return UserError(f"{path.name} is packed. Unpack it, and pass the file or the folder that comes out.")


def _readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            blank = not start.removeprefix(b"\xef\xbb\xbf").strip()
    except PermissionError as error:
        raise UserError(f"No permission to read {path.name}. Try chmod u+r {path.name}.") from error
    if start.startswith(_PACKED_STARTS) or start[257:262] == b"ustar":  # which datasets would unpack, whatever its name
        raise unpack_first(path)
    if blank and path.stat().st_size <= 4096:
        raise UserError(f"Expected rows in {path.name}; the file is empty. Add rows, or pass another file.")


def separator(path: Path) -> str:
    """The character between two cells: a tab in a .tsv, a comma in a .csv."""
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _csv_options(paths: list[Path]) -> dict[str, Any]:
    heads = [_header(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if head != heads[0]:
            raise UserError(f"Expected the header of {paths[0].name} in {path.name}; it has {', '.join(head)}.")
    return {
        "sep": separator(paths[0]),
        "quoting": max(_quoting(path) for path in paths),
        "escapechar": "\\" if any(map(_escapes, paths)) else None,
        "features": datasets.Features({name: datasets.Value("string") for name in heads[0]}),
        "column_names": heads[0],
        "header": 0,
        "keep_default_na": False,
        "na_filter": False,
    }


def _header(path: Path) -> list[str]:
    """The names of the columns; a nameless one (the index that pandas writes) is called `column N`."""
    with _rows(path) as rows:
        header, first = next(rows, None), next(rows, None)
    if not header:
        raise UserError(f"Expected rows in {path.name}; the file is empty. Add rows, or pass another file.")
    here = separator(path)
    other = next((mark for mark in _SEPARATORS if mark != here and mark in header[0]), None)
    if len(header) == 1 and other:
        cure = "Rename it to .tsv." if other == "\t" else f"Save it with {_SEPARATORS[here]}."
        raise UserError(
            f"Expected {_SEPARATORS[here]} between the columns of {path.name}; "
            f"its header {header[0][:60]!r} has {_SEPARATORS[other]}. {cure}"
        )
    if first is None:
        raise UserError(
            f"Expected rows in {path.name}; it has a header ({', '.join(header)}) and nothing below. Add rows."
        )
    if (longest := max(map(len, header))) > _LONGEST_NAME:
        raise UserError(
            f"Expected names of columns in the first row of {path.name}; a cell of it has {longest:,} characters. "
            "Add a header, such as text,label."
        )
    # pandas would shift every cell by one here: it takes the first column for an index.
    if len(first) > len(header):
        _ragged(path, 2, len(first), len(header))
    names = [name.strip() or f"column {i}" for i, name in enumerate(header, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(
            f"Expected each column of {path.name} once; its header has {twice!r} more than once. Rename the others, "
            "or add a header where the first row is data."
        )
    return names


@contextmanager
def _rows(path: Path) -> Iterator[Iterator[list[str]]]:
    """Rows that are not blank, as text; the field limit of `csv` is lifted meanwhile, for long documents."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            how: dict[str, Any] = {"quoting": _quoting(path), "escapechar": "\\" if _escapes(path) else None}
            yield (row for row in csv.reader(file, delimiter=separator(path), **how) if row)
    except UnicodeDecodeError as error:
        raise UserError(explain_encoding(path)) from error
    except csv.Error as error:
        raise UserError(f"{path.name} cannot be read as {path.suffix[1:]}: {error}. Write it again.") from error
    finally:
        csv.field_size_limit(limit)


def _quoting(path: Path) -> Any:
    """A tsv has no quotes by its definition, but spreadsheets write them: they count where every one is paired.

    A csv always has quotes. A review that starts with a stray `"` would swallow the lines after it.
    """
    if separator(path) == ",":
        return csv.QUOTE_MINIMAL
    with path.open("rb") as file:
        width = None
        for line in file:
            cells = line.rstrip(b"\r\n").split(b"\t")
            width = width or len(cells)
            # a line of another width is part of a quoted cell that holds tabs
            if b'"' in line and len(cells) == width and any(map(_stray_quote, cells)):
                return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def _escapes(path: Path) -> bool:
    r"""Whether a csv writes a quote inside of quotes as \", as programs of the C family do."""
    if separator(path) != ",":
        return False
    with path.open("rb") as file:
        return any(_ESCAPED.search(line) for line in file)


def _stray_quote(cell: bytes) -> bool:
    if not cell.startswith(b'"'):
        return False
    return len(cell) == 1 or not cell.endswith(b'"') or b'"' in cell[1:-1].replace(b'""', b"")


def _explain(paths: list[Path], builder: str, error: BaseException) -> NoReturn:
    """Turn a failure of `datasets` into a sentence; the slow search for the line runs only now."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise UserError("No space is left for the cache of datasets. Free some, or set HF_DATASETS_CACHE.") from error
    for path in paths:
        if builder in ("csv", "json") and (sentence := explain_encoding(path)):
            raise UserError(sentence) from error
        if builder == "csv":
            _find_ragged(path)
        elif builder == "json":
            _find_bad_json(path)
    if "corresponds to no data" in str(error):
        raise UserError(f"Expected rows in {_names(paths)}; there are none. Add rows.") from error
    if "EOF inside string" in str(error):
        row = str(error).split()[-1]
        raise UserError(
            f'A quote that opens in data row {row} of {_names(paths)} never closes. Write " as "".'
        ) from error
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f"{_names(paths)} cannot be read as {builder}: {reason}. Write it again.") from error


def explain_encoding(path: Path) -> str:
    """One sentence that names the first byte that is not UTF-8 and how to convert the file; "" where all is well."""
    before = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):  # no character holds the byte that ends a line
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte, place = line[error.start], before + error.start
                source = "UTF-16" if place == 0 and byte in (0xFE, 0xFF) else "WINDOWS-1252"
                return (
                    f"Expected UTF-8 in {path.name}; byte 0x{byte:02X} at position {place} (line {number}) is not. "
                    f"Convert it: iconv -f {source} -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}"
                )
            before += len(line)
    return ""


def _find_ragged(path: Path) -> None:
    with _rows(path) as rows:
        width = len(next(rows))
        for line, row in enumerate(rows, start=2):
            if len(row) > width:
                _ragged(path, line, len(row), width)


def _ragged(path: Path, row: int, cells: int, width: int) -> NoReturn:
    mark = "tab" if separator(path) == "\t" else "comma"
    raise UserError(
        f"Expected {width} cells in row {row} of {path.name}, as in its header (row 1); it has {cells}. "
        f"Put quotes around a cell that holds a {mark}."
    )


def _find_bad_json(path: Path) -> None:
    """Name the first line that is not JSON; a .json file may also hold one array."""
    with path.open(encoding="utf-8-sig") as file:
        if path.suffix.lower() == ".json" and file.read(4096).lstrip().startswith("["):
            file.seek(0)
            try:
                json.load(file)
            except json.JSONDecodeError as error:
                raise UserError(f"{path.name} is not JSON at line {error.lineno}: {error.msg}. Correct it.") from error
            except (RecursionError, ValueError) as error:
                raise UserError(f"{path.name} cannot be read as JSON ({error}). Correct it.") from error
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of {path.name} is not JSON: {error.msg}. Correct it.") from error
            except (RecursionError, ValueError) as error:
                raise UserError(f"Line {number} of {path.name} cannot be read ({error}). Correct it.") from error
            if not isinstance(row, dict):
                raise UserError(f'Expected an object like {{"text": ...}} in line {number} of {path.name}.')


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (" ..." if len(paths) > 3 else "")
