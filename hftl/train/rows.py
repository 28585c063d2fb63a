"""Rows as the Trainer reads them: whole, or light where the rest is replayed. Knows no model and no file format."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hftl.train.sampling import lengths_of

Batch = dict[str, Any]


class Rows(Dataset):
    """Encoded rows that know their number, and can be had without their inputs.

    Args:
        encoded: what a task's `encode` made; a list of numbers gives a list of rows.
        labels: the label of each row, or None.
        identify: gives the 16-byte content key of each row: equal keys, equal inputs.
        changed: whether rows are changed at random each time they are read; then nothing of them is kept.
        decoded: whether reading a row costs work that is worth keeping, such as decoding an image.
        seed: with the epoch and the row's number, all that a random change depends on. So a resumed run reads what one
            that was never killed reads, and no two processes share noise.

    Attributes:
        light: give number and label alone.
    """

    def __init__(
        self,
        encoded: Any,
        labels: Sequence[Any] | None,
        identify: Callable[[], list[bytes]],
        changed: bool = False,
        decoded: bool = False,
        seed: int = 0,
    ) -> None:
        self.encoded, self.labels, self.changed, self.decoded = encoded, labels, changed, decoded
        self.seed, self._epoch = seed, torch.zeros((), dtype=torch.int64)
        if changed:
            self._epoch.share_memory_()  # workers that outlive an epoch see the next one
        self.light = False
        self.kept: Callable[[list[int]], dict[str, torch.Tensor]] | None = None
        self._identify = identify
        self.lengths = lengths_of(encoded, "length")

    @functools.cached_property
    def keys(self) -> list[bytes]:
        """A key for each row."""
        return self._identify()

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[Batch]:
        numbered = [{"row": n} for n in numbers]
        if self.light or self.kept is not None:
            labelled = [{"labels": self.labels[n]} if self.labels is not None else {} for n in numbers]
            if not self.light and self.kept is not None:
                stored = self.kept(numbers)
                labelled = [{k: v[i] for k, v in stored.items()} | row for i, row in enumerate(labelled)]
            return [a | b for a, b in zip(labelled, numbered, strict=True)]
        if self.changed:
            numbered = [row | {"noise": self._noise(row["row"])} for row in numbered]
        return [a | b for a, b in zip(self.plain(numbers), numbered, strict=True)]

    def plain(self, numbers: list[int]) -> list[Batch]:
        """Rows as the task encodes them, read anew."""
        if not self.changed:
            return self.encoded.__getitems__(numbers)
        made = []
        for n in numbers:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._noise(n))
                made += self.encoded.__getitems__([n])
        return made

    def _noise(self, number: int) -> int:
        told = repr((self.seed, int(self._epoch), number)).encode()
        return int.from_bytes(hashlib.blake2b(told, digest_size=7).digest(), "big")

    def part(self, numbers: np.ndarray) -> Rows:
        """Some of the rows, of which nothing is kept."""
        labels = None if self.labels is None else [self.labels[int(n)] for n in numbers]
        return Rows(self.encoded.select(numbers), labels, lambda: [])

    def set_epoch(self, epoch: int) -> None:
        """Change rows from now on as in this epoch."""
        self._epoch.fill_(epoch)


class Numbered:
    """A collator that also gives the numbers of the rows, and takes rows that are light.

    What it draws at random depends on the rows and the epoch alone: a resumed run hides the same tokens.
    """

    def __init__(self, collate: Callable[[list[Batch]], Batch]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Batch]) -> Batch:
        if not rows or "row" not in rows[0]:
            return self.collate(rows)
        numbers = torch.tensor([row["row"] for row in rows])
        whole = [{k: v for k, v in row.items() if k not in ("row", "noise")} for row in rows]
        if whole[0].keys() <= {"labels"}:
            labels = [row["labels"] for row in whole]
            whole_masks = isinstance(labels[0], torch.Tensor)
            return {"labels": torch.stack(labels) if whole_masks else torch.as_tensor(labels), "row": numbers}
        noise = repr([row.get("noise") for row in rows]).encode()
        with torch.random.fork_rng(devices=[], enabled="noise" in rows[0]):
            if "noise" in rows[0]:
                torch.manual_seed(int.from_bytes(hashlib.blake2b(noise, digest_size=7).digest(), "big"))
            return self.collate(whole) | {"row": numbers}


def ahead(read: Callable[[Any], Any], things: Iterable[Any]) -> Iterator[Any]:
    """Read the next thing in a thread while this one is used: decoding an image leaves the interpreter free."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = None
        for thing in things:
            coming = pool.submit(read, thing)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


def spans_of(inputs: Batch) -> list[slice]:
    """Where the real tokens of each row lie."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return [slice(None)] * len(next(iter(inputs.values())))
    width, lengths = mask.shape[1], mask.sum(1).tolist()
    return [
        slice(width - n, None) if row[0] == 0 else slice(0, n) for n, row in zip(lengths, mask.tolist(), strict=True)
    ]
