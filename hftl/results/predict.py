"""A saved folder becomes a callable that predicts, in Python and from files. Knows nothing of training."""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hftl.data.new_rows import NewRows, new_rows, typed_rows
from hftl.data.types import counted
from hftl.errors import UserError
from hftl.results import given
from hftl.results.lines import Lines
from hftl.results.load import Loaded, load_folder
from hftl.results.scored import Scored
from hftl.train import kernels
from hftl.train.progress import quiet

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
        self.task, self.labels = loaded.task, loaded.labels
        self.batch_size = kernels.rows_a_pass(self.task.decoded, kernels.placed(self.model))
        self.columns = loaded.columns
        self.reads = {
            role: replace(need, required=need.required or role in loaded.columns)
            for role, need in self.task.roles.items()
            if role != "label" and (need.required or not loaded.columns or role in loaded.columns)
        }
        self.roles = [*self.reads]
        # a fast tokenizer holds how it cuts, which two threads would set over each other; images need no such care
        self._alone = nullcontext() if self.task.decoded else threading.Lock()

    def __call__(self, inputs: Any, batch_size: int | None = None) -> Any:
        """Predict one input (a dict comes back) or several (a list comes back, in the same order).

        `batch_size` is the rows that the model computes at once; without it, what suits the device.

        What a prediction holds is the task's to say (its `answers`): `label`, `score` and `scores` by name of a class,
        `label` alone of words, `mask` and `shares` of an image whose pixels have classes.
        """
        several = given.many(inputs, self.reads[self.roles[0]])
        rows = [given.row(value, self.reads, self.columns) for value in ([inputs] if several is None else several)]
        found = list(self.stream(rows, batch_size))
        return found[0] if several is None else found

    def stream(
        self,
        rows: Sequence[dict[str, Any]],
        batch_size: int | None = None,
        tell: Callable[[int], Any] = lambda done: None,
        skip: Callable[[int, str], Any] | None = None,
        scored: Scored | None = None,
        long: Callable[[int], Any] = lambda number: None,
    ) -> Iterator[dict[str, Any] | None]:
        """Predict dicts of role columns, in order; texts are computed longest first within a window of 64 batches.

        Args:
            tell: is called after each batch with its number of rows, as predictions come out window by window.
            skip: is told the number of a row that cannot be read, and why; None is its prediction. Without, such a row
                ends it, after the predictions of those before it.
            scored: is fed the rows that have labels.
            long: is told the number of each row that has more tokens than the model reads.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        most = getattr(self.processor, "model_max_length", math.inf)
        window = batch_size * (1 if any(need.kind == "image" for need in self.reads.values()) else WINDOW)
        for start in range(0, len(rows), window):
            numbers = range(start, min(start + window, len(rows)))
            part = {i: rows[i] for i in numbers}
            empty = {i: role for i, row in part.items() if (role := self._lacking(row, blank=skip is not None))}
            bad = {i: f"no {role}" for i, role in empty.items()}
            encoded = self._held({i: row for i, row in part.items() if i not in empty}, bad, scored)
            numbers = numbers if skip is not None else range(start, min(bad, default=numbers.stop))
            order = sorted(encoded.keys() & {*numbers}, key=lambda i: (-encoded[i].get("length", 0), i))
            any(long(i) for i in order if encoded[i].get("length", 0) > most)
            found: dict[int, np.ndarray] = {}
            stopped: BaseException | None = None
            try:
                for first in range(0, len(order), batch_size):
                    some = order[first : first + batch_size]
                    found |= zip(some, self._logits([encoded[i] for i in some], scored), strict=True)
                    tell(len(some))
            except (KeyboardInterrupt, Exception) as failure:  # raised once what is done has been given out
                stopped = failure
            kept = sorted(found)
            answers = dict(zip(kept, self._answers(found, part, kept), strict=True))
            yield from (answers.get(i) for i in numbers)
            if stopped is not None:
                raise stopped
            for i, why in sorted(bad.items()):
                if skip is None:
                    there = f"Expected a {empty.get(i)} in row {i + 1} of the data; there is none. Correct it."
                    raise UserError(there if i in empty else f"Row {i + 1}: {why}")
                skip(i, why)
                tell(1)

    def _answers(self, found: dict[int, np.ndarray], part: dict[int, Any], kept: list[int]) -> Iterable[Any]:
        return self.task.answers([found[i] for i in kept], [part[i] for i in kept], self.labels) if kept else ()

    def _lacking(self, row: dict[str, Any], blank: bool) -> str | None:
        """The role of which a row has nothing; a blank text is nothing where it may be left out, as in training."""
        for role, cell in ((role, row[role]) for role in self.roles if role in row):
            empty = blank and (cell == [] or (isinstance(cell, str) and not cell.strip()))
            if cell is None or empty or (isinstance(cell, list) and None in cell):
                return role
        return None

    def _held(self, rows: dict[int, Any], bad: dict[int, str], scored: Scored | None) -> dict[int, dict[str, Any]]:
        """Encoded rows by number; those that cannot be read, and why, go to `bad`."""
        try:
            labels = None if scored is None else scored.cells.select([*rows])["label"][:]
            return dict(zip(rows, self._encoded([*rows.values()], labels), strict=True)) if rows else {}
        except UserError as failure:
            if len(rows) > 1:
                return {n: row for i in rows for n, row in self._held({i: rows[i]}, bad, scored).items()}
            if scored is not None and (found := self._held(rows, {}, None)):  # it is the label that cannot be read
                return {i: self._encoded([rows[i]], [None])[0] for i in found}
            bad |= dict.fromkeys(rows, str(failure))
            return {}

    def _encoded(self, rows: Sequence[dict[str, Any]], labels: Sequence[Any] | None = None) -> list[dict[str, Any]]:
        """Rows as model inputs, with `labels` encoded beside them where they are known."""
        columns = {role: [row[role] for row in rows] for role in self.roles if role in rows[0]}
        for role in columns:
            if self.task.roles[role].kind == "words":  # those that came as one text are parted at white space
                columns[role] = [cell.split() if isinstance(cell, str) else cell for cell in columns[role]]
        columns |= {} if labels is None else {"label": list(labels)}
        with self._alone:
            made = self.task.encoder(self.processor, columns)(columns)
        return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]

    def _logits(self, encoded: list[dict[str, Any]], scored: Scored | None = None) -> Iterable[np.ndarray]:
        """What the task reads off the model for each row."""
        batch = self.task.collate(self.processor)(encoded)
        device, labels = next(self.model.parameters()).device, batch.get("labels")
        with torch.inference_mode():
            logits = self.model(**{name: value.to(device) for name, value in batch.items() if name != "labels"}).logits
        if scored is not None and labels is not None:
            scored.add(logits, labels.to(device))
        return self.task.unbatch(logits.float().cpu().numpy(), batch)

    def logits(self, rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """What the model says of dicts of role columns, before it is read: an array for each row."""
        return list(self._logits(self._encoded(rows)))

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Dicts of role columns as the model's inputs, labels left out."""
        made = self.task.collate(self.processor)(self._encoded(rows))
        return {name: value for name, value in made.items() if name != "labels"}


