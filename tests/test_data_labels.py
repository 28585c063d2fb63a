"""Labels of every kind are read as what they are, or as --problem_type says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from test_data import ROLES, _own_cache, write  # noqa: F401

from hftl.data.load import load
from hftl.data.types import Splits
from hftl.errors import UserError
from hftl.tasks.text.classification import TextClassification
from hftl.tasks.text.tagging import TokenClassification

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def with_labels(labels: list[Any], feature: Any = None, **options: Any) -> Splits:
    """All rows as train, valid and test, so that the order is kept."""
    table = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(labels))], "label": labels})
    table = table.cast_column("label", feature) if feature else table
    return load(datasets.DatasetDict(train=table, valid=table, test=table), ROLES, **options)


CASES: dict[str, tuple[list[Any], dict[str, Any], str, list[str], list[Any]]] = {
    "strings": (["b", "a", " b "], {}, SINGLE, ["a", "b"], [1, 0, 1]),
    "integers sort by size": ([10, 9, -1, 10], {}, SINGLE, ["-1", "9", "10"], [2, 1, 0, 2]),
    "integers as text sort by size": (["10", "9", "10"], {}, SINGLE, ["9", "10"], [1, 0, 1]),
    "codes keep their zeros": (["007", "07", "7"], {}, SINGLE, ["007", "07", "7"], [0, 1, 2]),
    "booleans": ([True, False, True], {}, SINGLE, ["false", "true"], [1, 0, 1]),
    "booleans as text": (["True", "FALSE", "true"], {}, SINGLE, ["false", "true"], [1, 0, 1]),
    "NA among words": (["NA", "DE", "NA"], {}, SINGLE, ["DE", "NA"], [1, 0, 1]),
    "floats": ([0.5, 2.0, 1.5], {}, REGRESSION, [], [0.5, 2.0, 1.5]),
    "floats as text": (["0.5", "2", "-1e1"], {}, REGRESSION, [], [0.5, 2.0, -10.0]),
    "integers as amounts": ([3, 1, 2], {"read_as": REGRESSION}, REGRESSION, [], [3.0, 1.0, 2.0]),
    "whole floats as classes": ([2.0, 1.0, 2.0], {"read_as": SINGLE}, SINGLE, ["1", "2"], [1, 0, 1]),
    "whole floats as text as classes": (["2.0", "1.0"], {"read_as": SINGLE}, SINGLE, ["1", "2"], [1, 0]),
    "lists of words": ([["b"], ["a", "b"], []], {}, MULTI, ["a", "b"], [[0, 1], [1, 1], [0, 0]]),
    "lists of ids": ([[3], [10, 3], []], {}, MULTI, ["3", "10"], [[1, 0], [1, 1], [0, 0]]),
    "vectors of bits": ([[0, 0, 1], [1, 0, 1]], {}, MULTI, ["0", "1", "2"], [[0, 0, 1], [1, 0, 1]]),
    "vectors of floats": ([[0.0, 1.0], [1.0, 1.0]], {}, MULTI, ["0", "1"], [[0, 1], [1, 1]]),
    "ids of one length": ([[0, 1], [1, 2]], {}, MULTI, ["0", "1", "2"], [[1, 1, 0], [0, 1, 1]]),
    "text with vectors": (
        ["[1, 0, 0]", "[0, 1, 1]"],
        {"read_as": MULTI},
        MULTI,
        ["0", "1", "2"],
        [[1, 0, 0], [0, 1, 1]],
    ),
    "vectors with bars": (["1|0|0", "0|1|1"], {"read_as": MULTI}, MULTI, ["0", "1", "2"], [[1, 0, 0], [0, 1, 1]]),
    "text as pandas has it": (["['a', 'b']", "['b']"], {"read_as": MULTI}, MULTI, ["a", "b"], [[1, 1], [0, 1]]),
    "text as tuples": (["('a', 'b')", "('b',)"], {"read_as": MULTI}, MULTI, ["a", "b"], [[1, 1], [0, 1]]),
    "arrays of texts": (["['a' 'b']", "['b']"], {"read_as": MULTI}, MULTI, ["a", "b"], [[1, 1], [0, 1]]),
    "arrays of bits": (
        ["[1. 0. 0.]", "[0. 1. 1.]"],
        {"read_as": MULTI},
        MULTI,
        ["0", "1", "2"],
        [[1, 0, 0], [0, 1, 1]],
    ),
    "text with bars": (["a|b", "b", "[]"], {"read_as": MULTI}, MULTI, ["a", "b"], [[1, 1], [0, 1], [0, 0]]),
    "a blank text": (["a|b", " ", "b"], {"read_as": MULTI}, MULTI, ["a", "b"], [[1, 1], [0, 0], [0, 1]]),
    "text with json": (['["a", 2]', "[2]"], {"read_as": MULTI}, MULTI, ["2", "a"], [[1, 1], [1, 0]]),
    "one class a row of several": ([4, 5], {"read_as": MULTI}, MULTI, ["4", "5"], [[1, 0], [0, 1]]),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_are_read_as(case: str) -> None:
    labels, options, problem_type, names, encoded = CASES[case]
    splits = with_labels(labels, **options)
    assert (splits.labels.read_as, splits.labels.names) == (problem_type, names)
    assert [list(row) if isinstance(row, list) else row for row in splits.train["label"]] == encoded
    dtype = {SINGLE: "int64", MULTI: "float32", REGRESSION: "float32"}[problem_type]
    feature = splits.train.features["label"]
    assert (feature.feature if problem_type == MULTI else feature).dtype == dtype


def test_class_names_of_the_hub_keep_their_order() -> None:
    feature = datasets.ClassLabel(names=["world", "art", "unused"])
    splits = with_labels([1, 0, 1], feature)
    assert splits.labels.names == ["world", "art", "unused"]
    assert splits.train["label"][:] == [1, 0, 1]
    balance = next(check for check in splits.checks if check.name == "balance")
    assert balance.sentence == "no row of train has the class unused; it cannot be learned"


def test_lists_of_named_classes_keep_their_order() -> None:
    splits = with_labels([[1], [0, 1]], datasets.List(datasets.ClassLabel(names=["z", "a"])))
    assert (splits.labels.names, splits.train["label"][:]) == (["z", "a"], [[0, 1], [1, 1]])


def test_named_classes_and_words_are_the_same_labels() -> None:
    named = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    named = named.cast_column("label", datasets.ClassLabel(names=["pos", "neg"]))
    words = datasets.Dataset.from_dict({"text": ["c", "d"], "label": ["neg", "pos"]})
    splits = load({"train": named, "valid": words, "test": words}, ROLES)
    assert splits.test["label"][:] == [1, 0]


@pytest.mark.parametrize("labels", [[0.5, None, 2.0], [0.5, float("nan"), 2.0], ["0.5", "NA", "2.0"], ["0.5", "", "2"]])
def test_a_missing_amount_is_a_bad_row(labels: list[Any]) -> None:
    splits = with_labels(labels, on_bad_row="skip")
    assert splits.train["label"][:] == [0.5, 2.0]
    bad = next(check for check in splits.checks if check.name == "bad rows")
    assert [row["reason"] for row in bad.details] == ["no label"] * 3


@pytest.mark.parametrize(
    "labels",
    [
        [1, None, 2],
        ["a", None, "b"],
        [["a"], None, ["b"]],
        ["1", "nan", "2"],
        [["0", "1", "0"], ["1", "", "0"], ["1", "1", "0"]],
    ],
)
def test_a_missing_class_is_a_bad_row(labels: list[Any]) -> None:
    splits = with_labels(labels, on_bad_row="skip")
    assert splits.train["text"][:] == ["t0", "t2"]
    assert len(splits.labels.names) in (2, 3)


def test_whole_amounts_are_noted_with_the_flag_that_makes_them_classes() -> None:
    splits = with_labels([1.0, 2.0, 5.0])
    note = next(check for check in splits.checks if check.name == "labels")
    assert (note.level, splits.labels.read_as) == ("note", REGRESSION)
    assert note.sentence.endswith("pass --problem_type single_label_classification")
    assert not any(check.name == "labels" for check in with_labels([1.0, 2.5]).checks)


def test_bars_in_labels_are_noted() -> None:
    notes = [check.sentence for check in with_labels(["a|b", "a"]).checks if check.name == "labels"]
    assert len(notes) == 1
    assert notes[0].endswith("pass --problem_type multi_label_classification")


def test_rows_of_no_class_are_counted_and_a_null_is_no_label_however_they_are_written() -> None:
    """V17: a blank cell of a csv was no label, and `[]` of jsonl was one."""
    for labels in (["a|b", "", "b"], [["a", "b"], [], ["b"]]):
        rows = next(check for check in with_labels(labels, read_as=MULTI).checks if check.name == "rows")
        assert rows.sentence.endswith("2 classes, none of which 3 rows have")
        with pytest.raises(UserError, match=r"data row 4 of .* it has no label"):
            with_labels([*labels, None], read_as=MULTI)


@pytest.mark.parametrize("kind", ["all minus one", "nothing", "no column"])
def test_a_test_split_without_labels_is_left_out_and_another_is_carved(kind: str) -> None:
    train = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(40)], "label": [0, 1] * 20})
    test: dict[str, list[Any]] = {"text": ["a", "b"]}
    if kind != "no column":
        test["label"] = [-1, -1] if kind == "all minus one" else [None, None]
    splits = load(datasets.DatasetDict(train=train, test=datasets.Dataset.from_dict(test)), ROLES)
    assert splits.notes[0] == "the test split of a DatasetDict has no labels (missing, or all -1) and was left out"
    assert splits.notes[1] == "no test split was given: 10 % of train (4 rows) was set aside, seed 42"
    assert "a" not in splits.test["text"]


def test_minus_one_is_a_class_where_train_has_it() -> None:
    train = datasets.Dataset.from_dict({"text": list("abcd"), "label": [-1, 1, -1, 1]})
    splits = load({"train": train, "valid": train, "test": train.select([0, 2])}, ROLES)
    assert splits.test["label"][:] == [0, 0]


def test_a_csv_and_a_typed_file_read_the_same(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i * 0.25 - 3} for i in range(30)]
    one, other = (load(write(tmp_path / f"a.{ending}", rows), ROLES) for ending in ("csv", "jsonl"))
    assert one.fingerprints == other.fingerprints
    assert np.isclose(min(one.train["label"]), -3, atol=1)


@pytest.mark.parametrize(
    ("labels", "settings", "sentence"),
    [
        ([[0, 1], [1, 0]], {}, "a vector of two classes, or the ids of both"),
        (["a,b", "a", "b"], {"read_as": MULTI}, r"such as 'a,b' may be several classes .* Write several as a\|b"),
        (["a;b", "a", "b"], {"read_as": MULTI}, r"such as 'a;b' may be several classes"),
        (["a;b", "b;c", "a;c"], {"read_as": MULTI}, r"such as 'a;b' may be several classes"),
        (["a b", "b c", "a"], {"read_as": MULTI}, r"such as 'a b' may be several classes"),
        (["1,0,0", "0,1,1"], {"read_as": MULTI}, r"such as '0,1,1' may be several classes"),
        (["100", "011"], {"read_as": MULTI}, r"such as '011' may be several classes"),
        (["[joy, fear]", "joy|fear"], {"read_as": MULTI}, r"such as '\[joy, fear\]' may be several classes"),
    ],
)
def test_a_cell_that_reads_in_two_ways_is_refused_with_both(labels, settings, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        with_labels(labels, **settings)


def test_what_was_read_is_said_first() -> None:
    rows = {"idx": [1, 2, 3, 4], "question": list("abcd"), "sentence": list("efgh"), "label": ["x", "y"] * 2}
    data = datasets.Dataset.from_dict(rows)
    splits = load({"train": data, "valid": data, "test": data}, TextClassification.roles)
    columns, form = splits.checks[:2]
    assert columns.sentence == "text = question, text_pair = sentence, label = label; not read: idx"
    assert form.sentence == "column 'label' reads as single_label_classification: 'x' is 'x'; 'y' is 'y'"


@pytest.mark.parametrize(
    ("names", "columns", "read"),
    [
        ("sent1 sent2 label", {}, "text = sent1, text_pair = sent2, label = label"),
        ("claim evidence label", {"text": "claim"}, "text = claim, text_pair = evidence, label = label"),
        ("text sentence label", {}, "text = text, label = label; not read: sentence"),
        ("review document label", {}, "text = review, label = label; not read: document"),
    ],
)
def test_two_columns_are_a_pair_only_where_they_are_known_to_go_together(names, columns, read) -> None:
    data = datasets.Dataset.from_dict({name: [f"{name} {i % 2}" for i in range(4)] for name in names.split()})
    found = load({"train": data, "valid": data, "test": data}, TextClassification.roles, columns=columns)
    assert [check.sentence for check in found.checks if check.name == "columns"] == [read]


def test_columns_of_0_and_1_are_several_labels() -> None:
    rows = {"text": list("abcd"), "toxic": [1, 0, 1, 0], "id": [7, 8, 9, 10], "threat": ["1", "1", "0", "0"]}
    data = {split: datasets.Dataset.from_dict(rows) for split in ("train", "valid", "test")}
    splits = load(data, ROLES, columns={"label": "toxic,threat"})
    assert splits.labels.names == ["threat", "toxic"]
    assert splits.train["label"][:] == [[1, 1], [1, 0], [0, 1], [0, 0]]
    with pytest.raises(UserError, match="Pass --label toxic,threat"):
        load(data, ROLES)
    with pytest.raises(UserError, match=r"Expected 0 or 1 in column 'id' .* row 1 has 7"):
        load(data, ROLES, columns={"label": "toxic,id"})


def test_class_names_with_signs_are_classes_where_each_stands_in_a_list_or_shares_no_part():
    for labels in (['["a b"]', '["b c"]', '["a"]'], ["sci-fi, new", "food & drink", "sci-fi, old"]):
        assert len(with_labels(labels, read_as=MULTI).labels.names) == 3


def test_the_column_that_reads_like_text_is_the_one_that_is_offered() -> None:
    words = ["one thing", "another thing", "a third", "a fourth"]
    data = datasets.Dataset.from_dict({"id": list("abcd"), "Tweet Body": words, "Emotion": ["joy", "fear"] * 2})
    with pytest.raises(UserError, match="Pass --text 'Tweet Body'"):
        load(data, ROLES)
    with pytest.raises(UserError, match="Pass --label Emotion"):
        load(data, ROLES, columns={"text": "Tweet Body"})


def test_classes_that_a_person_reads_as_one_are_named() -> None:
    checks = with_labels(["ham", "Ham", "caf\u00e9", "cafe\u0301", "very  good", "very good", "x\u200b", "x"]).checks
    found = next(check for check in checks if check.name == "labels")
    assert found.level == "warn"
    assert "'Ham', 'ham'" in found.sentence


def test_tags_that_are_numbers_without_names_are_refused() -> None:
    data = datasets.Dataset.from_dict({"tokens": [["a", "b"], ["c", "d"]], "tags": [[0, 4], [10, 0]]})
    with pytest.raises(UserError, match="Expected tags by name"):
        load(data, TokenClassification.roles)
