"""Gradients of several tasks on shared weights, with conflicts projected away. Knows tensors, no model, no task."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn


def projected(gradients: torch.Tensor, orders: Iterable[Iterable[int]]) -> torch.Tensor:
    """Each gradient less its components against the others (Yu et al. 2020, arXiv 2001.06782, algorithm 1).

    Where g_i and another task's original g_j conflict (a negative dot product), g_i loses its projection on g_j.

    Args:
        gradients: (tasks, weights).
        orders: for each task, the others in the order in which they are looked at; the paper draws it at random.
    """
    found = gradients.clone()
    squares = gradients.square().sum(dim=1)
    for i, others in enumerate(orders):
        for j in others:
            dot = found[i] @ gradients[j]
            if dot < 0:
                found[i] -= dot / squares[j] * gradients[j]
    return found


class Surgery:
    """Takes the gradient of each micro-batch away, and gives back the sum of the projected ones at the update.

    Args:
        parameters: those that all tasks share and that train.
        average: over processes, of a gradient (weights,).
        seed: with the number of the update, all that the order of projections depends on.
    """

    def __init__(
        self, parameters: list[nn.Parameter], average: Callable[[torch.Tensor], torch.Tensor], seed: int
    ) -> None:
        self.parameters, self.average, self.seed = parameters, average, seed
        self._taken: dict[str, torch.Tensor] = {}
        self._touched: set[int] = set()

    def take(self, task: str) -> None:
        """Add the gradients that lie on the parameters to those of a task, and leave none there."""
        parts = []
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                parts.append(torch.zeros(parameter.numel(), device=parameter.device))
                continue
            self._touched.add(i)
            parts.append(parameter.grad.detach().reshape(-1))
            parameter.grad = None
        whole = torch.cat(parts)
        self._taken[task] = self._taken[task] + whole if task in self._taken else whole

    def give(self, update: int) -> None:
        """Lay the sum of the projected gradients on the parameters, for the optimizer."""
        tasks = sorted(self._taken)
        gradients = torch.stack([self.average(self._taken[task]) for task in tasks])
        rng = np.random.default_rng((self.seed, update))
        orders = [rng.permutation([j for j in range(len(tasks)) if j != i]).tolist() for i in range(len(tasks))]
        total = projected(gradients, orders).sum(dim=0)
        sizes = [parameter.numel() for parameter in self.parameters]
        for i, (parameter, part) in enumerate(zip(self.parameters, total.split(sizes), strict=True)):
            if i in self._touched:  # what no task reads gets no weight decay either
                parameter.grad = part.view_as(parameter)
        self._taken, self._touched = {}, set()
