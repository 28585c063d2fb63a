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
import shlex
import statistics
import tempfile
from collections import defaultdict

from kept import MINILM, add, arguments, known, need_data, recipe

TASKS = ("sst2", "trec", "cola", "mrpc", "stsb")


def one(given: argparse.Namespace, seed: int) -> list[dict]:
    """Run once in a fresh process: the row of each task in the report, with what was run."""
    tasks = [f"{n}={given.data}/{n},max_train_samples={given.rows}" for n in given.tasks]
    flags = ["--tasks", *tasks, "--model", given.model, "--num_train_epochs", str(given.epochs)]
    flags += ["--learning_rate", str(given.learning_rate), "--per_device_train_batch_size", "32", "--seed", str(seed)]
    flags += shlex.split(given.flags)
    with tempfile.TemporaryDirectory() as scratch:
        report = recipe("multitask.py", *flags, out=f"{scratch}/run", threads=given.threads)
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
    parser = arguments(__doc__, "runs/multitask.jsonl")
    parser.add_argument("tasks", nargs="*", default=TASKS, help=f"out of {', '.join(TASKS)}; all of them")
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--rows", type=int, default=2000, help="training rows of each task, at most")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flags", default="", help="further flags of recipes/multitask.py, in one word")
    given = parser.parse_args()
    if not given.table:
        need_data(parser, given)
        if set(given.tasks) - set(TASKS):
            parser.error(f"pass tasks out of {', '.join(TASKS)}")
        done = [row["key"] for row in known(given.out)]
        for seed in range(1, given.seeds + 1):
            if key_of(given, seed) not in done:
                add(given.out, one(given, seed))
    print(table(known(given.out)))


if __name__ == "__main__":
    main()
