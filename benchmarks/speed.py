"""Speed beside what a user would pick instead, and beside the least that the work costs; the table of docs/speed.md.

    python benchmarks/speed.py --data DIR --weights DIR --out runs/speed.jsonl
    python benchmarks/speed.py --only probe-sst2 full-sst2 --rounds 3 --rows 640 ...
    python benchmarks/speed.py --table --out runs/speed.jsonl

DIR (or HFTL_DATA) holds sst2 as csv files by split, ants_bees and pacs_small as image folders with metadata.csv; the
weights folder (or HFTL_WEIGHTS) holds mobilenetv2_100_timm. Each run is a fresh process; in each round every side of a
job runs once, in turn. hftl's cache is empty at the start of each of its runs, but for `again`. Seconds are those of
training with the evaluation of each epoch, filling the cache included. A pass is one forward pass over the training
rows, longest first, without gradients, in the precision that hftl chooses, timed in the same round.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MOBILENET = "mobilenetv2_100_timm"


@dataclass(frozen=True)
class Job:
    """The same training by several sides.

    Attributes:
        data: sst2, longtail, ants_bees or pacs_small.
        strategy: hftl's; `plain` are the flags of the plain script that train the same weights.
        least: passes that this training cannot do without, for E epochs and k of n blocks: 1 for a frozen backbone,
            (n - k)/n + 3 E k/n for the last blocks, 3 E for all.
    """

    data: str
    strategy: str
    epochs: int
    batch: int
    rate: float
    plain: tuple[str, ...] = ()
    least: float = 1.0
    sides: tuple[str, ...] = ("hftl", "plain")


JOBS = {
    "probe-sst2": Job("sst2", "LinearProbe", 10, 128, 3e-2, ("--freeze", "0")),
    "probe32-sst2": Job("sst2", "LinearProbe", 10, 32, 1e-2, ("--freeze", "0")),
    "probe-ants": Job("ants_bees", "LinearProbe", 10, 32, 1e-2, ("--freeze", "0")),
    "probe-pacs": Job("pacs_small", "LinearProbe", 10, 32, 1e-2, ("--freeze", "0")),
    "last2-sst2": Job("sst2", "LastLayers(2)", 5, 32, 1e-4, ("--freeze", "2"), 4 / 6 + 3 * 5 * 2 / 6),
    "full-sst2": Job("sst2", "Full", 1, 32, 1e-4, (), 3.0, ("hftl", "hftl float32", "plain", "padded to 128")),
    "full-longtail": Job("longtail", "Full", 1, 32, 1e-4, (), 3.0),
    "lora-sst2": Job("sst2", "LoRA(r=16)", 1, 32, 1e-3, ("--lora",), 3.0),
    "full-ants": Job("ants_bees", "Full", 6, 16, 1e-3, (), 18.0),
    "lpft-sst2": Job("sst2", "ProbeThenTune(0.5)", 4, 32, 1e-4, (), 1 + 6, ("hftl", "hftl Full half")),
    "again-sst2": Job("sst2", "LinearProbe", 10, 128, 3e-2, (), 0.0, ("again",)),
}


def command(job: Job, side: str, data: Path, model: str, seed: int, out: str, threads: int) -> list[str]:
    """The command line of one side."""
    common = ["--learning_rate", str(job.rate), "--per_device_train_batch_size", str(job.batch), "--seed", str(seed)]
    common += ["--num_train_epochs", str(job.epochs // 2 if side == "hftl Full half" else job.epochs)]
    common += ["--output_dir", out]
    if side in ("plain", "padded to 128"):
        script = [sys.executable, str(ROOT / "benchmarks" / "plain_trainer.py"), str(data), model, *common]
        return [*script, *job.plain, "--threads", str(threads), *(["--pad_to", "128"] if side != "plain" else [])]
    recipe = "text_cls.py" if (data / "train.csv").is_file() else "image_cls.py"
    flags = ["--early_stopping_patience", "0", "--disable_tqdm"]
    flags += ["--bf16", "false"] if side == "hftl float32" else []
    strategy = "Full" if side == "hftl Full half" else job.strategy
    script = [sys.executable, str(ROOT / "recipes" / recipe), "--model", model, "--data", str(data)]
    return [*script, "--strategy", strategy, *common, *flags]


def one(job: Job, side: str, data: Path, model: str, seed: int, threads: int, scratch: Path) -> dict:
    """Run one side once and read what came out."""
    out, cache = scratch / "out", scratch / "cache"
    shutil.rmtree(out, ignore_errors=True)
    if side != "again":
        shutil.rmtree(cache, ignore_errors=True)
    env = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env |= {"HFTL_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false"}
    words = command(job, side, data, model, seed, str(out), threads)
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    wall = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")
    if side in ("plain", "padded to 128"):
        return json.loads(done.stdout.strip().splitlines()[-1]) | {"wall": wall}
    report = json.loads((out / "report.json").read_text("utf-8"))
    kept = {name: report.get(name) for name in ("seconds", "forward_passes", "peak_memory", "startup")}
    return kept | {split: report[split]["accuracy"]["value"] for split in ("valid", "test")} | {"wall": wall}


def one_pass(data: Path, model: str, threads: int) -> float:
    """Seconds of one forward pass over the training rows, in a fresh process."""
    words = [sys.executable, str(ROOT / "benchmarks" / "one_pass.py"), str(data), model, "--threads", str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-3000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def prepared(name: str, source: Path, rows: int, folder: Path) -> Path:
    """A copy of the data with at most `rows` training rows, a fifth of that for validation and as many for test."""
    target, limits = folder / name, {"train": rows, "validation": max(rows // 5, 20), "test": max(rows, 20)}
    if target.exists():
        return target
    target.mkdir(parents=True)
    rng = random.Random(0)
    if name in ("sst2", "longtail"):
        for split, limit in limits.items():
            lines = longtail(split, limit) if name == "longtail" else read(source / "sst2" / f"{split}.csv")
            with (target / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ("text", "label"))
                writer.writeheader()
                writer.writerows(rng.sample(lines, min(limit, len(lines))))
        return target
    lines = read(source / name / "metadata.csv")
    rng.shuffle(lines)
    train = [line for line in lines if line["split"] == "train"]
    held = len(train) // 6
    parts = {"validation": train[:held], "train": train[held:], "test": [x for x in lines if x["split"] == "test"]}
    for split, chosen in parts.items():
        for i, line in enumerate(chosen[: limits[split]]):
            place = target / split / line["label"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name / line["file_name"], place / f"{i:05d}{Path(line['file_name']).suffix}")
    return target


def longtail(split: str, rows: int) -> list[dict[str, str]]:
    """Texts whose length in words is log-normal (median 20, sigma 1, at most 400); one word in five tells the class."""
    rng = random.Random(split)
    sides = ["good", "great", "fine", "superb", "lovely"], ["bad", "awful", "poor", "dreadful", "dull"]
    common = ["the", "film", "and", "a", "plot", "of", "with", "that", "in", "this", "was", "for", "it", "as", "on"]
    made = []
    for _ in range(rows):
        label = rng.randrange(2)
        length = min(max(int(rng.lognormvariate(math.log(20), 1)), 3), 400)
        words = [rng.choice(sides[label] if rng.random() < 0.2 else common) for _ in range(length)]
        made.append({"text": " ".join(words), "label": str(label)})
    return made


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def table(results: list[dict]) -> str:
    """Markdown: medians over rounds, with the least and the most; times as ratios."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for result in results:
        groups[result["job"], result["side"]].append(result)
    heads = ["job", "side", "seconds, median (min to max)", "plain / this", "passes", "least", "accuracy, test"]
    heads += ["peak GB", "n", "rounds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (job, side), runs in groups.items():
        seconds = [run["seconds"] for run in runs]
        plain = {run["round"]: run["seconds"] for run in groups.get((job, "plain"), [])}
        ratios = [plain[run["round"]] / run["seconds"] for run in runs if run["round"] in plain]
        passes = statistics.median(run["seconds"] / run["pass"] for run in runs)
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        tests = statistics.mean(run["test"] for run in runs)
        memory = statistics.median(run["peak_memory"] for run in runs) / 1e9
        lines.append(
            f"| {job} | {side} | {statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | "
            f"{ratio} | {passes:.2f} | {JOBS[job].least:.2f} | {tests:.3f} | {memory:.2f} | "
            f"{runs[0]['rows']} | {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("HFTL_DATA"))
    parser.add_argument("--weights", default=os.environ.get("HFTL_WEIGHTS"))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=960, help="training rows at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", default="runs/speed.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    given = parser.parse_args()
    out = Path(given.out)
    known = [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.is_file() else []
    if not given.table:
        if not given.data or not given.weights:
            parser.error("pass --data and --weights, or set HFTL_DATA and HFTL_WEIGHTS")
        out.parent.mkdir(parents=True, exist_ok=True)
        done = {(run["job"], run["side"], run["round"]) for run in known}
        with tempfile.TemporaryDirectory() as scratch, out.open("a", encoding="utf-8") as file:
            for turn in range(1, given.rounds + 1):
                for name in given.only:
                    job = JOBS[name]
                    if all((name, side, turn) in done for side in job.sides):
                        continue
                    data = prepared(job.data, Path(given.data), given.rows, Path(scratch) / "data")
                    model = MINILM if (data / "train.csv").is_file() else str(Path(given.weights) / MOBILENET)
                    unit = one_pass(data, model, given.threads)
                    rows = (
                        len(read(data / "train.csv"))
                        if (data / "train.csv").is_file()
                        else len([*data.glob("train/*/*")])
                    )
                    for side in job.sides:
                        if side == "again":
                            one(job, "hftl", data, model, 0, given.threads, Path(scratch))
                        found = one(job, side, data, model, turn, given.threads, Path(scratch))
                        known.append({"job": name, "side": side, "round": turn, "rows": rows, "pass": unit} | found)
                        print(json.dumps(known[-1]), file=file, flush=True)
                        print(json.dumps(known[-1]), flush=True)
    print(table(known))


if __name__ == "__main__":
    main()
