"""Adapting to a domain without labels, on real pairs: scores on the target over seeds; tables of docs/adaptation.md.

    python benchmarks/adaptation.py digits --data DIR [--seeds 3] [--jobs 2] --out runs/adaptation.jsonl
    python benchmarks/adaptation.py pacs --data DIR --weights DIR --out runs/adaptation.jsonl
    python benchmarks/adaptation.py amazon --data DIR --out runs/adaptation.jsonl
    python benchmarks/adaptation.py --table --out runs/adaptation.jsonl

DIR (or the environment's HFTL_DATA, HFTL_WEIGHTS) holds the folders usps, mnist10k, pacs_small and amazon_books, _dvd,
_electronics, _kitchen. Each run is a process of its own with one thread; what stands in the results file is not run
again. No label of the target is read but to be measured: valid, of the source, chooses the checkpoint. TAPT starts from
masked tokens of the target's training texts, once for each target and seed, kept in a folder beside the results.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from filelock import FileLock
from kept import MINILM, known, need_data, recipe, run, several

from hftl.tasks.metrics.criteria import CRITERIA

Arm = tuple[str, list[str]]  # how it is called in the table, and its flags

DIGITS: list[Arm] = [(name, ["--strategy", name]) for name in ("Scratch", "Scratch | DANN", "Scratch | CDAN")]
SKETCH = "Sketch(p=0.5)"
PACS: list[Arm] = [
    ("Full", []),
    ("augmented", ["--augment", SKETCH]),
    ("CDAN", ["--strategy", "CDAN"]),
    ("augmented, CDAN", ["--strategy", "CDAN", "--augment", SKETCH]),
]
TEXTS: list[Arm] = [(name, ["--strategy", name]) for name in ("Full", "DANN", "MCC", "UDALM", "DANN(weight=0.1)")]
TAPT: list[Arm] = [("TAPT", ["--model", "{tapt}"]), ("TAPT, UDALM", ["--model", "{tapt}", "--strategy", "UDALM"])]
MASKED = ["--max_length", "64", "--num_train_epochs", "10", "--per_device_train_batch_size", "32"]
MASKED += ["--learning_rate", "3e-4"]
AMAZON = ("books", "dvd", "electronics", "kitchen")


def digits(data: Path, weights: Path | None) -> list[tuple[str, list[str], list[Arm]]]:
    """Both directions, a small network from random weights; 1,800 images of USPS, 2,000 of MNIST with labels."""
    flags = ["--model", "hftl:glyphs", "--num_train_epochs", "10", "--per_device_train_batch_size", "64"]
    flags += ["--learning_rate", "2e-3", "--early_stopping_patience", "0"]
    pairs = (("usps", "mnist10k", "1800"), ("mnist10k", "usps", "2000"))
    return [
        (
            f"{s} -> {t}",
            ["image_cls.py", *flags, "--max_train_samples", n, *two(data / s, data / t, data / t / "test.parquet")],
            DIGITS,
        )
        for s, t, n in pairs
    ]


def pacs(data: Path, weights: Path | None) -> list[tuple[str, list[str], list[Arm]]]:
    """Photo to sketch and photo to cartoon, MobileNetV2 from ImageNet; 60 photos a class."""
    flags = ["--num_train_epochs", "5", "--per_device_train_batch_size", "32", "--learning_rate", "3e-4"]
    flags += ["--model", str((weights or Path()) / "mobilenetv2_100_timm"), "--data", str(data / "pacs_small")]
    flags += ["--domain", "domain", "--source", "photo"]
    return [(f"photo -> {t}", ["image_cls.py", *flags, "--target", t], PACS) for t in ("sketch", "cartoon")]


def amazon(data: Path, weights: Path | None) -> list[tuple[str, list[str], list[Arm]]]:
    """The 12 pairs of four kinds of goods, MiniLM, reviews cut at 64 tokens, 800 labelled ones of the source.

    Of the first four each kind is source once, and target once.
    """
    flags = ["--model", MINILM, "--max_length", "64", "--max_train_samples", "800", "--num_train_epochs", "3"]
    flags += ["--per_device_train_batch_size", "16", "--learning_rate", "1e-4"]
    where = {name: data / f"amazon_{name}" for name in AMAZON}
    return [
        (f"{s} -> {t}", ["text_cls.py", *flags, *two(where[s], where[t], where[t] / "test.jsonl")], TEXTS + TAPT)
        for s, t in ((AMAZON[i], AMAZON[(i + apart) % 4]) for apart in (1, 2, 3) for i in range(4))
    ]


JOBS = {"digits": digits, "pacs": pacs, "amazon": amazon}


def two(source: Path, target: Path, test: Path) -> list[str]:
    """Flags that name both domains."""
    return ["--data", str(source), "--unlabelled", str(target), "--target_test", str(test)]


def masked(target: Path, seed: int, kept: Path) -> str:
    """The folder of MiniLM after masked tokens of a target's texts, made where it is not there."""
    folder = kept / f"tapt-{target.name}-{seed}"
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(dir=kept) as scratch:
        if not folder.exists():
            flags = ["--model", MINILM, "--data", str(target), *MASKED, "--seed", str(seed)]
            recipe("mlm.py", *flags, out=f"{scratch}/run")
            os.rename(f"{scratch}/run", folder)
    return str(folder)


