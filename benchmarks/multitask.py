"""Five text tasks on one encoder against each alone, over seeds: what each gained or lost.

    python benchmarks/multitask.py --data DIR [--rows 2000] [--seeds 3] [--epochs 2] --out runs/multitask.jsonl
    python benchmarks/multitask.py --data DIR --flags "--mixing temperature" --out runs/multitask.jsonl
    python benchmarks/multitask.py --table --out runs/multitask.jsonl

DIR (or the environment's HFTL_DATA) holds a folder with csv files by split for each of sst2, trec, cola, mrpc and stsb.
Each run is a process of its own with one thread. It trains on all tasks and then on each alone, for as many
micro-batches as it had together; a run that stands in the results file already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
TASKS = ("sst2", "trec", "cola", "mrpc", "stsb")


def one(given: argparse.Namespace, seed: int) -> list[dict]:
    """Run once in a fresh process: the row of each task in the report, with what was run."""
    tasks = [f"{n}={given.data}/{n},max_train_samples={given.rows}" for n in given.tasks]
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, str(ROOT / "recipes" / "multitask.py"), "--tasks", *tasks, "--model", given.model]
        words += ["--num_train_epochs", str(given.epochs), "--learning_rate", str(given.learning_rate)]
        words += ["--per_device_train_batch_size", "32", "--seed", str(seed), "--output_dir", f"{scratch}/run"]
        words += ["--disable_tqdm", *shlex.split(given.flags)]
        env = os.environ | {"OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
        report = json.loads(Path(f"{scratch}/run/report.json").read_text("utf-8"))
    return [{"key": key_of(given, seed), "seconds": report["seconds"]} | row for row in report["tasks"]]


def key_of(given: argparse.Namespace, seed: int) -> dict:
    """What tells one run from another."""
    names = ("tasks", "model", "rows", "epochs", "learning_rate", "flags")
    return {name: getattr(given, name) for name in names} | {"tasks": list(given.tasks), "seed": seed}


def table(results: list[dict]) -> str:
    """Markdown: means over seeds, the spread of the difference, and how many of the paired intervals leave zero out."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in results:
        told = {name: value for name, value in row["key"].items() if name not in ("seed", "model")}
        groups[json.dumps(told), row["task"]].append(row)
    lines = [
        "| flags | rows | tasks | task | metric | alone | together | difference (range) | gained | lost | seeds | n |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (told, task), rows in groups.items():
        alone, both, apart = ([row[kind]["value"] for row in rows] for kind in ("single", "multi", "difference"))
        verdicts = [row["verdict"] for row in rows]
        key = json.loads(told)
        lines.append(
            f"| {key['flags'] or 'defaults'} | {key['rows']} | {len(key['tasks'])} | {task} | {rows[0]['metric']} "
            f"| {statistics.mean(alone):.3f} | {statistics.mean(both):.3f} "
            f"| {statistics.mean(apart):+.3f} ({min(apart):+.3f} to {max(apart):+.3f}) "
            f"| {verdicts.count('gained')} | {verdicts.count('lost')} | {len(rows)} | {rows[0]['multi']['n']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS, help=f"out of {', '.join(TASKS)}; all of them")
    parser.add_argument("--data", default=os.environ.get("HFTL_DATA"))
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=2000, help="training rows of each task, at most")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flags", default="", help="further flags of recipes/multitask.py, in one word")
    parser.add_argument("--out", default="runs/multitask.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    given = parser.parse_args()
    out = Path(given.out)
    known = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.is_file() else []
    if not given.table:
        if not given.data or set(given.tasks) - set(TASKS):
            parser.error(
                "pass --data, or set HFTL_DATA, to the folder that holds the data sets, and tasks out of these"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        for seed in range(1, given.seeds + 1):
            if any(row["key"] == key_of(given, seed) for row in known):
                continue
            rows = one(given, seed)
            with out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            known += rows
    print(table(known))


if __name__ == "__main__":
    main()
