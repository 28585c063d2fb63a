"""What comes out of the box: hftl without a flag against a probe, tf-idf and a plain Trainer script, few rows each.

    python benchmarks/defaults.py trec stsb --data DIR [--rows 100 300 1000] [--seeds 3] [--jobs 2] --out runs/d.jsonl
    python benchmarks/defaults.py --table --out runs/d.jsonl

DIR (or the environment's HFTL_DATA) holds a folder with csv or jsonl files by split for each data set. All arms of a
cell have the rows of train that hftl draws with its seed, MiniLM, and one thread. "probe" is a logistic regression (of
numbers a ridge) on the mean of all tokens, its strength chosen by cross-validation; of pairs it reads |u - v| and
u * v. A run that stands in the results is not run again; `valid` selects, `test` is read once. Seconds are of the whole
process.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from kept import MINILM, ROOT, fresh, known, need_data, run, several

ARMS: dict[str, list[str]] = {
    "hftl": [],
    "hftl LoRA": ["--strategy", "LoRA"],
    "hftl LastLayers": ["--strategy", "LastLayers"],
    "hftl LinearProbe": ["--strategy", "LinearProbe"],
    "hftl --head random": ["--head", "random"],
    "probe": [],
    "tf-idf": [],
    "plain Trainer": [],
}
SETS = ("trec", "sst2", "subj", "scicite", "chemprot", "acl_arc", "banking77", "ag_news", "sst5", "mrpc", "stsb")


def one(name: str, rows: int, arm: str, seed: int, data: Path) -> dict:
    """Run a cell in a fresh process and read what came out."""
    key = {"data": name, "rows": rows, "arm": arm, "seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        which = ["--data", str(data / name), "--max_train_samples", str(rows), "--seed", str(seed)]
        if arm.startswith("hftl"):
            words = [sys.executable, str(ROOT / "recipes" / "text_cls.py"), *which, *ARMS[arm]]
            fresh([*words, "--output_dir", f"{scratch}/run", "--disable_tqdm"])
            report = json.loads(Path(f"{scratch}/run/report.json").read_text("utf-8"))
            found = {"score": report["test"][report["headline"]]["value"]}
            found |= {"log_loss": report["test"].get("log_loss", {}).get("value"), "metric": report["headline"]}
        elif arm == "plain Trainer":
            found = plain(which, scratch)
        else:
            found = json.loads(fresh([sys.executable, __file__, "--solve", arm, *which]).strip().splitlines()[-1])
        return key | found | {"seconds": time.monotonic() - started}


def plain(which: list[str], scratch: str) -> dict:
    """The script of a user of transformers, with its usual settings, on the same rows."""
    fresh([sys.executable, __file__, "--split", scratch, *which])
    usual = ["--learning_rate", "5e-5", "--num_train_epochs", "3", "--seed", which[-1], "--output_dir", f"{scratch}/o"]
    said = fresh([sys.executable, str(ROOT / "benchmarks" / "plain_trainer.py"), scratch, MINILM, *usual])
    return {"score": json.loads(said.strip().splitlines()[-1])["test"], "metric": "accuracy"}


def split(which: list[str]) -> Any:
    """The splits as a run of hftl with these flags has them."""
    from hftl.run.part import read_data
    from hftl.run.recipe import Recipe
    from hftl.run.settings import task_class

    named = {flag.removeprefix("--"): value for flag, value in zip(which[::2], which[1::2], strict=True)}
    made = Recipe(data=named["data"], max_train_samples=int(named["max_train_samples"]), seed=int(named["seed"]))
    return read_data(made, made.part(task_class(made.task)))


def write(folder: str, which: list[str]) -> None:
    """The three splits as csv files, for a script that draws no rows itself."""
    splits = split(which)
    for name, rows in (("train", splits.train), ("validation", splits.valid), ("test", splits.test)):
        with (Path(folder) / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            table.writerows(zip(rows["text"], (splits.labels.names[i] for i in rows["label"]), strict=True))


def solve(arm: str, which: list[str]) -> dict:
    """A regularised linear model on features that nothing has tuned."""
    from hftl.models import classical
    from hftl.run import start
    from hftl.tasks.metrics.classification import SingleLabel
    from hftl.tasks.metrics.regression import Regression

    splits = split(which)
    labels = np.asarray(splits.train["label"])
    x, held = (tfidf if arm == "tf-idf" else means)(splits)
    tried = start._tried("x", x, labels, len(splits.labels.names), int(which[-1]), False)
    decision = classical.fit("logistic", tried.strength, x, labels, len(splits.labels.names))
    import torch

    metric: Any = Regression() if splits.labels.amount else SingleLabel(splits.labels.names)
    metric.update(decision(torch.from_numpy(held)).numpy(), np.asarray(splits.test["label"]))
    values = metric.values()
    return {"score": values[metric.headline], "log_loss": values.get("log_loss"), "metric": metric.headline}


def joined(rows: Any) -> list[str]:
    """One text a row; of a pair both."""
    if "text_pair" not in rows.column_names:
        return list(rows["text"])
    return [f"{a} {b}" for a, b in zip(rows["text"], rows["text_pair"], strict=True)]


def tfidf(splits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Words and pairs of words, weighted."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=20_000).fit(joined(splits.train))
    return tuple(made.transform(joined(rows)).toarray().astype(np.float32) for rows in (splits.train, splits.test))  # type: ignore[return-value]


def means(splits: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean of all tokens of MiniLM; of pairs |u - v| and u * v."""
    from sentence_transformers import SentenceTransformer

    from hftl.tasks.origin import resolve

    model = SentenceTransformer(str(resolve(MINILM)), device="cpu")

    def read(rows: Any) -> np.ndarray:
        first = model.encode(list(rows["text"]), show_progress_bar=False)
        if "text_pair" not in rows.column_names:
            return first
        second = model.encode(list(rows["text_pair"]), show_progress_bar=False)
        return np.concatenate([abs(first - second), first * second], axis=1)

    return read(splits.train), read(splits.test)