def one(pair: str, arm: Arm, flags: list[str], seed: int, kept: Path) -> dict:
    """Run once in a fresh process and read what came out; `kept` is the folder of what several runs start from."""
    own = arm[1]
    if "{tapt}" in own:
        tapt = masked(Path(flags[flags.index("--unlabelled") + 1]), seed, kept)
        own = [tapt if word == "{tapt}" else word for word in own]
    with tempfile.TemporaryDirectory() as scratch:
        report = recipe(*flags, *own, "--seed", str(seed), out=f"{scratch}/run")
    score, about = report["target"]["accuracy"], report["adaptation"]
    oracle = about["oracle"]["oracle"] if about["oracle"] else None
    return {
        "pair": pair,
        "arm": arm[0],
        "seed": seed,
        **{name: score[name] for name in ("value", "low", "high", "n")},
        "source": report["test"]["accuracy"]["value"],
        "oracle": oracle,
        "distance": about["distance"],
        "checkpoints": about["checkpoints"],
        "seconds": report["seconds"],
    }


def table(results: list[dict]) -> str:
    """Markdown: accuracy on the target, mean and spread over seeds, beside source, oracle and distance."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for result in results:
        groups[result["pair"], result["arm"]].append(result)
    first = dict(reversed(list(groups)))
    lines = [
        "| pair | strategy | target, mean (min to max) | above the first | n | seeds | source test | oracle choice "
        "| A-distance before, after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (pair, arm), runs in groups.items():
        found, base = spread(runs), spread(groups[pair, first[pair]])[0]
        far = ", ".join(f"{statistics.mean(run['distance'][when] for run in runs):.2f}" for when in ("before", "after"))
        named = arm.replace("|", "\\|")
        gain = "" if arm == first[pair] else f"{100 * (found[0] - base):+.1f}"
        lines.append(
            f"| {pair} | {named} | {found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f}) | {gain} | {runs[0]['n']} | "
            f"{len(runs)} | {statistics.mean(run['source'] for run in runs):.3f} | "
            f"{statistics.mean(run['oracle'] for run in runs):.3f} | {far} |"
        )
    return "\n".join([*lines, "", *averages(groups), *chosen(results)])


def chosen(results: list[dict]) -> list[str]:
    """What each criterion would have chosen in the same runs: the mean accuracy on the target; the last epoch, too."""
    better = {"source": True, "oracle": True} | CRITERIA
    lines = ["", "| chosen by | target, mean over all runs |", "|---|---|"]
    for name, greater in better.items():
        rows = [max(run["checkpoints"], key=lambda c: c[name] if greater else -c[name]) for run in results]
        lines.append(f"| {name} | {statistics.mean(row['oracle'] for row in rows):.3f} |")
    last = statistics.mean(run["checkpoints"][-1]["oracle"] for run in results)
    return [*lines, f"| the last epoch | {last:.3f} |"]


def averages(groups: dict[tuple[str, str], list[dict]]) -> list[str]:
    """Over all pairs: the mean of each strategy, and on how many pairs it is above the first."""
    arms = list(dict.fromkeys(arm for _, arm in groups))
    pairs = list(dict.fromkeys(pair for pair, _ in groups))
    mean = {key: spread(runs)[0] for key, runs in groups.items()}
    lines = []
    for arm in arms:
        both = [pair for pair in pairs if (pair, arm) in mean and (pair, arms[0]) in mean]
        if len(both) > 2:
            above = sum(mean[pair, arm] > mean[pair, arms[0]] for pair in both)
            whole = statistics.mean(mean[pair, arm] for pair in both)
            lines.append(f"{arm}: {whole:.3f} over {len(both)} pairs, above {arms[0]} on {above}.")
    return lines


def spread(runs: list[dict]) -> tuple[float, float, float]:
    """Mean, least and greatest accuracy on the target."""
    found = [run["value"] for run in runs]
    return statistics.mean(found), min(found), max(found)


def main() -> None:
    parser = several(__doc__, "runs/adaptation.jsonl", list(JOBS))
    parser.add_argument("--weights", default=os.environ.get("HFTL_WEIGHTS"))
    parser.add_argument("--pairs", type=int, default=12, help="of each set, this many pairs")
    given = parser.parse_args()
    wanted = []
    if not given.table:
        need_data(parser, given)
        done = {(run["pair"], run["arm"], run["seed"]) for run in known(given.out)}
        where = Path(given.data), Path(given.weights) if given.weights else None
        jobs = [job for name in given.names for job in JOBS[name](*where)[: given.pairs]]
        kept = Path(given.out).with_suffix("")
        every = [(p, arm, f, seed, kept) for seed in range(1, given.seeds + 1) for p, f, arms in jobs for arm in arms]
        wanted = [job for job in every if (job[0], job[1][0], job[3]) not in done]
    print(table(run(wanted, one, given, hidden=["checkpoints"])))


if __name__ == "__main__":
    main()
