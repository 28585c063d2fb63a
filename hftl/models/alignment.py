"""The closed forms behind alignment: distances of two samples, a discriminator, a reversed gradient.

Knows tensors alone: features are (rows, width), probabilities (rows, classes).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradients[0], None


def reversed_gradient(features: torch.Tensor, strength: float) -> torch.Tensor:
    """The same features; what flows back is multiplied by `-strength` (Ganin et al. 2016, section 4.2)."""
    return _Reverse.apply(features, strength)


def domain_loss(
    source: torch.Tensor, target: torch.Tensor, own: torch.Tensor | None = None, theirs: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy of domain logits (rows, 1), both domains alike in weight; rows may have weights (rows,)."""
    found = []
    for logits, truth, weights in ((source, 1.0, own), (target, 0.0, theirs)):
        each = F.binary_cross_entropy_with_logits(
            logits[:, 0], logits.new_full((len(logits),), truth), reduction="none"
        )
        found.append(each.mean() if weights is None else (each * weights).sum() / weights.sum())
    return (found[0] + found[1]) / 2


def discriminator(width: int, hidden: int) -> nn.Module:
    """(rows, width) -> domain logits (rows, 1)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )


class Conditioned(nn.Module):
    """A discriminator of features conditioned on probabilities (Long et al. 2018, section 3.2).

    It reads their outer product, or where that has more than `widest` numbers, products of random projections.
    """

    def __init__(self, width: int, classes: int, hidden: int, widest: int) -> None:
        super().__init__()
        self.random, self.size = width * classes > widest, min(width * classes, widest // 4)
        self.left: torch.Tensor
        self.right: torch.Tensor
        if self.random:
            self.register_buffer("left", torch.randn(width, self.size))
            self.register_buffer("right", torch.randn(classes, self.size))
        self.judge = discriminator(self.size if self.random else width * classes, hidden)

    def forward(self, features: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        if self.random:
            return self.judge((features @ self.left) * (guess @ self.right) / self.size**0.5)
        return self.judge(outer(features, guess))


def outer(features: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
    """The outer product of each row, (rows, classes * width): the features once for each class, by its probability."""
    return (guess[:, :, None] * features[:, None, :]).flatten(1)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """(rows,) in nats."""
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum(1)


def mmd(source: torch.Tensor, target: torch.Tensor, kernels: int = 5, factor: float = 2.0) -> torch.Tensor:
    """Squared maximum mean discrepancy of (n, d) and (m, d), biased, under the mean of Gaussian kernels.

    Kernel i is `exp(-|x - y|^2 / (s f^i))` with i centred on 0 and s the mean squared distance of all pairs.
    s is part of the gradient: held fixed, as elsewhere, it makes all features shrink to one point.
    """
    both = torch.cat([source, target])
    squares = (both[:, None] - both[None]).square().sum(-1)
    n, width = len(source), squares.sum() / (len(both) ** 2 - len(both))
    widths = [width * factor ** (i - kernels // 2) for i in range(kernels)]
    kernel = torch.stack([(-squares / scale.clamp(min=1e-12)).exp() for scale in widths]).sum(0)
    return (kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()) / kernels


def coral(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`|Cs - Ct|_F^2 / 4 d^2` of the covariances of (n, d) and (m, d); 0 where a batch has a single row."""
    if min(len(source), len(target)) < 2:
        return source.sum() * 0
    return (source.T.cov() - target.T.cov()).square().sum() / (4 * source.shape[1] ** 2)


def class_confusion(logits: torch.Tensor) -> torch.Tensor:
    """Mean off-diagonal class correlation of (rows, classes), sure rows weighing more (Jin et al. 2020, eq. 2-6)."""
    guess = logits.softmax(1)
    weights = 1 + entropy(guess.detach()).neg().exp()
    weights = len(guess) * weights / weights.sum()
    pairs = (guess * weights[:, None]).T @ guess
    pairs = pairs / pairs.sum(1, keepdim=True)
    return (pairs.sum() - pairs.trace()) / len(pairs)


def sure_loss(guess: torch.Tensor, logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Cross-entropy of `logits` with the classes of `guess`, over all rows; a guess below the threshold counts 0."""
    sure, label = guess.detach().softmax(1).max(1)
    return (F.cross_entropy(logits, label, reduction="none") * (sure >= threshold)).mean()
