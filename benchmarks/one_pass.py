"""Seconds of one forward pass over the training rows of a folder: the unit of benchmarks/speed.py.

    python benchmarks/one_pass.py FOLDER MODEL [--threads 2]

The rows go through the model as hftl would send them where nothing is cached: longest first, 64 at a time, in eval
mode and without gradients, in the precision and memory format that hftl chooses; images are decoded on the way.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from hftl import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = "text-classification" if Path(given.folder, "train.csv").is_file() else "image-classification"
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Recipe(task=task, data=given.folder, model=given.model, cache_gb=0, output_dir=scratch, overwrite=True)
        run = recipe.prepare()
        few = torch.utils.data.Subset(run.rows["train"], range(min(64, len(run.rows["train"]))))
        run.trainer.evaluate(few)  # warms up
        started = time.perf_counter()
        run.trainer.evaluate(run.rows["train"])
        print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
