"""What this machine computes fast: the precision and the memory layout. Knows hardware and torch; of a model only how
many parameters it has and whether it convolves images."""

from __future__ import annotations

import multiprocessing
import os

import torch
from torch import nn

ENOUGH = 1_000_000
"""Parameters from which a model gains: below, casts between precisions and layouts cost more than they save."""


def bf16_pays(model: nn.Module, device: torch.device) -> bool:
    """Whether bfloat16 autocast is faster than float32 for this model on this device.

    It is where the hardware multiplies bfloat16 itself: CPUs with AVX512_BF16 or AMX, and NVIDIA and AMD GPUs that do
    not emulate it. Other hardware has not been measured, and computes in float32 unless told otherwise.
    """
    return parameters_of(model) >= ENOUGH and native_bf16(device)


def native_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 without emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def channels_last_pays(model: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether 2-D convolutions are faster with the channels of a pixel side by side in memory (NHWC).

    On a CPU they are in every precision, on a GPU in 16 bits, where tensor cores take that layout alone.
    """
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    fitting = device.type == "cpu" or (device.type == "cuda" and precision in ("bf16", "fp16"))
    return convolves and fitting and parameters_of(model) >= ENOUGH


def placed(model: nn.Module) -> torch.device:
    """Put a model that only predicts on the accelerator, where there is one, laid out as is fastest there."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    if channels_last_pays(model, device, "no"):
        model.to(memory_format=torch.channels_last)
    model.to(device)
    return device


def rows_a_pass(decoded: bool, device: torch.device) -> int:
    """How many rows a model that only predicts should compute at once; `decoded` for images.

    On a CPU the allocator hands activations of 32 MiB or more back to the kernel, which clears new pages for every
    layer: of MobileNetV2 by 32 images that is half of the time, by 8 a tenth.
    """
    return 8 if decoded and device.type == "cpu" else 32


def readers(device: torch.device) -> int:
    """How many processes decode images ahead of the one that trains; 0 where it decodes them itself.

    A GPU waits for a single process that decodes: 3 ms an image of 224 pixels, most of it resizing. A CPU has no core
    to spare, and the decoding is 5 % of a step of MobileNetV2 there.
    """
    if device.type != "cuda" or multiprocessing.get_start_method() != "fork":  # only a fork inherits rows as they are
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(cores - 1, 0))


def parameters_of(model: nn.Module) -> int:
    """The number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
