"""Tiny models and tiny data, made on the spot: nothing in the suite reaches the network."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

torch.set_num_threads(1)
datasets.disable_progress_bars()

GOOD = ["good", "great", "fine", "lovely", "superb", "happy", "warm", "bright"]
BAD = ["bad", "awful", "poor", "dreadful", "broken", "sad", "cold", "dull"]
PLAIN = [
    "the",
    "a",
    "film",
    "book",
    "pan",
    "screen",
    "was",
    "is",
    "and",
    "very",
    "i",
    "it",
    "this",
    "that",
    "with",
    "of",
]


def sentences(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose label a tiny model can learn: each holds a good or a bad word among plain ones."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        words = [*rng.choices(PLAIN, k=rng.randint(3, 12)), rng.choice((GOOD, BAD)[i % 2]), f"w{i % 50}"]
        rng.shuffle(words)
        rows.append((" ".join(words), ("positive", "negative")[i % 2]))
    return rows


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random 2-layer BERT without a head, and a word-level tokenizer that knows the sentences."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN, *(f"w{i}" for i in range(50))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special, model_max_length=64)
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
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_cnn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in timm's Hub form with a random small ResNet for 32-pixel images, BatchNorm and all."""
    folder = tmp_path_factory.mktemp("tiny-cnn")
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(
        architecture="resnet10t",
        num_labels=5,
        model_args={"stem_width": 8, "channels": [8, 16, 16, 32]},
        pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    )
    transformers.TimmWrapperForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """160 labelled sentences in one csv file."""
    path = tmp_path_factory.mktemp("csv") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(160)])
    return str(path)


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 images in a folder by class: reddish and bluish noise."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for i in range(120):
        name, channel = (("red", 0), ("blue", 2))[i % 2]
        pixels = rng.integers(0, 120, (32, 32, 3))
        pixels[..., channel] += 100
        (root / name).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(root / name / f"{i}.png")
    return str(root)


def sha(folder: str | Path) -> dict[str, bytes]:
    """The bytes of every file of a folder, by relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
