"""The bundled text sample is what its card says: balanced, without duplicates or near-duplicates, of one schema."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import hftl.data

SAMPLE = Path(hftl.data.__file__).parent / "samples" / "reviews"
SIZES = {"train": 600, "validation": 200, "test": 200}


@pytest.fixture(scope="module")
def reviews() -> dict[str, list[dict[str, str]]]:
    return {name: list(csv.DictReader((SAMPLE / f"{name}.csv").open(encoding="utf-8"))) for name in SIZES}


def test_the_splits_have_their_sizes_and_balance(reviews):
    assert {name: len(rows) for name, rows in reviews.items()} == SIZES
    for name, rows in reviews.items():
        counts = Counter((row["domain"], row["label"]) for row in rows)
        assert len(counts) == 8
        assert set(counts.values()) == {SIZES[name] // 8}


def test_each_domain_has_250_reviews_half_of_them_positive(reviews):
    counts = Counter((row["domain"], row["label"]) for rows in reviews.values() for row in rows)
    assert set(counts) == {
        (d, y) for d in ("books", "kitchen", "electronics", "films") for y in ("positive", "negative")
    }
    assert set(counts.values()) == {125}


def test_no_two_reviews_share_more_than_seven_tenths_of_their_words(reviews):
    texts = [row["text"] for rows in reviews.values() for row in rows]
    assert len(set(texts)) == 1000
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    table = np.zeros((len(words), len(vocabulary)), dtype=np.float32)
    for row, found in zip(table, words, strict=True):
        row[[vocabulary[word] for word in found]] = 1
    shared = table @ table.T
    size = table.sum(axis=1)
    jaccard = shared / (size[:, None] + size[None, :] - shared)
    np.fill_diagonal(jaccard, 0)
    assert jaccard.max() <= 0.7, [texts[i] for i in np.unravel_index(jaccard.argmax(), jaccard.shape)]


def test_every_review_is_short_and_says_something(reviews):
    for rows in reviews.values():
        for row in rows:
            assert 6 <= len(row["text"].split()) <= 60, row["text"]
            assert row["text"] == row["text"].strip()


def test_the_licence_and_the_origin_are_stated():
    card = (SAMPLE / "README.md").read_text("utf-8")
    assert "Apache-2.0" in card
    assert "written one by one" in card
