"""Domain-adversarial training of two small networks through `hftl.Trainer`: two moons, and reviews as tf-idf.

    python benchmarks/adaptation_small.py moons [--seeds 10] [--picture moons.png]
    python benchmarks/adaptation_small.py amazon --data DIR [--seeds 2] [--peers] [--encoder MODEL]

moons: the target is turned by 35 degrees; a network of 2 x 64 units. amazon: 12 pairs of four kinds of goods, 2,000
reviews each; a network 5000-50-2 on tf-idf; half of the target's reviews train without labels, half test. With
--encoder the features are a frozen model's, the mean over its tokens (64 of a review), standardised. --peers adds
logistic regression, and skada's linear CORAL on 200 singular vectors (skada is in the extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.datasets import make_moons
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from hftl import Strategy, Trainer
from hftl.run.steps import strategy_of
from hftl.tasks.origin import resolve
from hftl.train.streams import Stream

AMAZON = ("books", "dvd", "electronics", "kitchen")


class Points(Dataset):
    """Rows of a matrix, with labels or without."""

    def __init__(self, x: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.x = torch.as_tensor(x, dtype=torch.float32)
        self.labels = None if labels is None else torch.as_tensor(labels)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"x": self.x[row]} | ({} if self.labels is None else {"labels": self.labels[row]})

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [self[row] for row in rows]


class Net(nn.Module):
    """Hidden layers with ReLU, and two logits."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
        logits = self.head(self.body(x))
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}

    def predict(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self(torch.as_tensor(x, dtype=torch.float32))["logits"].argmax(1).numpy()


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def trained(
    net: Net, strategy: Strategy, source: Points, target: Points, seed: int, steps: int, learning_rate: float
) -> Net:
    """The network after so many steps of 64 labelled and 64 unlabelled rows, with Adam at a constant rate."""
    with tempfile.TemporaryDirectory() as scratch:
        args = transformers.TrainingArguments(
            scratch,
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            seed=seed,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        streams = {"unlabelled": Stream(target, collate)}
        made = Trainer(
            net, args, strategy=strategy, train_dataset=source, data_collator=collate, streams=streams, callbacks=[]
        )
        made.remove_callback(transformers.PrinterCallback)
        made.train()
    return net.eval()


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    a = math.radians(degrees)
    return points @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])


def moons(seeds: int, picture: str | None) -> None:
    """Accuracy on 1,000 points of the turned moons; as many of each domain to train with."""
    for name in ("Full", "DANN(hidden=64, boost=1.0)", "CDAN(hidden=64, boost=1.0)", "DAN", "MCC"):
        found = []
        for seed in range(seeds):
            source, labels = make_moons(1000, noise=0.1, random_state=seed)
            middle = source.mean(axis=0)
            target = turned(make_moons(1000, noise=0.1, random_state=seed + 1000)[0] - middle, 35)
            points, truth = make_moons(1000, noise=0.1, random_state=seed + 2000)
            points = turned(points - middle, 35)
            transformers.set_seed(seed)
            given = Points(source - middle, labels), Points(target)
            net = trained(Net(2, 64, 64), strategy_of(name), *given, seed, 1000, 3e-3)
            found.append(float((net.predict(points) == truth).mean()))
            if picture and seed == 0 and name.startswith(("Full", "DANN")):
                draw(net, source - middle, labels, points, truth, f"{name.split('(')[0]}-{picture}", found[0])
        say(name, found, n=1000)


def draw(net: Net, source: Any, labels: Any, target: Any, truth: Any, path: str, accuracy: float) -> None:
    """The boundary over both domains, as a png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x, y = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-2, 2, 200))
    side = net.predict(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
    figure, axis = pyplot.subplots(figsize=(5, 4), dpi=110)
    axis.contourf(x, y, side, levels=1, alpha=0.25, cmap="coolwarm")
    axis.scatter(*source.T, c=labels, cmap="coolwarm", s=10, label="source")
    axis.scatter(*target[:300].T, c=truth[:300], cmap="coolwarm", s=14, marker="x", label="target")
    axis.set_title(f"{Path(path).name.split('-')[0]}: {accuracy:.3f} on the target")
    axis.legend()
    figure.savefig(path)
    pyplot.close(figure)


def reviews(data: Path, kind: str) -> tuple[list[str], np.ndarray]:
    """All texts of one kind of goods, and their labels."""
    files = sorted((data / f"amazon_{kind}").glob("t*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    names = sorted({row["label"] for row in rows})
    return [row["text"] for row in rows], np.array([names.index(row["label"]) for row in rows])


def encoded(texts: list[str], encoder: str) -> np.ndarray:
    """The mean over tokens of a frozen model's last hidden states, (rows, width)."""
    path, found = resolve(encoder), []
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(path), transformers.AutoModel.from_pretrained(path)
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], max_length=64, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(**batch).last_hidden_state
        here = batch["attention_mask"][..., None]
        found.append((states * here).sum(1) / here.sum(1))
    return torch.cat(found).numpy()


