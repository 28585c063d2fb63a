"""What safety costs: sealing a checkpoint, and agreeing on the step at which two processes stop.

    python benchmarks/crash_costs.py

A checkpoint is of a random BERT of base size (110 million weights, with AdamW's state 1.3 GB). The two processes train
the tiny BERT over gloo, with and without asking each other after each step, in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import transformers

from hftl import Recipe, testing
from hftl.train.resume import manifest
from hftl.train.resume.resuming import ResumableTrainer, _Stopping

ROUNDS = 3


def sealing(home: Path) -> None:
    """Print the seconds of a checkpoint, and of them those for digests and for bringing files to the disk."""
    folder = Path(testing.tiny_bert(home / "base"))
    width = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    config = transformers.BertConfig(vocab_size=30522, **width)  # type: ignore[arg-type]
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    spent: dict[str, list[float]] = {"checkpoint": [], "digest": [], "sync": []}

    def timed(owner: object, name: str, where: str) -> None:
        plain = getattr(owner, name)

        def call(*given: object) -> object:
            start = time.perf_counter()
            found = plain(*given)
            spent[where].append(time.perf_counter() - start)
            return found

        setattr(owner, name, call)

    timed(ResumableTrainer, "_save_checkpoint", "checkpoint")
    timed(manifest, "digest", "digest")
    timed(manifest, "_sync", "sync")
    more = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "per_device_train_batch_size": 2}
    data = testing.reviews_csv(home / "few.csv", 40)
    Recipe(model=str(folder), data=data, output_dir=str(home / "base-run"), disable_tqdm=True, **more).run()
    whole = sum(spent["checkpoint"])
    shares = "  ".join(f"{name} {sum(spent[name]) / whole:.1%}" for name in ("digest", "sync"))
    print(
        f"checkpoint {whole / len(spent['checkpoint']):.2f} s, n={len(spent['checkpoint'])}; of it {shares}", flush=True
    )


def agreeing(home: Path) -> None:
    """Print the ratio of training seconds with and without asking, the median over rounds."""
    model, data = testing.tiny_bert(home / "bert"), testing.reviews_csv(home / "reviews.csv", 2000)
    flags = ["--model", model, "--data", data, "--eval_strategy", "no", "--num_train_epochs", "1", "--disable_tqdm"]
    flags += ["--per_device_train_batch_size", "4", "--overwrite", "--output_dir", str(home / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    seconds: dict[str, list[float]] = {"asking": [], "silent": []}
    for _ in range(ROUNDS):
        for how, found in seconds.items():
            words = [*launcher, __file__, how, *flags]
            done = subprocess.run(
                words, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            found.append(float(done.stdout.partition("SECONDS ")[2].split()[0]))
    ratios = [a / b for a, b in zip(seconds["asking"], seconds["silent"], strict=True)]
    medians = {how: round(statistics.median(found), 2) for how, found in seconds.items()}
    print(
        f"seconds {medians}, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), n={ROUNDS}"
    )


def train(how: str, words: list[str]) -> None:
    """Run the recipe in this process; the first says how long it trained."""
    from hftl.cli.main import main

    if how == "silent":
        _Stopping._asked = lambda self: ""  # type: ignore[method-assign]
    report = main(Recipe(), words)
    if report is not None and os.environ.get("RANK") == "0":
        print(f"SECONDS {report.seconds}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            sealing(Path(scratch))
            agreeing(Path(scratch))
