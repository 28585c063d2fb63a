"""A saved folder becomes a callable that predicts, in Python and from files. Knows nothing of training."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hftl.data.load import read
from hftl.errors import UserError
from hftl.results import given
from hftl.results.lines import Lines
from hftl.results.load import Loaded, load_folder
from hftl.train.progress import bars_off, quiet
from hftl.train.sampling import LongestFirst, lengths_of

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WINDOW = 64
"""Batches whose rows are in memory at once, to be sorted by length."""


def load(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Predictor:
    """Load a folder or a Hub repository that hftl has written, as a callable; full model or adapter.

    Example:
        classify = hftl.load("runs/last")
        classify("What a film.")                 # {"label": ..., "score": ..., "scores": {...}}

    Raises:
        UserError: no such folder or repository, or no model in it.
    """
    with quiet():
        return Predictor(load_folder(name, revision, trust_remote_code))


class Predictor:
    """A model as a function from inputs to predictions.

    An input is what the task reads: a text, a pair of texts as a tuple, an image (PIL's, its path, bytes, an array or
    a tensor), or a dict of role columns. Several come as a list, table, series, data set, array or generator.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.processor = loaded.model, loaded.processor
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.task, self.labels = loaded.task, loaded.labels
        self.columns = loaded.columns
        self.reads = {
            role: replace(need, required=need.required or role in loaded.columns)
            for role, need in self.task.roles.items()
            if role != "label" and (need.required or not loaded.columns or role in loaded.columns)
        }
        self.roles = [*self.reads]

    def __call__(self, inputs: Any, batch_size: int = 32) -> Any:
        """Predict one input (a dict comes back) or several (a list comes back, in the same order).

        What a prediction holds is the task's to say (its `answers`): `label`, `score` and `scores` by name of a class,
        `label` alone of words, `mask` and `shares` of an image whose pixels have classes.
        """
        several = given.many(inputs, self.reads[self.roles[0]])
        rows = [given.row(value, self.reads) for value in ([inputs] if several is None else several)]
        with bars_off():
            found = list(self.stream(given.alike(rows, self.reads), batch_size))
        return found[0] if several is None else found

    def stream(
        self, rows: Sequence[dict[str, Any]], batch_size: int = 32, tell: Callable[[int], Any] = lambda done: None
    ) -> Iterator[dict[str, Any]]:
        """Predict dicts of role columns, in order; texts are computed longest first within a window of 64 batches.

        Args:
            tell: is called after each batch with its number of rows, as predictions come out window by window.
        """
        sized = len(rows) > batch_size and lengths_of(self._encoded([rows[0]]), "length") is not None
        window = batch_size * (WINDOW if sized else 1)
        for start in range(0, len(rows), window):
            part = [rows[i] for i in range(start, min(start + window, len(rows)))]
            encoded = self._encoded(part, start)
            lengths = lengths_of(encoded, "length")
            order = np.arange(len(encoded)) if lengths is None else LongestFirst(lengths).order
            found: list[np.ndarray] = []
            for numbers in np.split(order, range(batch_size, len(order), batch_size)):
                found.extend(self._logits(encoded.__getitems__(numbers.tolist())))
                tell(len(numbers))
            yield from self.task.answers([found[i] for i in np.argsort(order)], part, self.labels)

    def _encoded(self, rows: Sequence[dict[str, Any]], start: int = 0) -> Any:
        """Rows as model inputs; `start` is the number of the first."""
        for i, row in enumerate(rows, start=start + 1):
            if empty := [role for role in self.roles if row.get(role, "") is None]:
                raise UserError(f"Expected a {empty[0]} in row {i} of the data; there is none. Correct it.")
        columns = {role: [row[role] for row in rows] for role in self.roles if role in rows[0]}
        for role in columns:
            if self.task.roles[role].kind == "words":  # those that came as one text are parted at white space
                columns[role] = [cell.split() if isinstance(cell, str) else cell for cell in columns[role]]
        return self.task.encode(datasets.Dataset.from_dict(columns), self.processor)

    def _logits(self, encoded: list[dict[str, Any]]) -> Iterable[np.ndarray]:
        """What the task reads off the model for each row."""
        batch = self.task.collate(self.processor)(encoded)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model(**{name: value.to(device) for name, value in batch.items()}).logits
        return self.task.unbatch(logits.float().cpu().numpy(), batch)

    def logits(self, rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """What the model says of dicts of role columns, before it is read: an array for each row."""
        return list(self._logits(self._encoded(rows).__getitems__(list(range(len(rows))))))

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Dicts of role columns as the model's inputs, labels left out."""
        encoded = self._encoded(rows).__getitems__(list(range(len(rows))))
        made = self.task.collate(self.processor)(encoded)
        return {name: value for name, value in made.items() if name != "labels"}


def predict_file(
    folder: str, data: str, output: str, columns: Mapping[str, str] | None = None, batch_size: int = 32
) -> None:
    """Predict every row of a file or folder and write a table: the inputs, and what the task writes of its answer.

    Args:
        data: any source that training takes, labels not needed; `-` reads one text or image path a line from stdin.
        output: a csv, tsv, jsonl or parquet file by its name; `-` writes csv to stdout.
        columns: role -> the column's name in the data, where it is another than in training.

    Raises:
        UserError: the folder, the data or a column cannot be read.
    """
    predictor = load(folder)
    rows: Any = [{predictor.roles[0]: line.rstrip("\n")} for line in sys.stdin] if data == "-" else None
    if rows is None:
        wanted = {role: name for role, name in predictor.columns.items() if role in predictor.reads}
        wanted = {role: name for role, name in wanted.items() if predictor.reads[role].kind != "image"}
        label = {role: need for role, need in predictor.task.roles.items() if role == "label"}
        rows = read(data, predictor.reads | label, columns=wanted | dict(columns or {}))
    if not len(rows):
        raise UserError(f"{'stdin' if data == '-' else data} holds no rows to predict. Pass --data with some.")
    formulas, bar = 0, tqdm(total=len(rows), desc="predicting", unit="row")
    with bar, Lines(output) as lines:
        for i, prediction in enumerate(predictor.stream(rows, batch_size, bar.update)):
            row = rows[i]
            line = {role: named(row[role]) for role in predictor.roles if role in row}
            line |= predictor.task.cells(prediction, Path(output), i + 1)
            lines.add(line)
            formulas += sum(map(is_formula, line.values()))
    if output == "-":
        return
    print(f"{len(rows):,} predictions in {output}")
    if formulas and lines.form in (".csv", ".tsv"):
        print(f"{formulas:,} cells would be formulas to a spreadsheet: import the columns as text there")


def is_formula(cell: Any) -> bool:
    """Whether a spreadsheet that opens a csv would compute this cell; numbers are no danger."""
    return isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(cell)


def named(value: Any) -> str:
    """A text as it is, words with spaces between, an image by the name of its file."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return Path(value["path"]).name if isinstance(value, dict) and value.get("path") else str(value)