def predict_file(
    folder: str,
    data: str,
    output: str,
    columns: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    split: str | None = None,
    on_bad_row: str = "error",
    only: bool = False,
    threshold: float | None = None,
) -> None:
    """Predict every row of a file or folder and write a table; rows with a label are scored, too.

    Args:
        data: any source that training takes, labels not needed; `-` reads one text or image path a line from stdin.
        output: a csv, tsv, jsonl or parquet file by its name; `-` writes csv to stdout.
        columns: role -> the column's name in the data, where it is another than in training.
        split: which split of data that has several; else test.
        on_bad_row: "skip" to leave out rows that are empty or unreadable, and count them.
        only: write no columns but inputs and predictions.
        threshold: of several labels a row, the probability from which one is given; else that of the folder.

    Raises:
        UserError: the folder, the data, a column or a row cannot be read.
    """
    predictor = load(folder)
    predictor.task.cut_at(threshold, predictor.labels)
    rows = _opened(predictor, data, columns or {}, split)
    aside = sys.stderr if output == "-" else sys.stdout
    print(*rows.notes, sep="\n", end="\n" if rows.notes else "", file=aside)
    bad, cut = dict[int, str](), list[int]()
    scored, unscored = _scored(predictor, rows)
    skip = bad.__setitem__ if on_bad_row == "skip" else None
    formulas, bar = 0, tqdm(total=len(rows), desc="predicting", unit="row")
    words = [column for role, column in rows.columns.items() if predictor.task.roles[role].kind == "words"]
    with Lines(output, words) as lines, bar:
        stream = predictor.stream(rows.inputs, batch_size, bar.update, skip, scored, cut.append)
        for i, prediction in enumerate(stream):
            if prediction is None:
                continue
            line = _beside(rows.line(i, only), predictor.task.cells(prediction, Path(output), i + 1))
            lines.add(line)
            formulas += sum(map(is_formula, line.values()))
    if output != "-":
        print(f"{counted(lines.count, 'prediction')} in {output}")
    table = lines.form in (".csv", ".tsv")
    long = (cut, getattr(predictor.processor, "model_max_length", 0))
    print(*_told(bad, long, scored, unscored, formulas * table), sep="\n", end="", file=aside)


