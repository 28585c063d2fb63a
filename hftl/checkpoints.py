"""What is said of a checkpoint that a run cannot go on from. Knows the errors of torch and safetensors, no trainer."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from hftl.errors import UserError


@contextmanager
def fitting(checkpoint: str | None) -> Iterator[None]:
    """Say of a checkpoint that cannot be taken up that it is damaged, or another run's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except AssertionError as failure:
        if "device to be set" not in str(failure):
            raise
        raise UserError(
            "Under FSDP a run whose optimizer remembers nothing, such as sgd, cannot be resumed. Pass --overwrite to "
            "start again, with another --optim."
        ) from failure
    except UnpicklingError as failure:
        raise UserError(
            f"{checkpoint} holds a file that is damaged, or is a pickle with more than tensors in it, which is not "
            "opened. Delete that folder to go on from the checkpoint before, or pass --overwrite to start again."
        ) from failure
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as failure:
        reason = textwrap.shorten(str(failure), 160, placeholder=" ...").rstrip(".")
        raise UserError(
            f"The run cannot go on from {checkpoint}: {reason}. Pass the --model, --data and --strategy that it was "
            "started with, or --overwrite to start again."
        ) from failure