def table(results: list[dict]) -> str:
    """Markdown: the mean over seeds of the score on test, with the least and the most, a column for each arm."""
    cells: dict[tuple[str, int], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        cells[result["data"], result["rows"]][result["arm"]].append(result)
    arms = [arm for arm in ARMS if any(arm in found for found in cells.values())]
    lines = [f"| data | rows | seeds | {' | '.join(arms)} |", "|---" * (3 + len(arms)) + "|"]
    for (name, rows), found in sorted(cells.items()):
        shown = []
        for arm in arms:
            scores = [one["score"] for one in found.get(arm, [])]
            seconds = [one["seconds"] for one in found.get(arm, [])]
            text = f"{statistics.mean(scores):.3f} ({min(scores):.3f}, {max(scores):.3f}), " if scores else ""
            shown.append(text + (f"{statistics.median(seconds):.0f} s" if scores else ""))
        lines.append(f"| {name} | {rows} | {max(map(len, found.values()))} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the words; run what is not there yet, and print the table."""
    if sys.argv[1:2] == ["--solve"]:
        return print(json.dumps(solve(sys.argv[2], sys.argv[3:])))
    if sys.argv[1:2] == ["--split"]:
        return write(sys.argv[2], sys.argv[3:])
    parser = several(__doc__, "runs/defaults.jsonl", SETS)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    given = parser.parse_args()
    wanted = []
    if not given.table:
        need_data(parser, given)
        done = {(one["data"], one["rows"], one["arm"], one["seed"]) for one in known(given.out)}
        cells = [
            (n, r, a, s) for s in range(1, given.seeds + 1) for r in given.rows for n in given.names for a in given.arms
        ]
        wanted = [(*cell, Path(given.data)) for cell in cells if cell not in done and fits(cell[0], cell[2])]
    print(table(run(wanted, one, given)))


def fits(name: str, arm: str) -> bool:
    """The plain script reads one text and one class."""
    return arm != "plain Trainer" or name not in ("mrpc", "stsb")


if __name__ == "__main__":
    main()
