"""From a saved folder to predictions, in Python and from files. Knows tasks by name; nothing of training."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hftl.data import read
from hftl.data.types import PIXELS, TAGS
from hftl.errors import UserError
from hftl.results.load import Loaded, load_folder
from hftl.tasks.base import softmax_or_sigmoid
from hftl.train.progress import quiet
from hftl.train.sampling import LongestFirst, lengths_of

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WINDOW = 64
"""Batches whose rows are in memory at once, to be sorted by length."""


def load(name: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Predictor:
    """Load a folder or a Hub repository that hftl has written, as a callable; full model or adapter.

    Example:
        classify = hftl.load("runs/last")
        classify("What a film.")                 # {"label": "positive", "score": 0.98, "scores": {...}}

    Raises:
        UserError: no such folder or repository, or no model in it.
    """
    with quiet():
        return Predictor(load_folder(name, revision, trust_remote_code))


class Predictor:
    """A model as a function from inputs to predictions.

    An input is what the task reads: a text, a pair of texts, a PIL image or the path of one, or a dict of role columns.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.processor = loaded.model, loaded.processor
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self.task, self.labels = loaded.task, loaded.labels
        self.roles = [role for role in self.task.roles if role != "label"]

    def __call__(self, inputs: Any, batch_size: int = 32) -> Any:
        """Predict one input (a dict comes back) or a list of them (a list comes back, in the same order).

        Each prediction holds `label` and `score`, and `scores` by label name. With several labels `label` is the list
        of those at 0.5 or above, and `score` is left out; a regression gives `value` alone. A tagger gives the list of
        the labels of the words (of a text, what white space parts), fewer where it was cut. Of masks `mask` is an
        image of the size of the input, whose pixels are numbers of labels, and `shares` has the share of each label.
        """
        single = not isinstance(inputs, list)
        rows = [self._row(value) for value in ([inputs] if single else inputs)]
        found = list(self.stream(rows, batch_size))
        return found[0] if single else found

    def stream(
        self, rows: Sequence[dict[str, Any]], batch_size: int = 32, tell: Callable[[int], Any] = lambda done: None
    ) -> Iterator[dict[str, Any]]:
        """Predict dicts of role columns, in order; texts are computed longest first within a window of 64 batches.

        Args:
            tell: is called after each batch with its number of rows, as predictions come out window by window.
        """
        sized = len(rows) > batch_size and lengths_of(self._encoded(rows, 0, 1), "length") is not None
        window = batch_size * (WINDOW if sized else 1)
        for start in range(0, len(rows), window):
            encoded = self._encoded(rows, start, min(start + window, len(rows)))
            lengths = lengths_of(encoded, "length")
            order = np.arange(len(encoded)) if lengths is None else LongestFirst(lengths).order
            found: list[np.ndarray] = []
            for numbers in np.split(order, range(batch_size, len(order), batch_size)):
                found.extend(self._logits(encoded.__getitems__(numbers.tolist())))
                tell(len(numbers))
            made = self.read([found[i] for i in np.argsort(order)])
            yield from (self.task.fitted(one, rows[start + i]) for i, one in enumerate(made))

    def _encoded(self, rows: Sequence[dict[str, Any]], start: int, stop: int) -> Any:
        """Some of the rows as model inputs."""
        part = [rows[i] for i in range(start, stop)]
        for i, row in enumerate(part, start=start + 1):
            if empty := [role for role in self.roles if row.get(role, "") is None]:
                raise UserError(f"Expected a {empty[0]} in row {i} of the data; there is none. Correct it.")
        columns = {role: [self._cell(role, row[role]) for row in part] for role in self.roles if role in part[0]}
        return self.task.encode(datasets.Dataset.from_dict(columns), self.processor)

    def _cell(self, role: str, value: Any) -> Any:
        """Words that came as one text are parted at white space."""
        return value.split() if self.task.roles[role].kind == "words" and isinstance(value, str) else value

    def _logits(self, encoded: list[dict[str, Any]]) -> Iterable[np.ndarray]:
        """What the task reads off the model for each row."""
        batch = self.task.collate(self.processor)(encoded)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model(**{name: value.to(device) for name, value in batch.items()}).logits
        return self.task.answers(logits.float().cpu().numpy(), batch)

    def logits(self, rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """What the model says of dicts of role columns, before it is read: an array for each row."""
        return list(self._logits(self._encoded(rows, 0, len(rows)).__getitems__(list(range(len(rows))))))

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Dicts of role columns as the model's inputs, labels left out."""
        encoded = self._encoded(rows, 0, len(rows)).__getitems__(list(range(len(rows))))
        made = self.task.collate(self.processor)(encoded)
        return {name: value for name, value in made.items() if name != "labels"}

    def read(self, logits: Any) -> list[dict[str, Any]]:
        """Turn logits of shape (n, classes), or (words, tags) for each row, into predictions."""
        if self.task.problem_type == TAGS:
            return [{"label": [self.labels.names[i] for i in row.argmax(axis=1)]} for row in logits]
        if self.task.problem_type == PIXELS:
            return [{"mask": row, "shares": self._shares(row)} for row in logits]
        values = softmax_or_sigmoid(np.asarray(logits), self.labels.problem_type)
        if self.labels.problem_type == "regression":
            return [{"value": float(row[0])} for row in values]
        made: list[dict[str, Any]] = []
        for row in values:
            scores = dict(zip(self.labels.names, map(float, row), strict=True))
            if self.labels.problem_type == "multi_label_classification":
                made.append({"label": [name for name, score in scores.items() if score >= 0.5], "scores": scores})
            else:
                best = max(scores, key=scores.__getitem__)
                made.append({"label": best, "score": scores[best], "scores": scores})
        return made

    def _shares(self, ids: np.ndarray) -> dict[str, float]:
        """The share of an image that each class has."""
        counts = np.bincount(ids.ravel(), minlength=len(self.labels.names))
        return dict(zip(self.labels.names, (counts / ids.size).tolist(), strict=True))

    def _row(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            missing = [r for r in self.roles if r not in value and self.task.roles[r].required]
            if missing:
                raise UserError(f"Expected the keys {', '.join(self.roles)}; {', '.join(value)} came.")
            return value
        parts = value if isinstance(value, tuple) else (value,)
        if len(parts) > len(self.roles):
            raise UserError(f"Expected at most {len(self.roles)} values a row; {len(parts)} came.")
        return dict(zip(self.roles, parts, strict=False))


def predict_file(
    folder: str,
    data: str,
    output: str,
    text: str | None = None,
    text_pair: str | None = None,
    tokens: str | None = None,
    image: str | None = None,
    batch_size: int = 32,
) -> None:
    """Predict every row of a file or folder and write a csv: the inputs, the prediction, and a column per score.

    Masks are written as png files into a folder beside it, `OUTPUT_masks`.

    Args:
        data: any source that training takes, labels not needed; `-` reads one text or image path a line from stdin.

    Raises:
        UserError: the folder, the data or a column cannot be read.
    """
    predictor = load(folder)
    mapped = {"text": text, "text_pair": text_pair, "tokens": tokens, "image": image}
    columns = {role: name for role, name in mapped.items() if name}
    rows: Any = [{predictor.roles[0]: line.rstrip("\n")} for line in sys.stdin] if data == "-" else None
    if rows is None:
        rows = read(data, {role: predictor.task.roles[role] for role in predictor.roles}, columns=columns)
    if not len(rows):
        raise UserError(f"{'stdin' if data == '-' else data} holds no rows to predict. Pass --data with some.")
    masks = Path(output).with_name(f"{Path(output).stem}_masks")
    formulas = 0
    scratch, bar = Path(f"{output}.partial"), tqdm(total=len(rows), desc="predicting", unit="row")
    try:
        with bar, scratch.open("w", newline="", encoding="utf-8") as file:
            writer: csv.DictWriter | None = None
            for i, prediction in enumerate(predictor.stream(rows, batch_size, bar.update)):
                line = flat(predictor, rows[i], prediction, f"{masks.name}/{i + 1}.png")
                if "mask" in prediction:
                    masks.mkdir(parents=True, exist_ok=True)
                    prediction["mask"].save(masks / f"{i + 1}.png")
                if writer is None:
                    writer = csv.DictWriter(file, line)
                    writer.writeheader()
                writer.writerow(line)
                formulas += sum(map(is_formula, line.values()))
        scratch.replace(output)
    finally:
        scratch.unlink(missing_ok=True)
    print(f"{len(rows):,} predictions in {output}")
    if formulas:
        print(f"{formulas:,} cells would be formulas to a spreadsheet: import the columns as text there")


def is_formula(cell: Any) -> bool:
    """Whether a spreadsheet that opens a csv would compute this cell; numbers are no danger."""
    return isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _NUMBER.fullmatch(cell)


def flat(predictor: Predictor, row: dict[str, Any], prediction: dict[str, Any], mask: str = "") -> dict[str, Any]:
    """One line of the output: inputs as they came, then `prediction`, then `score_<label>` of each label.

    Of a mask `prediction` is the name of its file, and `share_<label>` follow.
    """
    inputs = {role: named(row[role]) for role in predictor.roles if role in row}
    if "value" in prediction:
        return inputs | {"prediction": prediction["value"]}
    if "mask" in prediction:
        return inputs | {"prediction": mask} | {f"share_{n}": f"{s:.6f}" for n, s in prediction["shares"].items()}
    label = prediction["label"]
    scores = {f"score_{name}": f"{score:.6f}" for name, score in prediction.get("scores", {}).items()}
    return inputs | {"prediction": "|".join(label) if isinstance(label, list) else label} | scores


def named(value: Any) -> str:
    """A text as it is, words with spaces between, an image by the name of its file."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return Path(value["path"]).name if isinstance(value, dict) and value.get("path") else str(value)
