"""The script that a user of transformers would write: plain Trainer, random batches, DataCollatorWithPadding.

    python benchmarks/plain_trainer.py FOLDER MODEL --output_dir runs/plain --seed 1

FOLDER holds train.csv, validation.csv and test.csv with columns text and label. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import transformers
from datasets import load_dataset

from hftl.tasks.base import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--num_train_epochs", type=float, default=2)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    folder, model_name = given.pop("folder"), resolve(given.pop("model"))
    names = {"train": "train", "validation": "validation", "test": "test"}
    rows = load_dataset("csv", data_files={name: f"{folder}/{file}.csv" for name, file in names.items()})
    transformers.set_seed(given["seed"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_name)
    classes = len(rows["train"].unique("label"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=classes, dtype=torch.float32
    )
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
    args = transformers.TrainingArguments(
        **given,
        per_device_eval_batch_size=64,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        weight_decay=0.01,
        warmup_steps=0.1,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    seconds = trainer.train().metrics["train_runtime"]
    scores = {n: trainer.evaluate(rows[n], metric_key_prefix=n)[f"{n}_accuracy"] for n in ("validation", "test")}
    print(json.dumps({"valid": scores["validation"], "test": scores["test"], "seconds": seconds}))


if __name__ == "__main__":
    main()
