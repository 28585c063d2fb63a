"""Restore a model's modes, buffers, gradients and random numbers after a trial run. Knows modules; no data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave modes, buffers, gradients and random numbers as they were found."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(m, k, b, b.clone()) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    numbers, plain = np.random.get_state(), random.getstate()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(plain)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
