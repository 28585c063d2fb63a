"""Make tiny models and tiny data to test with, on the spot: nothing is fetched."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

GOOD = ("good", "great", "fine", "lovely", "superb", "happy", "warm", "bright")
BAD = ("bad", "awful", "poor", "dreadful", "broken", "sad", "cold", "dull")
PLAIN = ("the", "a", "film", "book", "pan", "was", "is", "and", "very", "i", "it", "this", "that", "with", "of")


def tiny_text(folder: Path) -> dict[str, Any]:
    """Recipe settings for 120 short texts and a random 2-layer BERT; both are written to the folder."""
    return TRAINING | {
        "task": "text-classification",
        "model": tiny_bert(folder / "bert"),
        "data": reviews_csv(folder / "reviews.csv", 160),
    }


def tiny_image(folder: Path) -> dict[str, Any]:
    """Recipe settings for 120 small images and a random ResNet with BatchNorm; both are written to the folder."""
    return TRAINING | {
        "task": "image-classification",
        "model": tiny_cnn(folder / "cnn"),
        "data": colour_images(folder / "colours"),
    }


def tiny_choice(folder: Path) -> dict[str, Any]:
    """Recipe settings for 160 questions, each with a good text among bad ones, and the tiny BERT; both are written."""
    rng, rows = random.Random(0), []
    for i in range(160):
        choices = [" ".join(rng.choices(GOOD if i % 3 == at else BAD, k=3)) for at in range(3)]
        rows.append({"question": f"what is good w{i % 50}", "choices": choices, "label": i % 3})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return TRAINING | {
        "task": "multiple-choice",
        "model": tiny_bert(folder / "bert"),
        "data": str(folder / "rows.jsonl"),
    }


TINY: dict[str, Callable[[Path], dict[str, Any]]] = {"text": tiny_text, "image": tiny_image, "choice": tiny_choice}
"""Tiny tasks by name. A task with rows here keeps the laws under some strategies, "text" and "image" under all."""
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 8,
    "weight_decay": 0.0,
}


def tiny_bert(folder: Path) -> str:
    """Write a random 2-layer BERT without a head or pooler, and a word-level tokenizer; return the folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN, *(f"w{i}" for i in range(50))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["mask_token"] = "[UNK]"  # no word of the sentences is unknown
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_cnn(folder: Path) -> str:
    """Write a random small ResNet for 32-pixel images in timm's Hub form; return the folder."""
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(  # type: ignore[call-arg]  # its base takes more than it declares
        architecture="resnet10t",
        num_labels=5,
        model_args={"stem_width": 8, "channels": [8, 16, 16, 32]},
        pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    )
    transformers.TimmWrapperForImageClassification(config).save_pretrained(folder)
    return str(folder)


def sentences(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose label a tiny model can learn: each holds good or bad words among plain ones."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        words = [*rng.choices(PLAIN, k=rng.randint(1, 9)), *rng.choices((GOOD, BAD)[i % 2], k=3), f"w{i % 50}"]
        rng.shuffle(words)
        rows.append((" ".join(words), ("positive", "negative")[i % 2]))
    return rows


def reviews_csv(path: Path, n: int = 120) -> str:
    """Write labelled sentences as csv; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(n)])
    return str(path)


def colour_images(folder: Path, n: int = 120) -> str:
    """Write reddish and bluish noise of 32 x 32 pixels in a folder by class; return the folder."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name, channel = (("red", 0), ("blue", 2))[i % 2]
        pixels = rng.integers(0, 120, (32, 32, 3))
        pixels[..., channel] += 100
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{i}.png")
    return str(folder)
