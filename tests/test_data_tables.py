"""Tables as people have them: columns whose kind changes midway, no header, quotes of another program, rare classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hftl.data.formats.files import read_files
from hftl.data.formats.json_types import features_of
from hftl.data.load import load
from hftl.data.types import Splits
from hftl.errors import UserError
from hftl.tasks.text.classification import TextClassification
from hftl.tasks.text.tagging import TokenClassification

LONG = "x" * 300
N = 40_000
"""Rows of 12 MB: more than `datasets` looks at before it decides."""


def read(path: Path, text: str, task=TextClassification) -> Splits:
    path.write_text(text)
    return load(str(path), task.roles)


def lines(rows: list[dict]) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("first", "second", "label"),
    [({"label": None}, {"label": "a"}, "string"), ({"label": 1}, {"label": 1.5}, "float64")],
    ids=["null first", "whole numbers first"],
)
def test_a_column_whose_kind_shows_late_is_read(tmp_path, first, second, label):
    """T13."""
    rows = [{"text": f"{LONG}{i}"} | (first if i < N // 2 else second) for i in range(N)]
    rows[-1]["more"] = 1
    (tmp_path / "a.jsonl").write_text(lines(rows))
    made = read_files([tmp_path / "a.jsonl"])
    assert (made.features["label"].dtype, made.features["more"].dtype) == (label, "int64")
    assert made[-1]["label"] == second["label"]


def test_a_column_of_two_kinds_is_named_with_its_rows(tmp_path):
    """T13."""
    rows = [{"text": f"a{i}", "label": 1 if i < 20 else "x"} for i in range(40)]
    with pytest.raises(UserError, match=r"column 'label' of a.jsonl; it holds 1 in row 1 and 'x' in row 21; write all"):
        read(tmp_path / "a.jsonl", lines(rows))
    (tmp_path / "b.jsonl").write_text(lines(rows))
    with pytest.raises(UserError, match=r"line 1 of b.jsonl has 1, a number, and line 21 of b.jsonl has 'x', a text"):
        features_of([tmp_path / "b.jsonl"])


def test_texts_that_spell_dates_stay_texts(tmp_path):
    """T16."""
    rows = [{"text": f"2024-01-{1 + i % 28:02d}", "label": "ab"[i % 2], "when": "2024-01-01"} for i in range(40)]
    assert all(len(text) == 10 for text in read(tmp_path / "a.jsonl", lines(rows)).train["text"][:])


def test_a_file_without_a_header_is_told_so(tmp_path):
    """T16."""
    rows = "\n".join(f"text number {i},{'pos' if i % 2 else 'neg'}" for i in range(20))
    with pytest.raises(UserError, match=r"there is 'neg' in the first row of a.csv, which reads like data. Add a head"):
        read(tmp_path / "a.csv", rows)
    rows = "\n".join(f"{i},text number {i},{i % 2}" for i in range(20))
    with pytest.raises(UserError, match=r"'0' more than once. Rename .* or add a header where the first row is data"):
        read(tmp_path / "b.csv", rows)


def test_a_quote_after_a_backslash_is_a_quote(tmp_path):
    """T16."""
    rows = [f'"he said \\"no\\" {i}, and left",{"pos" if i % 2 else "neg"}' for i in range(20)]
    splits = read(tmp_path / "a.csv", "\n".join(["text,label", *rows]))
    assert all(text.startswith('he said "no" ') and text.endswith(", and left") for text in splits.train["text"][:])
    plain = [f'"{i} ""b"" c:\\dir\\",{"pos" if i % 2 else "neg"}' for i in range(20)]
    assert read(tmp_path / "b.csv", "\n".join(["text,label", *plain])).train["text"][0].endswith('"b" c:\\dir\\')


def test_numbers_that_are_spelt_in_two_ways_are_counted_once(tmp_path):
    """T16."""
    rows = [f"row {i},{['1', '1.0', '0', '0.0'][i % 4]}" for i in range(40)]
    said = [one.sentence for one in read(tmp_path / "a.csv", "\n".join(["text,label", *rows])).checks]
    assert any("the 2 different numbers" in one for one in said)


def test_a_class_that_test_lacks_is_named(tmp_path):
    """T14, T17."""
    rows = [f"row {i},{'ab'[i % 2]}" for i in range(40)] + ["last,c", "row 2,a"]
    said = [one.sentence for one in read(tmp_path / "a.csv", "\n".join(["text,label", *rows])).checks]
    assert "no row of test has the class c (1 row in train): nothing is measured of it" in said
    assert "all 42 rows, of all splits, can be read, and none is empty" in said
    assert not any("1 rows" in one for one in said)


def test_a_null_among_words_is_a_bad_row(tmp_path):
    """T12."""
    rows = [{"tokens": ["a", None if i == 3 else "b"], "label": ["O", "B-x"]} for i in range(20)]
    with pytest.raises(UserError, match=r"data row 4 of a.jsonl; it has a null among its tokens"):
        read(tmp_path / "a.jsonl", lines(rows), TokenClassification)


@pytest.mark.parametrize(
    ("role", "usual", "odd", "task"),
    [("text", "a", 5, TextClassification), ("tokens", ["a", "b"], ["a", 5], TokenClassification)],
)
def test_a_number_among_texts_or_words_is_named_with_its_row(tmp_path, role, usual, odd, task):
    rows = [{role: odd if i == 3 else usual, "label": ["O", "B-x"]} for i in range(20)]
    with pytest.raises(UserError, match=rf"column '{role}' of a.jsonl; it holds 'a' in row 1 and 5 in row 4; "):
        read(tmp_path / "a.jsonl", lines(rows), task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train", "valid", "test"], "given: train, valid, test"),
        (["train", "test"], "given: train, test; valid is 10 % of train (4 rows), set aside with seed 42"),
    ],
)
def test_splits_that_were_given_and_set_aside_are_said_among_the_first(tmp_path, given, said):
    for split in given:
        rows = [f"{split} {i},{'ab'[i % 2]}" for i in range(40)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    third = load(str(tmp_path), TextClassification.roles).checks[2]
    assert (third.name, third.sentence) == ("splits", said)
