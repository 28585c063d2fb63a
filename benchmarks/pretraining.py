"""What pre-training further on unlabelled text is worth: test scores of a classifier after it, and without it.

    python benchmarks/pretraining.py acl_arc scicite chemprot --data DIR [--rows 500] --out runs/pretraining.jsonl
    python benchmarks/pretraining.py --table --out runs/pretraining.jsonl

DIR (or the environment's HFTL_DATA) holds a folder for each data set: acl_arc, scicite and chemprot with train,
validation and test, biomed_raw with texts alone. Each arm gives the same labelled rows, seed and settings to the same
classifier; only the encoder differs: MiniLM-L6 as it is (none), after masked tokens on the task's own training texts
(TAPT), on texts of its domain (DAPT), or on the one after the other (DAPT+TAPT). Settings were set before the first run
and never searched. Each run is a process of its own with one thread; what stands in the results file already is not run
again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict

from kept import MINILM, known, need_data, recipe, run, several

MASKED = ["--learning_rate", "3e-4", "--per_device_train_batch_size", "32", "--max_length", "128", "--eval_on_start"]
LABELLED = ["--learning_rate", "1e-4", "--per_device_train_batch_size", "32", "--max_length", "128"]
DOMAIN = {"chemprot": "biomed_raw"}
ARMS = {"acl_arc": ["none", "TAPT"], "scicite": ["none", "TAPT"], "chemprot": ["none", "TAPT", "DAPT", "DAPT+TAPT"]}
"""Data set -> ways to the encoder, in order of what they cost."""


def one(name: str, arm: str, seed: int, given: argparse.Namespace) -> dict:
    """Pre-train as the arm says, classify, and note what came out."""
    started, model, steps = time.monotonic(), MINILM, []
    with tempfile.TemporaryDirectory() as scratch:
        for stage in [] if arm == "none" else arm.split("+"):
            source = name if stage == "TAPT" else DOMAIN[name]
            flags = [*MASKED, "--num_train_epochs", str(given.epochs), "--seed", str(seed)]
            flags += ["--max_train_samples", str(given.texts)] if given.texts else []
            out = f"{scratch}/{stage}"
            made = recipe("mlm.py", "--model", model, "--data", f"{given.data}/{source}", *flags, out=out)
            seen = [row["eval_pseudo_perplexity"] for row in made["history"] if "eval_pseudo_perplexity" in row]
            end = made["test"]["pseudo_perplexity"]
            steps.append({"stage": stage, "before": seen[0], "valid": min(seen), "test": end["value"], "n": end["n"]})
            model = out
        flags = [*LABELLED, "--num_train_epochs", str(given.label_epochs), "--seed", str(seed)]
        flags += ["--max_train_samples", str(given.rows)] if given.rows else []
        report = recipe("text_cls.py", "--model", model, "--data", f"{given.data}/{name}", *flags, out=f"{scratch}/o")
    score = report["test"]["accuracy"]
    key = {"data": name, "arm": arm, "seed": seed, "rows": report["data"]["rows"]["train"], "pretraining": steps}
    key |= {name: score[name] for name in ("low", "high", "n")} | {"accuracy": score["value"]}
    return key | {"f1_macro": report["test"]["f1_macro"]["value"], "seconds": time.monotonic() - started}


def table(results: list[dict]) -> str:
    """Markdown: mean and spread over seeds, and the difference to no pre-training, seed by seed."""
    groups: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for result in results:
        groups[result["data"], result["arm"]][result["seed"]] = result
    lines = [
        "| data | pre-training | accuracy, mean (min to max) | macro F1 | accuracy less none, by seed | "
        "pseudo-perplexity before, after | rows | n of test | seeds | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, arm), runs in groups.items():
        plain = groups.get((data, "none"), {})
        accuracies = [run["accuracy"] for run in runs.values()]
        gains = [f"{runs[s]['accuracy'] - plain[s]['accuracy']:+.3f}" for s in sorted(runs) if s in plain]
        first = runs[min(runs)]
        told = "; ".join(f"{step['before']:,.0f}, {step['test']:,.1f}" for step in first["pretraining"])
        lines.append(
            f"| {data} | {arm} | {statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f}) | "
            f"{statistics.mean(run['f1_macro'] for run in runs.values()):.3f} | "
            f"{'' if arm == 'none' else ', '.join(gains)} | {told} | {first['rows']:,} | {first['n']:,} | "
            f"{len(runs)} | {statistics.median(run['seconds'] for run in runs.values()):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = several(__doc__, "runs/pretraining.jsonl", list(ARMS))
    parser.add_argument("--rows", type=int, help="labelled rows of train for the classifier; else all")
    parser.add_argument("--texts", type=int, help="texts of train for each pre-training; else all")
    parser.add_argument("--epochs", type=int, default=10, help="of pre-training")
    parser.add_argument("--label_epochs", type=int, default=5, help="of the classifier")
    given = parser.parse_args()
    wanted = []
    if not given.table:
        need_data(parser, given)
        done = {(run["data"], run["arm"], run["seed"]) for run in known(given.out)}
        jobs = [(n, arm, seed) for seed in range(1, given.seeds + 1) for n in given.names for arm in ARMS[n]]
        wanted = [(*job, given) for job in jobs if job not in done]
    print(table(run(wanted, one, given)))


if __name__ == "__main__":
    main()
