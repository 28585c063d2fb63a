"""Fuzzing for a night: random notations, flags, settings, data files, images and reports, 10,000 examples of each.

    python benchmarks/fuzz.py --examples 10000
    python benchmarks/fuzz.py --examples 500 --only csv parquet

Prints a Markdown row for each: how many examples ran, in how many seconds, and the first failure as hypothesis shrank
it. An example passes if it gives a result, or a `UserError`; exit code 1 where one did not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=[], help="names of the first column")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        from fuzz import TARGETS, fuzz

        print("| what | examples | seconds | failures |\n|---|---|---|---|", flush=True)
        for name in asked.only or TARGETS:
            start, ran, failure = time.monotonic(), asked.examples, "none"
            try:
                ran = fuzz(TARGETS[name], asked.examples)
            except Exception as error:
                traceback.print_exc()
                failed, failure = 1, f"{type(error).__name__}: {error}"[:200].replace("|", "/").replace("\n", " ")
            print(f"| {name} | {ran:,} | {time.monotonic() - start:.0f} | {failure} |", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
