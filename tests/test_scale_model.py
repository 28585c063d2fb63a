"""The arithmetic of docs/scale.md against the numbers of its sources."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from scale_model import BERT, Job, Machine, efficiency, held, sent, step_seconds


@pytest.mark.parametrize(("strategy", "gigabytes"), [("DDP", 120.0), ("ZeRO-2", 16.6), ("FSDP2", 1.9)])
def test_it_gives_the_bytes_of_the_zero_paper(strategy: str, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters in mixed precision on 64 devices."""
    job = Job(7_500_000_000, weight_bytes=2, gradient_bytes=2, state_bytes=12)
    assert sum(held(job, strategy, 64).values()) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_one_device_holds_the_same_however_it_would_be_split() -> None:
    job = Job(100, frozen=900, rows=2, activation=10)
    found = [held(job, strategy, 1) for strategy in ("DDP", "ZeRO-2", "FSDP2")]
    assert found[0] == found[1] == found[2] == {"weights": 4000, "gradients": 400, "states": 800, "activations": 20}


def test_fsdp_sends_half_as_much_again_as_ddp_where_all_trains_and_far_more_where_little_does() -> None:
    """Rajbhandari et al. 2020, section 7.2: 3 and 2 times the parameters."""
    for devices in (2, 8, 1024):
        whole = Job(1000)
        assert sent(whole, "FSDP2", devices) == pytest.approx(1.5 * sent(whole, "DDP", devices))
        assert sent(whole, "ZeRO-2", devices) == sent(whole, "DDP", devices)
    few = Job(10, frozen=990)
    assert sent(few, "FSDP2", 8) > 50 * sent(few, "DDP", 8)
    assert sent(whole, "DDP", 1) == sent(whole, "FSDP2", 1) == 0


def test_a_step_takes_its_rows_and_what_is_sent() -> None:
    job, machine = Job(1_000_000, rows=10), Machine(bandwidth=4e6, latency=0.01, row_seconds=0.1)
    assert step_seconds(job, machine, "DDP", 1) == pytest.approx(1.0)
    assert step_seconds(job, machine, "DDP", 2) == pytest.approx(1.0 + 1.0 + 0.02)
    assert efficiency(job, machine, "DDP", 2) == pytest.approx(1 / 2.02)
    assert efficiency(job, machine, "DDP", 1) == 1


def test_less_trained_is_less_held_and_less_sent() -> None:
    machine, rows = Machine(bandwidth=25e9), {"rows": 32}
    full, lora = (Job(*BERT[name], **rows) for name in ("Full", "LoRA(r=8)"))
    for strategy in ("DDP", "ZeRO-2", "FSDP2"):
        assert sum(held(lora, strategy, 8).values()) < sum(held(full, strategy, 8).values())
        assert step_seconds(lora, machine, strategy, 8) < step_seconds(full, machine, strategy, 8)
    with pytest.raises(ValueError, match="expected one of"):
        held(full, "ZeRO-9", 2)