def _beside(line: dict[str, Any], cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what was predicted of it; a column of the data's own stays."""
    for name, cell in cells.items():
        while name in line:
            name += "_by_model"
        line[name] = cell
    return line


def _scored(predictor: Predictor, rows: NewRows) -> tuple[Scored | None, str]:
    """What measures predictions where the rows have labels; else why nothing does, "" where there are none."""
    column = rows.columns.get("label", "")
    try:
        cells = rows.labels(predictor.task.roles["label"], predictor.labels)
    except UserError as failure:
        return None, f"the labels in {column!r} were not scored: {failure}"
    return (None if cells is None else Scored(predictor.task, predictor.labels, cells, column)), ""


def _told(
    bad: dict[int, str], long: tuple[list[int], int], scored: Scored | None, unscored: str, formulas: int
) -> Iterator[str]:
    """Lines on rows that were left out or cut, on what predictions are worth, and on what a spreadsheet would do."""
    if bad:
        named = "; ".join(f"row {number + 1}: {why}" for number, why in sorted(bad.items())[:3])
        yield f"{counted(len(bad), 'row')} left out: {named}{' ...' if len(bad) > 3 else ''}"
    cut, most = long
    if cut:
        what = f"more than the {most:,} tokens that are read of each"
        yield f"{counted(len(cut), 'row')} with {what}: the rest was left out (first: row {min(cut) + 1})"
    if unscored:
        yield unscored
    if scored is not None:
        yield from scored.told()
    if formulas:
        yield f"{counted(formulas, 'cell')} would be formulas to a spreadsheet: import the columns as text there"
    yield ""


def _opened(predictor: Predictor, data: str, columns: Mapping[str, str], split: str | None) -> NewRows:
    """The rows of a source, read as training read its own."""
    needed = [role for role, need in predictor.reads.items() if need.required]
    if data == "-" and len(needed) > 1:
        raise UserError(f"--data - reads one text a line; this model needs {', '.join(needed)}. Pass a file.")
    rows = typed_rows(predictor.roles[0], sys.stdin) if data == "-" else _of_source(predictor, data, columns, split)
    if not len(rows):
        raise UserError(f"{'stdin' if data == '-' else data} holds no rows to predict. Pass --data with some.")
    return rows


def _of_source(predictor: Predictor, data: str, columns: Mapping[str, str], split: str | None) -> NewRows:
    label = {role: need for role, need in predictor.task.roles.items() if role == "label"}
    reads = predictor.reads | label
    wanted = {role: name for role, name in predictor.columns.items() if role in reads and reads[role].kind != "image"}
    return new_rows(data, reads, columns=dict(columns), trained=wanted, split=split)


_FORMULA = re.compile(r"=|\t|\r|[+\-@][\w+\-*/.]*[(|!]|[+\-][\d.]+[+\-*/]")


def is_formula(cell: Any) -> bool:
    """Whether a spreadsheet that opens a csv would compute this cell; @her, a number or a dash is no formula."""
    return isinstance(cell, str) and _FORMULA.match(cell) is not None
