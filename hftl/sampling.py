"""In which order rows are seen: shuffled, with rows of like length side by side. Knows lengths and a seed, no text.

Batches of like length waste no padding. The order depends on seed and epoch alone, so that it is the same on every
process and after a resume (the base Trainer's sampler draws from the global generator, which the model disturbs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class LengthGrouped(Sampler[int]):
    """A fresh shuffle each epoch; with `lengths`, sorted within windows of 50 batches and the batches shuffled again.

    Args:
        size: number of rows.
        batch: rows of one update over all processes; these stay together.
        lengths: length of each row in tokens, or None for a plain shuffle.
        seed: with the epoch, all that the order depends on.
    """

    window = 50

    def __init__(self, size: int, batch: int, lengths: Sequence[int] | None = None, seed: int = 42) -> None:
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
        step = self.batch * self.window
        windows = [order[start : start + step] for start in range(0, self.size, step)]
        order = np.concatenate([w[np.argsort(-self.lengths[w], kind="stable")] for w in windows])
        batches = [order[start : start + self.batch] for start in range(0, self.size, self.batch)]
        last = [batches.pop()] if len(batches[-1]) < self.batch else []  # a short batch must stay the last one
        return iter(np.concatenate([batches[i] for i in rng.permutation(len(batches))] + last).tolist())
