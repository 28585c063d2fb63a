"""Of which task each micro-batch is, and which rows are in it: a function of a seed. Knows sizes, no model, no text.

The order is the same after a resume and on every process; at any time all processes work on one task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from hftl.train.sampling import LengthGrouped

ANNEALED = 0.8
"""How far the exponent falls over a run (Stickland & Murray 2019, section 4.1)."""


def proportions(
    sizes: Sequence[int], mixing: str, temperature: float = 1.0, progress: float | np.ndarray = 0.0
) -> np.ndarray:
    """The probability of each task, p_i ~ n_i^a: of shape (tasks,), or (steps, tasks) for an array of progress.

    proportional: a = 1. uniform: a = 0. temperature: a = 1 / T (Devlin 2019; Arivazhagan et al. 2019, section 4.2).
    annealed: a = 1 - 0.8 progress, from proportional to nearly uniform (Stickland & Murray 2019, section 4.1).

    Args:
        sizes: training rows of each task, all above 0.
        progress: how much of the run is done, in [0, 1].
    """
    done = np.asarray(progress, np.float64)
    exponents: dict[str, Any] = {"proportional": 1.0, "uniform": 0.0, "temperature": 1 / temperature}
    exponent = 1 - ANNEALED * done if mixing == "annealed" else exponents[mixing]
    logs = np.log(np.asarray(sizes, np.float64))
    weights = np.exp(np.multiply.outer(np.broadcast_to(exponent, done.shape), logs - logs.max()))
    return weights / weights.sum(axis=-1, keepdims=True)


@dataclass
class Plan:
    """The task of every micro-batch of a run.

    Args:
        sizes: training rows of each task.
        micro: rows of a micro-batch over all processes.
        accumulation: micro-batches of one process in an update.
        epochs, max_steps: as TrainingArguments have them. An epoch is as many micro-batches as all rows fill.
        seed: with the above, all that the plan depends on.

    Attributes:
        epoch: micro-batches of an epoch.
        steps: micro-batches of the run.
        tasks: (steps rounded up to whole epochs,) the number of the task of each.
    """

    sizes: Sequence[int]
    micro: int
    accumulation: int = 1
    epochs: float = 1.0
    max_steps: int = -1
    seed: int = 42
    mixing: str = "proportional"
    temperature: float = 1.0
    epoch: int = field(init=False)
    steps: int = field(init=False)
    tasks: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = sum(self.passes)
        an_epoch = -(-self.epoch // self.accumulation)  # updates, as the base Trainer counts them
        updates = self.max_steps if self.max_steps > 0 else int(np.ceil(self.epochs * an_epoch))
        whole, rest = divmod(updates, an_epoch)
        self.steps = whole * self.epoch + min(rest * self.accumulation, self.epoch)
        size = self.epoch * (whole + bool(rest))
        progress = np.minimum(np.arange(size) / max(self.steps, 1), 1.0)
        edges = np.cumsum(proportions(self.sizes, self.mixing, self.temperature, progress), axis=1)[:, :-1]
        drawn = np.random.default_rng((self.seed, len(self.sizes))).random(size)
        self.tasks = (drawn[:, None] >= edges).sum(axis=1)

    @property
    def passes(self) -> list[int]:
        """Micro-batches of one pass over the rows of each task."""
        return [-(-size // self.micro) for size in self.sizes]

    def counts(self, steps: int | None = None) -> np.ndarray:
        """(tasks,) how many of the first micro-batches, else of those of the whole run, each task has."""
        return np.bincount(self.tasks[: self.steps if steps is None else steps], minlength=len(self.sizes))


class TaskBatches(Sampler[list[int]]):
    """The micro-batches of one process; rows are numbered through all tasks, in the order of the tasks.

    Each task goes through its rows as `LengthGrouped` orders them, pass after pass, however often it comes.

    Args:
        plan: which task comes when.
        orders: the order of the rows of each task; its epoch is set to the number of the pass.
    """

    def __init__(self, plan: Plan, orders: Sequence[LengthGrouped], processes: int = 1, process: int = 0) -> None:
        self.plan, self.orders, self.processes, self.process, self.epoch = plan, orders, processes, process, 0
        self._starts = np.cumsum([0, *plan.sizes])
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.plan.epoch
        seen: dict[int, int] = defaultdict(int, enumerate(self.plan.counts(first).tolist()))
        for task in self.plan.tasks[first : first + self.plan.epoch].tolist():
            yield self._rows(task, seen[task])
            seen[task] += 1

    def _rows(self, task: int, number: int) -> list[int]:
        """This process's rows of the micro-batch of this number of a task."""
        turn, at = divmod(number, self.plan.passes[task])
        if self._passes.get(task, (-1,))[0] != turn:
            self.orders[task].set_epoch(turn)
            self._passes[task] = (turn, np.fromiter(self.orders[task], np.int64))
        chunk = self._passes[task][1][at * self.plan.micro : (at + 1) * self.plan.micro]
        if len(chunk) < self.processes:  # every process needs a row
            chunk = np.resize(chunk, self.processes)
        return (np.array_split(chunk, self.processes)[self.process] + self._starts[task]).tolist()
