"""Speed beside what a user would pick instead, and beside the least that the work costs; the tables of docs/speed.md.

    python benchmarks/speed.py --data DIR --weights DIR --out runs/speed.jsonl
    python benchmarks/speed.py --only probe-sst2 full-sst2 --rounds 3 --rows 640 ...
    python benchmarks/speed.py --table --out runs/speed.jsonl
    python benchmarks/speed.py --profile probe-sst2 --data DIR --weights DIR

DIR (or HFTL_DATA) holds sst2 as csv files by split, ants_bees and pacs_small as image folders with metadata.csv; the
weights folder (or HFTL_WEIGHTS) holds mobilenetv2_100_timm. SetFit and fastai come with `pip install "hftl[bench]"`;
without them their sides are left out.

Each run is a fresh process; in each round every side of a job runs once, in turn, and what one round of a job gave is
written to --out at its end: an interrupted run goes on with the next. hftl's cache is empty at the start of each of its
runs, but for those called "again". Seconds are those of training with the evaluation of each epoch, and of filling the
cache. A pass is one bare forward pass over the training rows (one_pass.py), timed in the same round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speed_data import prepared, rows_of
from speed_jobs import JOBS, PEERS, ROOT, SIDES, Call, hftl
from speed_table import goals, table

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MOBILENET = "mobilenetv2_100_timm"
KEPT = ("seconds", "forward_passes", "peak_memory", "startup")


def run_process(words: list[str], threads: int, cache: Path) -> tuple[str, float]:
    """The last line that a process prints, and the seconds from its start to its end.

    Raises:
        SystemExit: it failed.
    """
    env = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env |= {
        "HFTL_CACHE": str(cache),
        "HF_DATASETS_CACHE": str(cache.parent / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1], time.monotonic() - started


def one(call: Call, side: str, cache: Path) -> dict[str, Any]:
    """Run one side once and read what came out."""
    shutil.rmtree(call.out, ignore_errors=True)
    if "again" not in side:
        shutil.rmtree(cache, ignore_errors=True)
    printed, wall = run_process(SIDES[side](call), call.threads, cache)
    if not side.startswith("hftl"):
        return json.loads(printed) | {"wall": wall}
    report = json.loads(Path(call.out, "report.json").read_text("utf-8"))
    scores = {split: report[split]["accuracy"]["value"] for split in ("valid", "test")}
    return {name: report[name] for name in KEPT} | scores | {"trained": report["trainable"], "wall": wall}


def play(name: str, turn: int, call: Call, sides: list[str], scratch: Path) -> list[dict[str, Any]]:
    """One round of a job: a pass, and every side once."""
    words = [sys.executable, str(ROOT / "benchmarks" / "one_pass.py"), str(call.data), call.model]
    unit = json.loads(run_process([*words, "--threads", str(call.threads)], call.threads, scratch / "none")[0])
    about = {"job": name, "round": turn, "rows": rows_of(call.data), "threads": call.threads, "pass": unit["seconds"]}
    found = []
    for side in sides:
        found.append(about | {"side": side} | one(call, side, scratch / "cache"))
        print(json.dumps(found[-1]), flush=True)
    return found


def profile(call: Call, scratch: Path) -> None:
    """Print where the time of hftl's side goes: its functions with the most time of their own, and in all."""
    words, numbers = hftl(call), scratch / "profile"
    run_process([words[0], "-m", "cProfile", "-o", str(numbers), *words[1:]], call.threads, scratch / "cache")
    report = json.loads(Path(call.out, "report.json").read_text("utf-8"))
    print(f"seconds of training {report['seconds']:.1f}, under cProfile; of the start {json.dumps(report['startup'])}")
    stats = pstats.Stats(str(numbers))
    stats.sort_stats("tottime").print_stats(25)
    stats.sort_stats("cumulative").print_stats(r"/hftl/|trainer\.py|(run_)?backward|optimizer", 40)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("HFTL_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HFTL_WEIGHTS"))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=960, help="training rows at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/speed.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the tables of --out")
    parser.add_argument("--profile", choices=JOBS, metavar="JOB", help="only say where hftl's time goes")
    given = parser.parse_args()
    if not given.table and not (given.data and given.weights):
        parser.error("pass --data and --weights, or set HFTL_DATA and HFTL_WEIGHTS")
    return given


def main() -> None:
    given = arguments()
    out = Path(given.out)
    known = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.is_file() else []
    turns = [] if given.table or given.profile else range(1, given.rounds + 1)
    missing = {side for side, package in PEERS.items() if importlib.util.find_spec(package) is None}
    for side in sorted(missing & {side for name in given.only for side in JOBS[name].sides}) if turns else ():
        print(f'{side} is not installed and is left out: pip install "hftl[bench]"', file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)

        def asked(name: str, seed: int) -> Call:
            job = JOBS[name]
            data = prepared(job.data, Path(given.data), min(given.rows, job.rows or given.rows), scratch)
            model = MINILM if job.data in ("sst2", "longtail") else str(Path(given.weights) / MOBILENET)
            return Call(job, data, model, seed, str(scratch / "out"), given.threads)

        if given.profile:
            return profile(asked(given.profile, 1), scratch)
        for turn in turns:
            for name in given.only:
                call = asked(name, turn)
                size = rows_of(call.data)["train"]
                if any((r["job"], r["round"], r["rows"]["train"]) == (name, turn, size) for r in known):
                    continue
                made = play(name, turn, call, [s for s in JOBS[name].sides if s not in missing], scratch)
                known += made
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(run) + "\n" for run in made)
    print(f"\n{table(known)}\n\n{goals(known)}" if known else "No results yet.")


if __name__ == "__main__":
    main()
