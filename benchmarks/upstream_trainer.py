"""transformers' own Trainer tests with `transformers.Trainer`, and with `hftl.Trainer` in its place.

    python benchmarks/upstream_trainer.py TESTS [--out runs/upstream]

TESTS is a checkout of transformers' `tests/` whose version is near the installed one. Beside hftl it takes
`pip install parameterized sentencepiece optuna`. Prints how many pass with the base class, how many of these with
hftl's, and each that differs with its first line of error. Tests that load from the Hub fail on both sides offline.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SWAP = """
import os
import transformers, transformers.trainer, transformers.trainer_seq2seq
if os.environ["SIDE"] == "hftl":
    import hftl
    swapped = hftl.Trainer
    transformers.trainer.Trainer = vars(transformers)["Trainer"] = swapped
    assert transformers.Trainer is swapped
"""


def outcomes(side: str, tests: Path, out: Path) -> dict[str, str]:
    """Name of each test -> "" where it passes, "skipped", or the first line of its error."""
    (out / "swap_trainer.py").write_text(SWAP, "utf-8")
    report = out.absolute() / f"{side}.xml"
    path = os.pathsep.join([str(tests.parent), str(out.absolute()), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"SIDE": side, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = ["-q", "-p", "swap_trainer", "-p", "no:cacheprovider", "--tb=short", f"--junit-xml={report}"]
    words.append("--continue-on-collection-errors")  # a checkout is rarely of the very version
    subprocess.run([sys.executable, "-m", "pytest", *words, "tests/trainer"], cwd=tests.parent, env=env, check=False)
    found = {}
    for case in ET.parse(report).iter("testcase"):
        broken = case.find("failure") if case.find("failure") is not None else case.find("error")
        name = f"{case.get('classname')}.{case.get('name')}"
        found[name] = "" if case.find("skipped") is None else "skipped"
        if broken is not None:
            found[name] = next((line for line in (broken.text or "").splitlines() if line.startswith("E ")), "?")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/upstream"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base, ours = (outcomes(side, given.tests.absolute(), given.out) for side in ("base", "hftl"))
    passes = [name for name, error in base.items() if not error]
    skipped = sum(error == "skipped" for error in base.values())
    print(f"{len(base)} tests: {len(passes)} pass with transformers.Trainer, {skipped} are skipped")
    print(f"{sum(not ours.get(name, '?') for name in passes)} of these {len(passes)} pass with hftl.Trainer")
    for name in passes:
        if ours.get(name, "?"):
            print(f"  {name}\n    {ours.get(name, 'not run')}")


if __name__ == "__main__":
    main()
