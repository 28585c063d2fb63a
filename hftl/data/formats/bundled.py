"""Read the samples that come with hftl, as `hftl:NAME`."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from hftl.data.formats.files import read_files
from hftl.errors import UserError, suggest

SAMPLES = Path(__file__).parents[1] / "samples"
REVIEWED = ("books", "electronics", "films", "kitchen")
_DIGITS = 1  # part of the cache key: raise it when the images change
_PER_CLASS = 20


def bundled(name: str) -> dict[str, datasets.Dataset]:
    """The three splits of a bundled sample.

    Raises:
        UserError: a name that is not bundled.
    """
    known: dict[str, Callable[[], dict[str, datasets.Dataset]]] = {"reviews": _reviews, "digits": _digits}
    for domain in REVIEWED:
        known[f"reviews/{domain}"] = functools.partial(_reviews, [domain])
        known[f"reviews/not-{domain}"] = functools.partial(_reviews, [one for one in REVIEWED if one != domain])
    if name not in known:
        names = ", ".join(f"hftl:{one}" for one in known)
        raise UserError(f"Expected one of the bundled samples {names}; it is 'hftl:{name}'.{suggest(name, known)}")
    return known[name]()


def _reviews(domains: Sequence[str] = ()) -> dict[str, datasets.Dataset]:
    """All reviews, or those of some domains; their labels lose nothing."""
    files = {"train": "train.csv", "valid": "validation.csv", "test": "test.csv"}
    whole = {split: read_files([SAMPLES / "reviews" / file]) for split, file in files.items()}
    if not domains:
        return whole
    return {s: rows.select(np.flatnonzero(np.isin(rows["domain"][:], domains))) for s, rows in whole.items()}


def _digits() -> dict[str, datasets.Dataset]:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    return {
        split: datasets.Dataset.from_generator(
            _digit_rows, features=features, gen_kwargs={"split": split, "version": _DIGITS}
        )
        for split in ("train", "valid", "test")
    }


def _digit_rows(split: str, version: int) -> Iterator[dict[str, Any]]:
    """20 digits a class for train, 20 for valid, the rest for test: the same for every seed of a run.

    BMP, because its bytes, and so the fingerprint, do not hang on the version of a compressor.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for label in range(10):
        rows = order[digits.target[order] == label]
        parts = {"train": rows[:_PER_CLASS], "valid": rows[_PER_CLASS : 2 * _PER_CLASS], "test": rows[2 * _PER_CLASS :]}
        for row in np.sort(parts[split]):
            grey = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "BMP")
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": label}
