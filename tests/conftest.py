"""Tiny models and tiny data, made on the spot by `hftl.testing`: nothing in the suite reaches the network."""

from __future__ import annotations

import atexit
import csv
import gc
import io
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = tempfile.mkdtemp(prefix="hftl-tests-")  # the suite leaves nothing in the user's own cache
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["HF_DATASETS_CACHE"] = os.environ["HFTL_CACHE"] = CACHE
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

import datasets
import pytest
import torch
import transformers
from bad_inputs import World, run

from hftl import testing

torch.set_num_threads(1)
UNFREEZE = gc.unfreeze
datasets.disable_progress_bars()


@pytest.fixture(scope="module", autouse=True)
def _what_lasts_is_not_searched_for_garbage() -> Iterator[None]:
    """Each training asks for a garbage collection, which goes through all that was ever imported: a quarter of a run.

    A run takes its freeze back at its end, so that is off, but where a test asks for `unfrozen`.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield


@pytest.fixture
def unfrozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is frozen, and `gc.unfreeze` is Python's own."""
    monkeypatch.setattr(gc, "unfreeze", UNFREEZE)
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random 2-layer BERT without a head, and a word-level tokenizer that knows the sentences."""
    return testing.tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_cnn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in timm's Hub form with a random small ResNet for 32-pixel images, BatchNorm and all."""
    return testing.tiny_cnn(tmp_path_factory.mktemp("models") / "tiny-cnn")


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """160 labelled sentences in one csv file."""
    return testing.reviews_csv(tmp_path_factory.mktemp("data") / "reviews.csv", 160)


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 images in a folder by class: reddish and bluish noise."""
    return testing.colour_images(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="session")
def domains_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 sentences about films, books and pans, with a column that says which."""
    domains = ("film", "book", "pan")
    texts = enumerate(testing.sentences(120, 3))
    rows = [(f"{text} {domains[i % 3]}", label, domains[i % 3]) for i, (text, label) in texts]
    return table(tmp_path_factory.mktemp("data") / "domains.csv", [("text", "label", "domain"), *rows])


@pytest.fixture(scope="session")
def pairs_csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 pairs of sentences with a number that the first one decides."""
    rng, rows = random.Random(1), []
    others = [text for text, _ in testing.sentences(40, 5)]
    for text, _ in testing.sentences(96, 3):
        words = set(text.split())
        good, bad = len(words & set(testing.GOOD)), len(words & set(testing.BAD))
        rows.append((text, rng.choice(others), good - bad + 0.25 * rng.random()))
    return table(tmp_path_factory.mktemp("data") / "pairs.csv", [("sentence1", "sentence2", "score"), *rows])


def table(path: Path, rows: list[tuple[Any, ...]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    """A random 2-layer BERT with three classes, for texts of at most 40 tokens; to be copied by what trains it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


@pytest.fixture
def on_text(tiny_bert: str, reviews_csv: str) -> dict[str, str]:
    """Settings of a recipe that trains the tiny BERT on the sentences, its head at random."""
    return {"model": tiny_bert, "data": reviews_csv, "head": "random"}


@pytest.fixture
def on_images(tiny_cnn: str, colour_folder: str) -> dict[str, str]:
    """Settings of a recipe that trains the tiny ResNet on the colours."""
    return {"task": "image-classification", "model": tiny_cnn, "data": colour_folder, "head": "random"}


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_cnn: str, reviews_csv: str, colour_folder: str
) -> Path:
    """A folder that holds a finished run."""
    here = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        run("text", [], World(here, tiny_bert, tiny_cnn, reviews_csv, colour_folder, patch))
    return here / "earlier"


@pytest.fixture
def world(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    finished: Path,
    tiny_bert: str,
    tiny_cnn: str,
    reviews_csv: str,
    colour_folder: str,
) -> World:
    """An empty working directory but for `earlier`, a finished run, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    shutil.copytree(finished, tmp_path / "earlier")
    return World(tmp_path, tiny_bert, tiny_cnn, reviews_csv, colour_folder, monkeypatch)
