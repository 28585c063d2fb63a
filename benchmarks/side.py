"""What the scripts beside hftl share: how they are called, and the line that they print. Knows no training."""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any


def called(about: str | None) -> argparse.ArgumentParser:
    """A command line that takes the data, the model, a seed and a number of threads."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def csv_files(folder: str | Path) -> dict[str, str]:
    """The csv file of each split, as `load_dataset` takes them."""
    return {split: f"{folder}/{split}.csv" for split in ("train", "validation", "test")}


def tell(**found: Any) -> None:
    """Print what was found as one line of JSON, with the peak memory of this process in bytes."""
    print(json.dumps(found | {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
