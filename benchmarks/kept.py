"""Runs in fresh processes, whose results stand in a file, a line each: what is there is not run again."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def fresh(words: Sequence[str], threads: int = 1) -> str:
    """What a command prints, run in a process of its own; it ends the script where the command fails."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | limits, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return done.stdout


def recipe(script: str, *flags: str, out: str, threads: int = 1) -> dict:
    """The report of a recipe, run into the folder `out`."""
    words = [sys.executable, str(ROOT / "recipes" / script), *flags, "--output_dir", out, "--disable_tqdm"]
    fresh(words, threads)
    return json.loads((Path(out) / "report.json").read_text("utf-8"))


def arguments(about: str | None, out: str) -> argparse.ArgumentParser:
    """The command line that such benchmarks share."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("HFTL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default=out)
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    return parser


def several(about: str | None, out: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """The same for a benchmark of several data sets, whose runs may go side by side."""
    parser = arguments(about, out)
    parser.add_argument("names", nargs="*", help=f"out of {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    return parser


def known(out: str) -> list[dict]:
    """The results that stand in a file already."""
    path = Path(out)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def add(out: str, results: Sequence[dict]) -> None:
    """Write results to the end of a file."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)


def run(
    wanted: Sequence[tuple], one: Callable[..., dict], given: argparse.Namespace, hidden: Sequence[str] = ()
) -> list[dict]:
    """All results of a file, after these jobs, each the arguments of `one`; `hidden` is kept and not printed."""
    found = known(given.out)
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for waiting in concurrent.futures.as_completed([pool.submit(one, *job) for job in wanted]):
            found.append(waiting.result())
            add(given.out, found[-1:])
            print(json.dumps({name: value for name, value in found[-1].items() if name not in hidden}), flush=True)
    return found


def need_data(parser: argparse.ArgumentParser, given: Any) -> None:
    """End the script with a sentence where no folder of data was named."""
    if not given.data:
        parser.error("pass --data, or set HFTL_DATA, to the folder that holds the data sets")
