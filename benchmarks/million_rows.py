"""A csv of a million rows, trained on: how much memory, how long, and what the second run saves.

    python benchmarks/million_rows.py [ROWS]

Each run is a process of its own: the text recipe with a tiny random BERT, one thread, 200 steps, and the evaluation of
valid and test. Memory is counted above what the imports need. `resident` includes pages of memory-mapped files, which
the kernel takes back when it wants to; `own` does not, and is what must stay bounded (Linux only).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        write(path, rows)
        environment = os.environ | {"HF_HOME": str(Path(folder, "cache")), "HF_HUB_OFFLINE": "1"}
        for run in ("first run", "second run"):
            print(f"{run:<10}  ", end="", flush=True)
            subprocess.run([sys.executable, __file__, "--one", str(path)], env=environment, check=True)


def write(path: Path, rows: int) -> None:
    """Sentences of 8 to 39 made-up words, no two alike."""
    words = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "su", "ta", "re") for b in ("n", "rt", "sh", "ll", "mp")]
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text,label\n")
        for row in range(rows):
            text = " ".join(words[(row * 7 + i * (row % 13 + 1)) % len(words)] for i in range(8 + row % 32))
            file.write(f'{row},"{text}, {row}",{("bad", "good", "mixed")[row % 3]}\n')


def one(path: Path) -> None:
    import torch

    from hftl import Recipe, run, testing  # noqa: F401, run imports what a run needs

    torch.set_num_threads(1)
    model = testing.tiny_bert(path.parent / "tiny-bert")
    before, start = memory(), time.perf_counter()
    peak = Peak()
    settings = {"max_steps": 200, "per_device_eval_batch_size": 256, "disable_tqdm": True, "overwrite": True}
    report = Recipe(data=str(path), model=model, output_dir=str(path.parent / "run"), **settings).run()
    seconds = time.perf_counter() - start
    resident, own = (now - then for now, then in zip(peak.stop(), before, strict=True))
    print(
        f"{sum(report.data['rows'].values()):,} rows, {path.stat().st_size / 1e6:.0f} MB csv: peak {resident:.0f} MB "
        f"resident, {own:.0f} MB own, above the imports; {seconds:.1f} s in all, {report.seconds:.1f} s of it training"
    )


def memory() -> tuple[float, float]:
    """MB of this process: resident, and without file pages."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    resident, own = (re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "RssAnon"))
    return int(resident[1]) / 1024 if resident else 0.0, int(own[1]) / 1024 if own else 0.0


class Peak:
    """Samples `memory` every 20 ms until stopped."""

    def __init__(self) -> None:
        self.highest, self.over = memory(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            resident, own = memory()
            self.highest = (max(self.highest[0], resident), max(self.highest[1], own))

    def stop(self) -> tuple[float, float]:
        self.over.set()
        self.thread.join()
        return self.highest


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]))
    else:
        main()
