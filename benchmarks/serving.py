"""What one call costs: hftl.load against transformers.pipeline on the folder of a finished run, in turns.

    python benchmarks/serving.py TEXT_FOLDER IMAGE_FOLDER IMAGES [--rounds 5]

Prints milliseconds of CPU, one thread, for one text, one image, 1,000 texts and 200 images: the median of the rounds
with the least and the most, and hftl's over the better of pipeline's: it takes rows one by one unless told otherwise.
The texts are the bundled hftl:reviews; IMAGES is a folder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import hftl
from hftl.data.formats.decode import ENDINGS
from hftl.data.source import open_source


def turns(sides: dict[str, Callable[[], Any]], calls: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU a call: each side once a round, after a call that does not count."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.process_time()
            for _ in range(calls):
                call()
            took[name].append(1e3 * (time.process_time() - start) / calls)
    return took


def by_rows(pipe: Any, given: list[str]) -> dict[str, Callable[[], Any]]:
    """A pipeline by one row at a time, which is its default, and by 32."""
    return {f"pipeline by {n}": lambda n=n: pipe(given, batch_size=n) for n in (1, 32)}


def main() -> None:
    """Read the words and print a line for each row of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text_folder", "image_folder", "images"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    torch.set_num_threads(1)
    texts = (open_source("hftl:reviews").splits["train"].data["text"][:] * 2)[:1000]
    images = sorted(str(path) for path in Path(words.images).rglob("*") if path.suffix.lower() in ENDINGS)
    images = (images * (200 // len(images) + 1))[:200]
    read, look = hftl.load(words.text_folder), hftl.load(words.image_folder)
    text_pipe = transformers.pipeline("text-classification", model=words.text_folder, top_k=None, truncation=True)
    image_pipe = transformers.pipeline("image-classification", model=words.image_folder)
    jobs: dict[str, tuple[int, dict[str, Callable[[], Any]]]] = {
        "one text": (20, {"hftl": lambda: read(texts[0]), "pipeline": lambda: text_pipe(texts[0])}),
        "one image": (20, {"hftl": lambda: look(images[0]), "pipeline": lambda: image_pipe(images[0])}),
        "1,000 texts": (1, {"hftl": lambda: read(texts)} | by_rows(text_pipe, texts)),
        "200 images": (1, {"hftl": lambda: look(images)} | by_rows(image_pipe, images)),
    }
    for job, (calls, sides) in jobs.items():
        took = turns(sides, calls, words.rounds)
        middle = {name: statistics.median(values) for name, values in took.items()}
        shown = "   ".join(f"{n} {middle[n]:.1f} ms [{min(v):.1f}, {max(v):.1f}]" for n, v in took.items())
        print(f"{job.ljust(12)} {shown}   ratio {middle.pop('hftl') / min(middle.values()):.2f}", flush=True)


if __name__ == "__main__":
    main()
