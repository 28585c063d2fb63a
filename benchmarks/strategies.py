"""Strategies on real data: test scores over seeds, seconds, trainable share; the tables of docs/results.md.

    python benchmarks/strategies.py sst2 --data DIR [--weights DIR] [--seeds 3] [--jobs 2] --out runs/results.jsonl
    python benchmarks/strategies.py --table --out runs/results.jsonl

DIR (or the environment's HFTL_DATA, HFTL_WEIGHTS) holds a folder for each data set: sst2, trec and mrpc with csv files
by split, stsb likewise, ants_bees as an image folder with metadata.csv. Each run is a process of its own with one
thread; a run that stands in the results file already is not run again. `valid` selects, `test` is read once a run.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from kept import MINILM, ROOT, fresh, known, need_data, run, several

TEXT = ["--per_device_train_batch_size", "32"]
PHOTO = ["--num_train_epochs", "6", "--per_device_train_batch_size", "16"]
COMPARED = ["Full", "LayerDecay(0.9)", "LastLayers(2)", "LoRA(r=16)", "LinearProbe", "Scratch"]

JOBS: dict[str, tuple[str, list[str], list[str]]] = {
    "sst2": ("text_cls.py", [*TEXT, "--num_train_epochs", "1"], ["plain Trainer", *COMPARED]),
    "trec": ("text_cls.py", [*TEXT, "--num_train_epochs", "2"], ["Full"]),
    "mrpc": ("text_cls.py", [*TEXT, "--num_train_epochs", "2"], ["Full"]),
    "stsb": ("text_cls.py", [*TEXT, "--num_train_epochs", "2"], ["Full"]),
    "ants_bees": ("image_cls.py", PHOTO, ["LinearProbe", "LastLayers(4)", "LoRA(r=16)", "Full", "Scratch"]),
}
"""Data set -> recipe, flags, strategies."""

RATES = {"text_cls.py": {"LoRA(r=16)": "1e-3", "LinearProbe": "3e-2", "Scratch": "3e-4"}, "image_cls.py": {}}
USUAL = {"text_cls.py": "1e-4", "image_cls.py": "1e-3"}
"""One learning rate for each strategy, set before the first run and never searched."""


def command(name: str, strategy: str, seed: int, data: Path, weights: Path | None, out: str) -> list[str]:
    """The command line of one run."""
    recipe, flags, _ = JOBS[name]
    flags = [*flags, "--learning_rate", RATES[recipe].get(strategy, USUAL[recipe])]
    if strategy == "plain Trainer":
        script = [sys.executable, str(ROOT / "benchmarks" / "plain_trainer.py"), str(data / name), MINILM]
        return [*script, *flags, "--seed", str(seed), "--output_dir", out]
    model = MINILM if recipe == "text_cls.py" else str((weights or Path()) / "mobilenetv2_100_timm")
    script = [sys.executable, str(ROOT / "recipes" / recipe), "--model", model, "--data", str(data / name)]
    return [*script, *flags, "--strategy", strategy, "--seed", str(seed), "--output_dir", out, "--disable_tqdm"]


def one(name: str, strategy: str, seed: int, data: Path, weights: Path | None) -> dict:
    """Run once in a fresh process and read what came out."""
    with tempfile.TemporaryDirectory() as scratch:
        words = command(name, strategy, seed, data, weights, f"{scratch}/run")
        started = time.monotonic()
        said = fresh(words)
        key = {"data": name, "strategy": strategy, "seed": seed, "wall": time.monotonic() - started}
        if strategy == "plain Trainer":
            return key | json.loads(said.strip().splitlines()[-1])
        report = json.loads(Path(f"{scratch}/run/report.json").read_text("utf-8"))
    metric = report["headline"]
    kept = ("seconds", "examples_per_second", "forward_passes", "trainable", "total", "peak_memory")
    low_high = {"low": report["test"][metric]["low"], "high": report["test"][metric]["high"]}
    scores = {"metric": metric, "valid": report["valid"][metric]["value"], "test": report["test"][metric]["value"]}
    return key | scores | low_high | {"n": report["test"][metric]["n"]} | {name: report[name] for name in kept}


def table(results: list[dict]) -> str:
    """Markdown: mean and spread over seeds, and the bootstrap interval of the first seed."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for result in results:
        groups[result["data"], result["strategy"]].append(result)
    lines = [
        "| data | strategy | metric | test, mean (min to max) | 95 % interval of seed 1 | valid | seeds | seconds | "
        "trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, strategy), runs in groups.items():
        runs.sort(key=lambda run: run["seed"])
        first, tests = runs[0], [run["test"] for run in runs]
        interval = f"{first['low']:.3f} to {first['high']:.3f}, n={first['n']}" if "low" in first else ""
        share = f"{first['trainable'] / first['total']:.2%}" if "total" in first else "100.00%"
        lines.append(
            f"| {data} | {strategy} | {first.get('metric', 'accuracy')} | {statistics.mean(tests):.3f} "
            f"({min(tests):.3f} to {max(tests):.3f}) | {interval} | "
            f"{statistics.mean(run['valid'] for run in runs):.3f} | {len(runs)} | "
            f"{statistics.median(run['seconds'] for run in runs):.0f} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = several(__doc__, "runs/results.jsonl", list(JOBS))
    parser.add_argument("--weights", default=os.environ.get("HFTL_WEIGHTS"))
    given = parser.parse_args()
    wanted = []
    if not given.table:
        need_data(parser, given)
        done = {(run["data"], run["strategy"], run["seed"]) for run in known(given.out)}
        where = Path(given.data), Path(given.weights) if given.weights else None
        jobs = [(n, s, seed) for seed in range(1, given.seeds + 1) for n in given.names for s in JOBS[n][2]]
        wanted = [(*job, *where) for job in jobs if job not in done]
    print(table(run(wanted, one, given)))


if __name__ == "__main__":
    main()
