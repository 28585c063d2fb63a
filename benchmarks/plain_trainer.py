"""The script that a user of transformers would write: plain Trainer, random batches, DataCollatorWithPadding.

    python benchmarks/plain_trainer.py FOLDER MODEL --output_dir runs/plain --seed 1

FOLDER holds train.csv, validation.csv and test.csv with columns text and label, or an image folder with train,
validation and test. Prints one line of JSON: accuracy on valid and test, seconds of training with its evaluations,
weights trained, peak memory in bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import load_dataset
from side import called, csv_files, tell

from hftl.tasks.origin import resolve


def texts(folder: str, model_name: str, pad_to: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """Rows, model and what else the Trainer takes, as run_glue does it: dynamic padding, or to a fixed length."""
    rows = load_dataset("csv", data_files=csv_files(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_name, num_labels=len(rows["train"].unique("label")), dtype=torch.float32
    )
    fixed = {"padding": "max_length", "max_length": pad_to} if pad_to else {}
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True, **fixed), batched=True)
    return rows, model, {"processing_class": tokenizer}


def images(folder: str, model_name: str) -> tuple[Any, Any, dict[str, Any]]:
    """The same for images, as run_image_classification does it, without augmentation."""
    rows = load_dataset("imagefolder", data_dir=folder)
    processor = transformers.AutoImageProcessor.from_pretrained(model_name)
    model = transformers.AutoModelForImageClassification.from_pretrained(
        model_name, num_labels=rows["train"].features["label"].num_classes, ignore_mismatched_sizes=True
    )

    def read(batch: dict[str, list]) -> dict[str, Any]:
        made = processor([image.convert("RGB") for image in batch["image"]], return_tensors="pt")
        return {"pixel_values": list(made["pixel_values"]), "labels": batch["label"]}

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["labels"] for example in examples])}

    return rows.with_transform(read), model, {"data_collator": collate, "processing_class": processor}


def freeze(model: Any, which: str) -> None:
    """Leave the head to train (`all` else is frozen), or BERT's last K layers, pooler and head (`last:K`)."""
    model.requires_grad_(False)
    is_bert = hasattr(model, "bert")
    parts = [model.classifier if is_bert else model.timm_model.get_classifier()]
    if which != "all":
        if not is_bert:
            raise SystemExit("Expected BERT for --freeze last:K; another model came. Pass --freeze all.")
        parts += [model.bert.pooler, *model.bert.encoder.layer[-int(which.removeprefix("last:")) :]]
    for part in parts:
        part.requires_grad_(True)


def with_lora(model: Any, r: int) -> Any:
    """PEFT's LoRA on all linear layers of BERT's blocks, alpha 16, the head trained and saved beside it."""
    from peft import LoraConfig, get_peft_model

    targets = r".*encoder\.layer\..*\.(query|key|value|dense)"
    config = LoraConfig(task_type="SEQ_CLS", r=r, lora_alpha=16, target_modules=targets, modules_to_save=["classifier"])
    return get_peft_model(model, config)


def main() -> None:
    parser = called(__doc__)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--num_train_epochs", type=float, default=2)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--pad_to", type=int, help="pad all texts to this length, as older example scripts do")
    parser.add_argument("--freeze", metavar="all|last:K", help="all but the head, or all below BERT's last K layers")
    parser.add_argument("--lora", type=int, metavar="R", help="train a LoRA of this rank")
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    folder, model_name = given.pop("folder"), resolve(given.pop("model"))
    pad_to, frozen, lora = given.pop("pad_to"), given.pop("freeze"), given.pop("lora")
    transformers.set_seed(given["seed"])
    is_text = Path(folder, "train.csv").is_file()
    rows, model, others = texts(folder, model_name, pad_to) if is_text else images(folder, model_name)
    if frozen:
        freeze(model, frozen)
    if lora:
        model = with_lora(model, lora)
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
        remove_unused_columns=is_text,
        label_names=["labels"],
    )
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        **others,
    )
    seconds = trainer.train().metrics["train_runtime"]
    scores = {n: trainer.evaluate(rows[n], metric_key_prefix=n)[f"{n}_accuracy"] for n in ("validation", "test")}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tell(valid=scores["validation"], test=scores["test"], seconds=seconds, trained=trained)


if __name__ == "__main__":
    main()
