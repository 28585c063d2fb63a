"""A csv of a million rows through hftl.data: how much memory, how long, and what the second run saves.

    python benchmarks/million_rows.py [ROWS]

Each run is a process of its own: load, check and split; map a function that costs about what a tokenizer does; read
every batch once. Memory is counted above what the imports need. `resident` includes pages of memory-mapped files,
which the kernel takes back when it wants to; `own` does not, and is what must stay bounded (Linux only).
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

TOKENS = 32


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
    import datasets

    from hftl.data import Role, load

    roles = {"text": Role("text", ("text",)), "label": Role("label", ("label",))}
    before, start = memory(), time.perf_counter()
    peak = Peak()
    splits = load(path, roles)
    loaded = time.perf_counter() - start
    encoded = splits.train.map(encode, batched=True, remove_columns=["text"], desc="Tokenizing")
    tokens = sum(sum(map(len, batch["input_ids"])) for batch in encoded.iter(1000))
    seconds = time.perf_counter() - start
    resident, own = (now - then for now, then in zip(peak.stop(), before, strict=True))
    rows = len(splits.train) + len(splits.valid) + len(splits.test)
    print(
        f"{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB csv: peak {resident:.0f} MB resident, {own:.0f} MB own; "
        f"{seconds:.1f} s, of it {loaded:.1f} s to load and check ({tokens:,} tokens, datasets {datasets.__version__})"
    )


def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
    return {"input_ids": [[sum(word.encode()) for word in text.split()[:TOKENS]] for text in batch["text"]]}


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