def bags(source: list[str], target: list[str], free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as tf-idf of 5,000 words and pairs of words, of the source and of the target's free rows."""
    words = TfidfVectorizer(max_features=5000, ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    words.fit([*source, *(target[i] for i in free)])
    return words.transform(source).toarray(), words.transform(target).toarray()


def amazon(data: Path, seeds: int, peers: bool, encoder: str | None) -> None:
    """Accuracy on the held-out half of each target, by pair and over all."""
    texts = {kind: reviews(data, kind) for kind in AMAZON}
    known = {kind: encoded(texts[kind][0], encoder) for kind in AMAZON} if encoder else {}
    strategies = ["Full", "DANN(boost=1.0)", "DANN(weight=3.0, boost=1.0)", "DeepCORAL", "DAN"]
    found: dict[str, dict[str, list[float]]] = {}
    for source, target in permutations(AMAZON, 2):
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(texts[target][0]))
            free, held = order[: len(order) // 2], order[len(order) // 2 :]
            if encoder:
                scale = StandardScaler().fit(known[source])
                xs, xt = scale.transform(known[source]), scale.transform(known[target])
            else:
                xs, xt = bags(texts[source][0], texts[target][0], free)
            ys, truth = texts[source][1], texts[target][1][held]
            guesses = others(xs, ys, xt[free], xt[held], seed) if peers else {}
            for name in strategies:
                transformers.set_seed(seed)
                net = Net(xs.shape[1], 50)
                trained(net, strategy_of(name), Points(xs, ys), Points(xt[free]), seed, 600, 1e-3)
                guesses[name] = net.predict(xt[held])
            for name, guess in guesses.items():
                pair = found.setdefault(name, {}).setdefault(f"{source} -> {target}", [])
                pair.append(float((guess == truth).mean()))
        print(
            f"{source} -> {target}: "
            + ", ".join(f"{n} {statistics.mean(p[f'{source} -> {target}']):.3f}" for n, p in found.items()),
            flush=True,
        )
    base = {pair: statistics.mean(values) for pair, values in found["Full"].items()}
    for name, pairs in found.items():
        means = {pair: statistics.mean(values) for pair, values in pairs.items()}
        above = sum(means[pair] > base[pair] for pair in means)
        by_seed = [statistics.mean(values[seed] for values in pairs.values()) for seed in range(seeds)]
        say(name, by_seed, pairs=len(means), above_full=above)


def others(xs: np.ndarray, ys: np.ndarray, free: np.ndarray, held: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What scikit-learn and skada predict of the same features."""
    from skada import CORALAdapter, make_da_pipeline

    small = TruncatedSVD(200, random_state=seed).fit(np.concatenate([xs, free]))
    both, domain = (
        np.concatenate([small.transform(xs), small.transform(free)]),
        np.r_[np.ones(len(xs)), -np.ones(len(free))],
    )
    aligned = make_da_pipeline(CORALAdapter(), LogisticRegression(max_iter=1000))
    aligned.fit(both, np.r_[ys, -np.ones(len(free), int)], sample_domain=domain.astype(int))
    plain = LogisticRegression(max_iter=1000).fit(small.transform(xs), ys)
    return {
        "logistic regression": LogisticRegression(max_iter=1000).fit(xs, ys).predict(held),
        "logistic regression, 200 singular vectors": plain.predict(small.transform(held)),
        "skada CORAL, 200 singular vectors": aligned.predict(small.transform(held)),
    }


def say(name: str, values: list[float], **about: int) -> None:
    """One line: mean, spread over seeds."""
    told = ", ".join(f"{key} {value}" for key, value in about.items())
    spread = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    print(f"{name}: {spread}, {len(values)} seeds, {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("moons", "amazon"))
    parser.add_argument("--data", default=os.environ.get("HFTL_DATA"))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--picture", help="write FULL- and DANN- pictures of this name")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--encoder", help="of amazon: a Hub id or folder whose features take the place of tf-idf")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.name == "moons":
        moons(given.seeds or 10, given.picture)
    elif not given.data:
        parser.error("pass --data, or set HFTL_DATA, to the folder that holds the data sets")
    else:
        amazon(Path(given.data), given.seeds or 2, given.peers, given.encoder)


if __name__ == "__main__":
    main()
