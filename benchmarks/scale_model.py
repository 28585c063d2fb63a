"""What a device holds and how long a step takes on 1 to 1,024 devices: arithmetic, and its table. Measures nothing.

    python benchmarks/scale_model.py

Weights, gradients and optimizer states are counted exactly as ZeRO does (Rajbhandari et al. 2020, sections 5 and 7),
with frozen weights apart: they have no gradient and no state. `scaling.py` holds the counts against real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

STRATEGIES = ("DDP", "ZeRO-2", "FSDP2")
"""FSDP2 counts as ZeRO-3 does: both split everything."""


@dataclass(frozen=True)
class Job:
    """One model and how it is trained. Numbers are parameters; `activation` is bytes that a row keeps for backward."""

    trained: int
    frozen: int = 0
    rows: int = 32
    activation: int = 0
    weight_bytes: int = 4
    gradient_bytes: int = 4
    state_bytes: int = 8
    """Of each trained parameter: Adam's two moments in float32; 12 with float32 master weights."""


@dataclass(frozen=True)
class Machine:
    """Devices and what joins them: bytes a second that one device sends, seconds a message, seconds a row computes."""

    bandwidth: float
    latency: float = 0.0
    row_seconds: float = 0.0
    step_seconds: float = 0.0
    """Of a step beside its rows."""
    gather: float = 0.0
    """Bytes a second in all-gathers and reduce-scatters, where that is not `bandwidth`: gloo's are slower."""


def held(job: Job, strategy: str, devices: int) -> dict[str, float]:
    """Bytes a device holds between two steps (weights, gradients, states) and in a step (activations).

    Not counted: DDP's buckets (once more the gradients), the one or two blocks that FSDP gathers at a time, buffers,
    what kernels need, and what the allocator and the libraries keep.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"expected one of {', '.join(STRATEGIES)}; {strategy} came")
    weights = devices if strategy == "FSDP2" else 1
    others = 1 if strategy == "DDP" else devices
    return {
        "weights": (job.trained + job.frozen) * job.weight_bytes / weights,
        "gradients": job.trained * job.gradient_bytes / others,
        "states": job.trained * job.state_bytes / others,
        "activations": job.rows * job.activation,
    }


def sent(job: Job, strategy: str, devices: int) -> float:
    """Bytes that each device sends in a step, by rings.

    All-reduce sends 2 (n - 1) / n of the gradients (Patarasuk & Yuan 2009); ZeRO-2 the same, as a reduce-scatter of
    gradients and an all-gather of new weights; FSDP2 gathers all weights, frozen ones too, for the forward pass and
    once more for the backward pass, and scatters the gradients.
    """
    part = (devices - 1) / devices
    gradients = job.trained * job.gradient_bytes
    if strategy == "FSDP2":
        return part * (2 * (job.trained + job.frozen) * job.weight_bytes + gradients)
    return 2 * part * gradients


def step_seconds(job: Job, machine: Machine, strategy: str, devices: int) -> float:
    """Seconds of a step whose communication hides behind no computation: the slowest that the arithmetic allows."""
    if devices == 1:
        return machine.step_seconds + job.rows * machine.row_seconds
    rate = (strategy == "FSDP2" and machine.gather) or machine.bandwidth
    wires = sent(job, strategy, devices) / rate + 2 * (devices - 1) * machine.latency
    return machine.step_seconds + job.rows * machine.row_seconds + wires


def efficiency(job: Job, machine: Machine, strategy: str, devices: int) -> float:
    """Rows a second of all devices, over what as many lone devices would do."""
    return step_seconds(job, machine, strategy, 1) / step_seconds(job, machine, strategy, devices)


BERT = {"Full": (109_483_778, 0), "LoRA(r=8)": (1_328_642, 109_483_778), "LastLayers(1)": (7_680_002, 101_803_776)}
"""bert-base with two classes, as `Recipe.prepare` counts them: parameters that train, and that do not."""
SEVEN = {"Full": (7_000_000_000, 0), "LoRA(r=8)": (20_000_000, 7_000_000_000)}
"""A model of 7 billion parameters."""


def table(name: str, models: dict[str, tuple[int, int]], machine: Machine, rows: int, activation: int) -> list[str]:
    """Lines of a Markdown table over 1 to 1,024 devices."""
    head = f"| {name} | on | 1 | 2 | 8 | 64 | 1,024 |"
    lines = [head, "|---|---|" + "---:|" * 5]
    for method, (trained, frozen) in models.items():
        job = Job(trained, frozen, rows, activation)
        for strategy in STRATEGIES:
            cells = [
                f"{sum(held(job, strategy, n).values()) / 1e9:.1f} GB, {efficiency(job, machine, strategy, n):.0%}"
                for n in (1, 2, 8, 64, 1024)
            ]
            lines.append(f"| {method} | {strategy} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    gpu = Machine(bandwidth=25e9, latency=1e-5, row_seconds=0.004)
    print("Assumed: 25 GB/s sent by each device, 10 us a message, 4 ms a row (bert-base), 60 ms a row (7 billion).\n")
    print("\n".join(table("bert-base, 32 rows of 128 tokens", BERT, gpu, 32, 100_000_000)), "\n")
    large = Machine(bandwidth=25e9, latency=1e-5, row_seconds=0.06)
    print("\n".join(table("7 billion, 8 rows of 512 tokens", SEVEN, large, 8, 2_000_000_000)))
