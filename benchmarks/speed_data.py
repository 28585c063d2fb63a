"""Small data folders for benchmarks/speed.py: parts of real data sets, and texts of very unlike length."""

from __future__ import annotations

import csv
import math
import random
import shutil
from pathlib import Path

import hftl

REVIEWS = Path(hftl.__file__).parent / "data" / "samples" / "reviews"
FILES = {"train": "train.csv", "validation": "validation.csv", "test": "test.csv"}


def prepared(name: str, source: Path, rows: int, folder: Path) -> Path:
    """A folder with at most `rows` training rows, an eighth as many for validation and twice as many for test.

    An eighth is SST-2's own proportion. Texts come as csv files by split, images as folders by split and class.
    """
    target = folder / f"{name}-{rows}"
    limits = {"train": rows, "validation": max(rows // 8, 16), "test": max(2 * rows, 100)}
    if target.exists():
        return target
    target.mkdir(parents=True)
    rng = random.Random(0)
    if name in ("sst2", "longtail"):
        for split, limit in limits.items():
            lines = long_tail(split, limit) if name == "longtail" else read(source / "sst2" / FILES[split])
            with (target / FILES[split]).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ("text", "label"))
                writer.writeheader()
                writer.writerows(rng.sample(lines, min(limit, len(lines))))
        return target
    lines = read(source / name / "metadata.csv")
    rng.shuffle(lines)
    train = [line for line in lines if line["split"] == "train"]
    held = len(train) // 8
    parts = {"validation": train[:held], "train": train[held:], "test": [x for x in lines if x["split"] == "test"]}
    for split, chosen in parts.items():
        for i, line in enumerate(chosen[: limits[split]]):
            place = target / split / line["label"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name / line["file_name"], place / f"{i:05d}{Path(line['file_name']).suffix}")
    return target


def long_tail(split: str, rows: int) -> list[dict[str, str]]:
    """Stretches of the bundled product reviews of one class; the length is log-normal: median 20 words, sigma 1.

    Between 3 and 400 words, cut from that split's reviews joined, so that no word order of test is in train.
    """
    rng = random.Random(split)
    reviews = read(REVIEWS / FILES[split])
    names = sorted({review["label"] for review in reviews})
    words = {name: " ".join(r["text"] for r in reviews if r["label"] == name).split() for name in names}
    made = []
    for _ in range(rows):
        name = rng.choice(names)
        length = min(max(int(rng.lognormvariate(math.log(20), 1)), 3), 400)
        start = rng.randrange(len(words[name]) - length)
        made.append({"text": " ".join(words[name][start : start + length]), "label": str(names.index(name))})
    return made


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def rows_of(folder: Path) -> dict[str, int]:
    """Rows by split of a folder that `prepared` made."""
    if (folder / "train.csv").is_file():
        return {split: len(read(folder / file)) for split, file in FILES.items()}
    return {split: len([*(folder / split).glob("*/*")]) for split in FILES}
