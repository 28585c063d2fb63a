"""In which order rows are seen, and which share a batch: rows of like length do. Knows lengths and a seed, no text.

Batches of like length waste no padding. The order of training depends on seed and epoch alone, so that it is the same
on every process and after a resume (the base Trainer's sampler draws from the global generator, which the model
disturbs). Evaluation goes from the longest row to the shortest, and what it gathers is put back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler
from transformers.trainer_utils import EvalPrediction

from hftl.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainingArguments

WINDOW = 50
"""Batches within which rows are sorted. The fewer, the more often a row meets other rows; the more, the less padding:
of SST-2 in batches of 16 it is 47 % of the tokens with none, 11 % with 10, 2.7 % with 50, 1.6 % with 100."""
WINDOWS = 8
"""Of these an epoch has at least so many: with one, nearly the same rows would share a batch in every epoch."""


def lengths_of(rows: Any, column: str) -> np.ndarray | None:
    """The length of each row in tokens, before any cut: its `lengths`, or that column; None where there is neither."""
    if getattr(rows, "lengths", None) is not None:
        return np.asarray(rows.lengths)
    if column not in (getattr(rows, "column_names", None) or []):
        return None
    return np.asarray((rows.with_format(None) if hasattr(rows, "with_format") else rows)[column][:])  # reads no row


def counted_lengths(rows: Any) -> np.ndarray:
    """The length of each row's `input_ids`; every row is read.

    Raises:
        UserError: rows have none.
    """
    if not isinstance(rows[0], Mapping) or "input_ids" not in rows[0]:
        raise UserError(
            'train_sampling_strategy="group_by_length" expected rows with input_ids, or a column of lengths.'
        )
    return np.asarray([len(row["input_ids"]) for row in rows])


class LengthGrouped(Sampler[int]):
    """A fresh shuffle each epoch; with `lengths`, sorted within windows of batches and the batches shuffled again.

    A window has 50 batches, or an eighth of the epoch where that is less.

    Args:
        size: number of rows.
        batch: rows of one update over all processes; these stay together.
        lengths: length of each row in tokens, or None for a plain shuffle.
        seed: with the epoch, all that the order depends on.
    """

    def __init__(
        self, size: int, batch: int, lengths: Sequence[int] | np.ndarray | None = None, seed: int = 42
    ) -> None:
        self.size, self.batch, self.seed, self.epoch = size, batch, seed, 0
        self.lengths = None if lengths is None else np.asarray(lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.size)
        if self.lengths is None:
            return iter(order.tolist())
        step = self.batch * _window(self.size, self.batch)
        order = np.concatenate([_longest_first(w, self.lengths) for w in _parts(order, step)])
        batches = _parts(order, self.batch)
        last = [batches.pop()] if len(batches[-1]) < self.batch else []  # a short batch must stay the last one
        return iter(np.concatenate([batches[i] for i in rng.permutation(len(batches))] + last).tolist())


class TokenBudget(Sampler[list[int]]):
    """Batches of as many rows as fit a number of tokens with padding: rows x longest row <= tokens.

    A row that is longer is a batch alone. Rows are shuffled, cut into batches within windows as `LengthGrouped` does,
    and the batches shuffled. Each epoch has the same number of batches, so that the steps of a run and its schedule
    are known: what the first epoch takes, rounded up to whole updates of all processes. An epoch that would need more
    takes wider windows, down to what one window takes, which is the least possible; one that needs fewer has the
    batches with the most rows halved. No row is lost. One is seen twice only where there are too few rows to halve.

    Args:
        lengths: length of each row in tokens.
        tokens: what a batch of one process may hold.
        seed: with the epoch, all that the order over all processes depends on.
        processes, process: how many there are, and which of them this one is.
        accumulation: batches of one process in an update.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        tokens: int,
        seed: int = 42,
        processes: int = 1,
        process: int = 0,
        accumulation: int = 1,
    ) -> None:
        self._lengths = np.maximum(np.asarray(lengths), 1)
        self.tokens, self.seed, self.epoch = tokens, seed, 0
        self.processes, self.process = processes, process
        first, whole = len(self._cut(self._shuffled()[0])), processes * accumulation
        self.count = -(-first // whole) * whole

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order, rng = self._shuffled()
        batches, factor = self._cut(order), 1
        while len(batches) > self.count:
            factor *= 2
            batches = self._cut(order, factor)
        _halve(batches, self.count)
        mine = rng.permutation(self.count)[self.process :: self.processes]
        return iter([batches[i].tolist() for i in mine])

    def _shuffled(self) -> tuple[np.ndarray, np.random.Generator]:
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.permutation(len(self._lengths)), rng

    def _cut(self, order: np.ndarray, factor: int = 1) -> list[np.ndarray]:
        """Batches of rows in this order, sorted within `factor` times the usual window."""
        usual = max(1, int(self.tokens / self._lengths.mean()))  # rows of a batch
        batches: list[np.ndarray] = []
        rest = order[:0]
        for window in _parts(order, usual * _window(len(order), usual) * factor):
            rows = _longest_first(np.concatenate([rest, window]), self._lengths)
            start = 0
            while start < len(rows):
                fit = max(1, self.tokens // int(self._lengths[rows[start]]))
                batches.append(rows[start : start + fit])
                start += fit
            rest = batches.pop() if start > len(rows) else rows[:0]  # a batch that is not full waits for more rows
        return [*batches, rest] if len(rest) else batches


class LongestFirst(Sampler[int]):
    """From the longest row to the shortest, so that padding is nearly nil and memory trouble shows at once.

    Attributes:
        order: (rows,) which row comes at each position.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.order = _longest_first(np.arange(len(lengths)), lengths)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())


def training_order(
    rows: Any, args: TrainingArguments, tokens: int | None = None, longest: int | None = None
) -> LengthGrouped | TokenBudget:
    """The order of a run: batches of so many rows, or of so many `tokens` where rows are cut at `longest`.

    Raises:
        UserError: tokens are to be counted, and the rows have no lengths.
    """
    lengths, processes = lengths_of(rows, args.length_column_name), args.world_size
    if lengths is None and args.train_sampling_strategy == "group_by_length":
        lengths = counted_lengths(rows)
    seed = args.seed if args.data_seed is None else args.data_seed
    if tokens is None:
        update = args.train_batch_size * args.gradient_accumulation_steps * processes
        return LengthGrouped(len(rows), update, lengths, seed)
    if lengths is None:
        cure = "Leave it out, and set --per_device_train_batch_size."
        raise UserError(f"--max_tokens_per_batch counts tokens; these rows have none. {cure}")
    counted = lengths if longest is None else np.minimum(lengths, longest)
    return TokenBudget(counted, tokens, seed, processes, args.process_index, args.gradient_accumulation_steps)


def order_of(loader: Any) -> np.ndarray | None:
    """The order in which a prepared DataLoader gives rows over all processes, where `LongestFirst` made it."""
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)  # accelerate wraps one in another
    return sampler.order if isinstance(sampler, LongestFirst) else None


def in_order(gathered: Any, order: np.ndarray) -> Any:
    """Put what was gathered in `order` back into the order of rows: arrays (rows, ...), nested or not, or None."""
    if isinstance(gathered, dict):
        return {name: in_order(part, order) for name, part in gathered.items()}
    if isinstance(gathered, list | tuple):
        return type(gathered)(in_order(part, order) for part in gathered)
    return gathered if gathered is None else gathered[np.argsort(order)]


def metric_in_order(metric: Callable[[EvalPrediction], Any], order: np.ndarray) -> Callable[[EvalPrediction], Any]:
    """A `compute_metrics` that sees all rows at once, in their own order, of one that is given them in `order`."""
    return lambda found: metric(
        EvalPrediction(*(in_order(p, order) for p in (found.predictions, found.label_ids, found.inputs, found.losses)))
    )


def _window(rows: int, batch: int) -> int:
    """Batches within which rows are sorted, of so many rows in batches of `batch`."""
    return max(1, min(WINDOW, rows // (batch * WINDOWS)))


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _longest_first(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-lengths[rows], kind="stable")]


def _halve(batches: list[np.ndarray], count: int) -> None:
    """Halve the batch with the most rows until there are `count`; single rows cannot be, and are repeated."""
    largest = [(-len(batch), i) for i, batch in enumerate(batches)]
    heapq.heapify(largest)
    while len(batches) < count:
        _, i = largest[0]
        half = len(batches[i]) // 2
        batches.append(batches[i][:half] if half else batches[i])
        batches[i] = batches[i][half:]
        heapq.heapreplace(largest, (-len(batches[i]), i))
        heapq.heappush(largest, (-len(batches[-1]), len(batches) - 1))
