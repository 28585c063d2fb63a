"""One process beside two on this machine (gloo), and `scale_model.py` held against both; the tables of docs/scale.md.

    python benchmarks/scaling.py --rounds 3 --out runs/scaling.jsonl
    python benchmarks/scaling.py --table --out runs/scaling.jsonl

In each round one process, two under DDP and two under FSDP2 run in turn, with the same rows a process: MiniLM on the
bundled reviews (Full, LoRA, LastLayers), the bundled glyphs network on digits (Full). Seconds are medians over steps,
the first two left out; bytes are counted on a process: parameters, gradients before the update, optimizer states.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scale_model import Job, Machine, held, step_seconds
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hftl import Recipe

ROOT = Path(__file__).parents[1]
TEXT = {
    "task": "text-classification",
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "data": "hftl:reviews",
    "max_length": 64,
}
IMAGE = {"task": "image-classification", "model": "hftl:glyphs", "data": "hftl:digits"}
WORK: dict[str, dict[str, Any]] = {
    "text Full": TEXT | {"strategy": "Full"},
    "text LoRA(r=8)": TEXT | {"strategy": "LoRA(r=8)"},
    "text LastLayers(1)": TEXT | {"strategy": "LastLayers(1)"},
    "image Full": IMAGE | {"strategy": "Full"},
}
ROWS, STEPS = {"text": 4, "image": 16}, 7
SIDES = {
    "one": ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
    "DDP": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "FSDP2": ["accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "fsdp2.yaml")],
}


def local(tensor: torch.Tensor) -> int:
    """Bytes of a tensor that this process holds."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.numel() * own.element_size()


class Count(TrainerCallback):
    """Seconds of each step, and bytes at the last one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes: dict[str, int] = {}
        self.began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        self.bytes["weights"] = sum(local(p) for p in model.parameters())
        self.bytes["gradients"] = sum(local(p.grad) for p in model.parameters() if p.grad is not None)

    def on_step_end(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        states = (value for state in optimizer.state.values() for value in state.values())
        self.bytes["states"] = sum(local(value) for value in states if isinstance(value, torch.Tensor))


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """What this process counts while it trains for a few steps."""
    rows = ROWS[settings["task"].split("-")[0]]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            **settings, output_dir=folder + "/run", max_steps=STEPS, per_device_train_batch_size=rows, bf16=False,
            eval_strategy="no", early_stopping_patience=0, cache_gb=0.0, disable_tqdm=True,
        )  # fmt: skip
        run = recipe.prepare()
        count = Count()
        run.trainer.add_callback(count)
        trained, total = run.trainer.trained, sum(p.numel() for p in run.trainer.model.parameters())
        run.trainer.train()
    seconds = count.seconds[2:]
    return {"seconds": statistics.median(seconds), "trained": trained, "total": total, "rows": rows, **count.bytes}


def wires() -> dict[str, float]:
    """Bytes a second that a process sends, and seconds of a message; {} for a process alone.

    An all-reduce is of 32 MB. What FSDP2 does of a block, two all-gathers and a reduce-scatter, is of 7 MB.
    """
    n = dist.get_world_size()
    if n == 1:
        return {}
    large, small, block = torch.ones(8_000_000), torch.ones(1), torch.ones(1_800_000)
    shard = torch.ones(len(block) // n)
    reduced, said = timed(lambda: dist.all_reduce(large)), timed(lambda: dist.all_reduce(small))
    gathered = timed(lambda: dist.all_gather_into_tensor(block, shard))
    scattered = timed(lambda: dist.reduce_scatter_tensor(shard, block))
    part = (n - 1) / n
    return {
        "bandwidth": 2 * part * 32e6 / reduced,
        "latency": said / 2,
        "gather": 3 * part * 7.2e6 / (2 * gathered + scattered),
    }


def timed(call: Callable[[], Any]) -> float:
    """Median of seconds over seven calls that all processes begin together."""
    found = []
    for _ in range(7):
        dist.barrier()
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def worker(out: Path) -> None:
    """One process of a side: every piece of work, then the wires."""
    found: dict[str, Any] = {name: measured(dict(settings)) for name, settings in WORK.items()}
    found["wires"] = wires()
    if dist.get_rank() == dist.get_world_size() - 1:  # the last one's shard is never the larger
        out.write_text(json.dumps(found), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def play(side: str) -> dict[str, Any]:
    """One side once."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [sys.executable, "-m", *SIDES[side], __file__, "--worker", str(out)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(out.read_text("utf-8"))


def spread(values: list[float], form: str = ".2f") -> str:
    """Median, least and most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def efficiencies(rounds: dict[int, dict[str, Any]]) -> list[str]:
    """Lines: rows a second of two processes over twice those of one, and the step that the model foresees."""
    lines = [
        "| work | on 2 | step of 1, s | step of 2, s | efficiency | foreseen, s | error |",
        "|---|---|" + "---:|" * 5,
    ]
    for name in WORK:
        for side in ("DDP", "FSDP2"):
            ones, twos, foreseen = [], [], []
            for found in rounds.values():
                one, two = found["one"][name], found[side][name]
                job = Job(two["trained"], two["total"] - two["trained"], two["rows"])
                machine = Machine(row_seconds=one["seconds"] / one["rows"], **found["DDP"]["wires"])
                ones.append(one["seconds"])
                twos.append(two["seconds"])
                foreseen.append(step_seconds(job, machine, side, 2))
            ratios = [a / b for a, b in zip(ones, twos, strict=True)]
            errors = [a / b - 1 for a, b in zip(foreseen, twos, strict=True)]
            cells = [spread(ones, ".3f"), spread(twos, ".3f"), spread(ratios), f"{statistics.median(foreseen):.3f}"]
            lines.append(f"| {name} | {side} | {' | '.join(cells)} | {statistics.median(errors):+.0%} |")
    return lines


def counts(found: dict[str, Any]) -> list[str]:
    """Lines: bytes foreseen and counted on one process of each side."""
    lines = ["| work | processes | foreseen, MB | counted, MB | error |", "|---|---|---:|---:|---:|"]
    for name in WORK:
        for side, n in (("one", 1), ("DDP", 2), ("FSDP2", 2)):
            got = found[side][name]
            job = Job(got["trained"], got["total"] - got["trained"], got["rows"])
            parts = held(job, "FSDP2" if side == "FSDP2" else "DDP", n)
            foreseen = sum(parts[part] for part in ("weights", "gradients", "states"))
            counted = sum(got[part] for part in ("weights", "gradients", "states"))
            where = "1" if side == "one" else f"2, {side}"
            error = f"{foreseen / counted - 1:+.2%}"
            lines.append(f"| {name} | {where} | {foreseen / 1e6:.2f} | {counted / 1e6:.2f} | {error} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="runs/scaling.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the tables of --out")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(Path(given.worker))
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(0 if given.table else given.rounds):
        found = {side: play(side) for side in SIDES}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    rounds: dict[int, dict[str, Any]] = defaultdict(dict)
    for number, line in enumerate(out.read_text("utf-8").splitlines()):
        rounds[number] = json.loads(line)
    whole, parts = ([r["DDP"]["wires"][name] / 1e6 for r in rounds.values()] for name in ("bandwidth", "gather"))
    print(f"{len(rounds)} rounds; gloo sends {spread(whole, '.0f')} MB/s in an all-reduce,")
    print(f"{spread(parts, '.0f')} MB/s in all-gathers and reduce-scatters\n")
    print("\n".join([*efficiencies(rounds), "", *counts(rounds[0])]))


if __name__ == "__main__":
    main()
