"""How many rows fit into memory at a time, found from what one row leaves for the backward pass.

Knows a Trainer's forward pass, its batches and its devices; no task, no strategy. The batch of an update stays as it
was asked for: what does not fit at once is accumulated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hftl.errors import UserError
from hftl.models.untouched import untouched

SPACE = 1.3
"""What a step takes of memory at its peak, over what is saved for backward: 0.94 to 1.31 over MiniLM, ViT, MobileNetV2,
ResNet and ConvNeXt, in float32 and bfloat16."""
CPU_SHARE, GPU_SHARE = 0.8, 0.95
"""Of the free memory, what is used: a CPU's is shared with others, a GPU's is then tried."""
STATES = 2
"""Numbers of an optimizer for each that it trains; Adam's, and the most that is common."""


def fit_batch(trainer: Any) -> None:
    """Set the largest micro-batch that fits, and accumulate up to the rows that each device was asked for.

    The micro-batch divides these rows (`per_device_train_batch_size` x `gradient_accumulation_steps`), so that an
    update is the same sum over the same rows. Says in one line what was chosen. Model, gradients and random numbers
    are as before afterwards.

    Raises:
        UserError: the memory of this device is not known, or weights are spread over devices, or not one row fits.
    """
    args, device = trainer.args, trainer.args.device
    if device.type not in ("cpu", "cuda") or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        what = device.type if device.type not in ("cpu", "cuda") else "FSDP or DeepSpeed"
        raise UserError(f"--fit_batch knows the memory of a CPU or CUDA GPU; this is {what}. Leave it out.")
    asked, before = args.per_device_train_batch_size * args.gradient_accumulation_steps, trainer._train_batch_size
    with trainer.frozen():
        fewest = 2 if has_batchnorm(trainer.model) else 1
        sizes = [n for n in range(fewest, asked + 1) if asked % n == 0] or [asked]
        with untouched(trainer.model):
            fixed, row = needs(trainer)
            room = free_bytes(device)
            micro = least(trainer, max([n for n in sizes if fixed + n * row <= room] or sizes[:1]))
            if device.type == "cuda":
                micro = tried(trainer, [n for n in sizes if n <= micro])
        args.per_device_train_batch_size, args.gradient_accumulation_steps = micro, asked // micro
        trainer._train_batch_size = args.train_batch_size
        if args.process_index == 0:
            print(_told(micro, asked, fixed, row, room) + _norms(trainer.model, before, trainer._train_batch_size))


def needs(trainer: Any) -> tuple[int, int]:
    """Bytes that training takes beside the model: those that do not depend on the micro-batch, and those for a row.

    A row is one of the longest of train. What two of them save for backward, less what one does, is a row's; with
    BatchNorm it is three and two, because that refuses to normalise a single value.
    """
    few = 2 if has_batchnorm(trainer.model) else 1
    with trainer.frozen():
        trained = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
        saved = saved_by(trainer, few)
        row = max(saved_by(trainer, few + 1) - saved, 1)
    gradients = trained * (2 if trainer.accelerator.num_processes > 1 else 1)  # DDP copies them into buckets
    return gradients + STATES * trained + int(SPACE * max(saved - few * row, 0)), int(SPACE * row)


def saved_by(trainer: Any, rows: int) -> int:
    """Bytes that the forward pass of so many rows keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    return saved_bytes(lambda: loss_of(trainer, rows), weights)


def saved_bytes(forward: Callable[[], torch.Tensor], known: set[int]) -> int:
    """Bytes that `forward` keeps for its backward pass, each piece of memory once, without the `known` addresses."""
    pieces: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()  # is held up to here, so that no address is given out twice
    del loss
    return sum(pieces.values())


def loss_of(trainer: Any, rows: int) -> torch.Tensor:
    """The loss of a micro-batch of so many rows, the longest of train, in the precision of the run."""
    data = trainer.train_dataset
    lengths = getattr(data, "lengths", None)
    order = np.arange(len(data)) if lengths is None else np.argsort(-lengths, kind="stable")
    inputs = trainer.data_collator([data[int(order[i % len(order)])] for i in range(rows)])
    inputs.pop("row", None)  # nothing is kept of these
    inputs = trainer._prepare_inputs(inputs)
    trainer.model.train()
    with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
        return trainer.compute_loss(trainer.model, inputs, num_items_in_batch=inputs["labels"].numel())


def tried(trainer: Any, sizes: list[int]) -> int:
    """The largest of these micro-batches with which a real step fits on the GPU of every process."""
    for n in reversed(sizes):
        if least(trainer, int(step_fits(trainer, n))):
            return n
    raise UserError(
        "Not even one row at a time fits into the GPU's memory. Pass a smaller --max_length or --model, or a "
        "--strategy that trains less, such as LoRA(r=8)."
    )


def step_fits(trainer: Any, rows: int) -> bool:
    """Whether a forward and a backward pass find memory beside the optimizer's numbers."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    held: list[torch.Tensor] = []
    try:
        held += [torch.empty_like(p) for p in trained for _ in range(STATES)]
        loss_of(trainer, rows).backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        held.clear()
        for parameter in trained:
            parameter.grad = None
        if trainer.args.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def free_bytes(device: torch.device) -> int:
    """Bytes that a process may take for training on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + idle))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this run on this machine
    return int(CPU_SHARE * min(psutil.virtual_memory().available, container_room())) // beside


def container_room(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that the container's limit leaves; more than any machine has where there is no limit (cgroup v2)."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit, or no such files
        return 1 << 62
    return max(limit - used + int(stat.get("inactive_file", 0)), 0)  # file pages are given up when memory is short


def has_batchnorm(model: nn.Module) -> bool:
    """Whether statistics over the rows of a micro-batch are a part of training."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def least(trainer: Any, value: int) -> int:
    """The least of all processes' values, the same on each."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).min())


def _told(micro: int, asked: int, fixed: int, row: int, room: int) -> str:
    times = f", {asked // micro} times for an update of {asked}" if micro < asked else ", all of an update"
    need = f"{row / 1e6:.1f} MB a row and {fixed / 1e9:.2f} GB beside them, {room / 1e9:.1f} GB free"
    doubt = "; even one row may not fit" if fixed + micro * row > room else ""
    return f"fit_batch  {micro} row{'s' if micro > 1 else ''} at a time{times} ({need}{doubt})"


def _norms(model: nn.Module, before: int, after: int) -> str:
    return f"; BatchNorm sees {after} rows, not {before}" if has_batchnorm(model) and after != before else ""
