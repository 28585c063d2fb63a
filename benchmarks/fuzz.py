"""Fuzzing for a night: random notations, flags, settings, data files, images and reports, 10,000 examples of each.

    python benchmarks/fuzz.py --examples 10000
    python benchmarks/fuzz.py --examples 500 --only csv parquet

Prints a Markdown row for each: how many examples ran, in how many seconds, and the first failure as hypothesis shrank
it. An example passes if it gives a result, or a `UserError`; exit code 1 where one did not. Each row is a process of
its own: native code that an example makes crash takes no more along, and the example stands in the row.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fuzz import TARGETS, fuzz


def worker(name: str, examples: int, last: Path) -> int:
    """One row in this process; `last` holds the example that runs."""
    warnings.simplefilter("ignore")
    start, ran, failure = time.monotonic(), examples, "none"
    try:
        ran = fuzz(TARGETS[name], examples, last)
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    row(name, f"{ran:,}", time.monotonic() - start, failure)
    return int(failure != "none")


def row(name: str, ran: str, seconds: float, failure: str) -> None:
    """Print what came of one target."""
    told = failure[:200].replace("|", "/").replace("\n", " ")
    print(f"| {name} | {ran} | {seconds:.0f} | {told} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=[], choices=list(TARGETS), help="names of the first column")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return worker(asked.only[0], asked.examples, Path(asked.worker))
    print("| what | examples | seconds | failures |\n|---|---|---|---|", flush=True)
    failed = 0
    for name in asked.only or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            last, start = Path(folder, "last"), time.monotonic()
            words = [sys.executable, __file__, "--examples", str(asked.examples), "--only", name, "--worker", str(last)]
            done = subprocess.run(words, env=os.environ | {"HF_DATASETS_CACHE": folder}, check=False)
            if done.returncode < 0:
                what = f"{signal.Signals(-done.returncode).name}: {last.read_text('utf-8')}"
                row(name, "", time.monotonic() - start, what)
        failed |= int(done.returncode != 0)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
