"""SetFit as its README has it, for benchmarks/speed.py: contrastive training of a sentence encoder, then a linear head.

    python benchmarks/with_setfit.py FOLDER MODEL --output_dir runs/setfit

FOLDER is as for plain_trainer.py. SetFit's own settings: one epoch over all pairs of rows, 16 pairs a batch, learning
rate 2e-5, logistic regression. Prints one line of JSON, as plain_trainer.py does.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from datasets import load_dataset
from setfit import SetFitModel, Trainer, TrainingArguments

from hftl.tasks.base import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    files = {name: f"{given.folder}/{name}.csv" for name in ("train", "validation", "test")}
    rows = load_dataset("csv", data_files=files)
    model = SetFitModel.from_pretrained(resolve(given.model))
    args = TrainingArguments(
        output_dir=given.output_dir, seed=given.seed, report_to="none", show_progress_bar=False, save_strategy="no"
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows["train"])
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started

    def accuracy(split: str) -> float:
        predicted = torch.as_tensor(model.predict(rows[split]["text"][:]))
        return (predicted == torch.tensor(rows[split]["label"][:])).double().mean().item()

    found = {"valid": accuracy("validation"), "test": accuracy("test"), "seconds": seconds}
    trained = sum(p.numel() for p in model.model_body.parameters()) + model.model_head.coef_.size + 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found | {"trained": trained, "peak_memory": memory}))


if __name__ == "__main__":
    main()
