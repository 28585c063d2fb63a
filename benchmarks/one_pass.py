"""Seconds of one forward pass over the training rows of a folder: the unit of benchmarks/speed.py.

    python benchmarks/one_pass.py FOLDER MODEL [--threads 2]

A bare loop: no gradients, longest rows first, 64 at a time, a thread reads (and decodes) the next batch while this one
is computed; in the precision and memory layout that hftl chooses. Prints one line of JSON, the median of three passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftl import Recipe

BATCH = 64


def forward(run: Any, batches: list[list[int]]) -> float:
    """Seconds that the model takes for these rows."""
    rows, model, device = run.part.rows["train"], run.trainer.model, run.trainer.args.device
    collate = run.part.task.collate(run.part.pretrained.processor)
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.trainer.args.bf16)
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as pool, torch.inference_mode(), precision:
        coming = pool.submit(lambda: collate(rows.plain(batches[0])))
        for following in [*batches[1:], None]:
            inputs = {name: value.to(device) for name, value in coming.result().items()}
            if following is not None:
                coming = pool.submit(lambda numbers=following: collate(rows.plain(numbers)))
            logits = model(**inputs).logits
    logits.sum().item()  # waits for a GPU
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = "text-classification" if Path(given.folder, "train.csv").is_file() else "image-classification"
    with tempfile.TemporaryDirectory() as scratch:
        run = Recipe(task=task, data=given.folder, model=given.model, cache_gb=0, output_dir=scratch + "/out").prepare()
    rows, model = run.part.rows["train"], run.trainer.model.eval()
    model.to(run.trainer.args.device)
    order = np.arange(len(rows)) if rows.lengths is None else np.argsort(-rows.lengths, kind="stable")
    batches = [order[start : start + BATCH].tolist() for start in range(0, len(order), BATCH)]
    forward(run, batches[:2])  # warms up
    print(json.dumps({"seconds": statistics.median(forward(run, batches) for _ in range(3))}))


if __name__ == "__main__":
    main()
