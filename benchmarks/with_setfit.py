"""SetFit as its README has it, for benchmarks/speed.py: contrastive training of a sentence encoder, then a linear head.

    python benchmarks/with_setfit.py FOLDER MODEL --output_dir runs/setfit

FOLDER is as for plain_trainer.py. SetFit's own settings: one epoch over all pairs of rows, 16 pairs a batch, learning
rate 2e-5, logistic regression. Prints one line of JSON, as plain_trainer.py does.
"""

from __future__ import annotations

import time

import torch
from datasets import load_dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from side import called, csv_files, tell

from hftl.tasks.origin import resolve


def main() -> None:
    parser = called(__doc__)
    parser.add_argument("--output_dir", required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = load_dataset("csv", data_files=csv_files(given.folder))
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

    trained = sum(p.numel() for p in model.model_body.parameters()) + model.model_head.coef_.size + 1
    tell(valid=accuracy("validation"), test=accuracy("test"), seconds=seconds, trained=trained)


if __name__ == "__main__":
    main()
