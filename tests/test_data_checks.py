"""Splits are seeded and stratified, fingerprints depend on content alone, and the check page tells the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import IMAGES, ROLES, ROWS, _own_cache, picture, pictures, write  # noqa: F401

import hftl.data.source
from hftl.data.carve import carve, subset
from hftl.data.check import length_check, render
from hftl.data.load import load
from hftl.data.types import Check, Splits
from hftl.errors import UserError


def table(texts: list[str], labels: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "label": labels})


def check(splits: Splits, name: str) -> Check:
    return next(one for one in splits.checks if one.name == name)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=200), st.integers(0, 5))
def test_carving_parts_the_rows_and_leaves_every_class_in_train(labels: list[int], seed: int) -> None:
    classes = np.array(labels)
    sizes = np.bincount(classes)
    if sizes.max() < 2:
        return
    rest, taken = carve(0.1, np.arange(len(labels)), classes, seed, "valid")
    assert sorted([*rest, *taken]) == list(range(len(labels)))
    assert set(classes[rest]) == set(labels)
    large = sizes >= 3
    got = np.bincount(classes[taken], minlength=len(sizes))
    if large.any():
        assert (got[large] == np.maximum(1, np.round(0.1 * sizes[large]))).all()
        assert (got[~large] == 0).all()
    else:
        assert got.sum() >= 1


def test_carving_follows_the_seed_and_the_purpose() -> None:
    groups, classes = np.arange(100), np.arange(100) % 2
    taken = [
        carve(0.1, groups, classes, s, p)[1].tolist()
        for s, p in ((1, "valid"), (1, "valid"), (2, "valid"), (1, "test"))
    ]
    assert taken[0] == taken[1]
    assert taken[0] != taken[2]
    assert taken[0] != taken[3]


def test_carving_does_not_hang_on_the_hash_values_of_the_rows() -> None:
    classes, hashes = np.arange(50) % 2, np.random.default_rng(0).permutation(50)
    assert (
        carve(0.2, np.arange(50), classes, 1, "valid")[1].tolist()
        == carve(0.2, hashes, classes, 1, "valid")[1].tolist()
    )


def test_copies_of_a_row_stay_on_one_side_of_a_carved_split() -> None:
    splits = load(table([f"text {i // 3}" for i in range(300)], [i // 3 % 2 for i in range(300)]), ROLES)
    sides = [set(part["text"]) for part in (splits.train, splits.valid, splits.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert check(splits, "overlap").level == "ok"


def test_numbers_and_lists_are_carved_without_classes() -> None:
    for labels in ([i / 7 for i in range(50)], [["a", "b"][: i % 3] for i in range(50)]):
        splits = load(table([f"t{i}" for i in range(50)], labels), ROLES)
        assert (len(splits.train), len(splits.valid), len(splits.test)) == (40, 5, 5)


def test_a_rare_class_stays_in_train_and_is_noted() -> None:
    splits = load(table([f"t{i}" for i in range(42)], ["a", "b"] * 20 + ["rare", "rare"]), ROLES)
    rare = splits.labels.names.index("rare")
    assert splits.train["label"][:].count(rare) == 2
    assert "test may lack the classes 'rare': with fewer than 3 rows, too few to share out" in splits.notes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.data())
def test_a_subset_has_the_asked_size_and_shares(labels: list[int], data: st.DataObject) -> None:
    classes = np.array(labels)
    sizes = np.bincount(classes)
    count = data.draw(st.integers((sizes > 0).sum(), len(labels)))
    rows = subset(count, classes, len(labels), 3)
    assert len(set(rows)) == count
    got = np.bincount(classes[rows], minlength=len(sizes))
    assert (got[sizes > 0] >= 1).all()
    assert (got <= sizes).all()


def test_max_train_samples_leaves_valid_and_test_alone() -> None:
    whole, part = (
        load(datasets.Dataset.from_list(ROWS), ROLES),
        load(datasets.Dataset.from_list(ROWS), ROLES, max_train_samples=10),
    )
    assert len(part.train) == 10
    assert part.train["label"][:].count(0) == 5
    assert [part.fingerprints[s] == whole.fingerprints[s] for s in ("train", "valid", "test")] == [False, True, True]
    assert part.notes[-1] == "train is 10 of 32 rows, seed 42"


def test_a_fingerprint_ignores_names_shards_and_other_columns_but_not_content(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", ROWS)
    two = [write(tmp_path / f"{n}.csv", rows) for n, rows in (("a", ROWS[:7]), ("b", ROWS[7:]))]
    bare = write(tmp_path / "bare.csv", [{"label": row["label"], "text": row["text"]} for row in ROWS])
    want = load(one, ROLES).fingerprints
    assert load(two, ROLES).fingerprints == want
    assert load(bare, ROLES).fingerprints == want
    flipped = [dict(row) for row in ROWS]
    flipped[3]["label"], flipped[4]["label"] = flipped[4]["label"], flipped[3]["label"]
    for i, changed in enumerate((ROWS[::-1], flipped)):
        assert load(write(tmp_path / f"changed{i}.csv", changed), ROLES).fingerprints != want
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in want.values())


def test_the_pair_and_its_swap_have_different_fingerprints() -> None:
    rows = [{"text": "ab", "text_pair": "c", "label": i % 2} for i in range(4)]
    other = [{"text": "a", "text_pair": "bc", "label": i % 2} for i in range(4)]
    one, two = (datasets.Dataset.from_list(r) for r in (rows, other))
    found = [load({"train": t, "valid": t, "test": t}, ROLES).fingerprints["train"] for t in (one, two)]
    assert found[0] != found[1]


def test_rows_words_copies_and_overlap_are_counted() -> None:
    train = table(["one", "one two", "one two three", "one", "x y"], ["a", "b", "a", "a", "b"])
    test = table(["one", "one two", "new"], ["a", "b", "a"])
    splits = load({"train": train, "valid": table(["v"], ["a"]), "test": test}, ROLES)
    assert check(splits, "rows").sentence == "5 train, 1 valid, 3 test; 2 classes"
    assert check(splits, "rows").details[0] == {"class": "a", "train": 3, "valid": 1, "test": 2}
    assert check(splits, "words").details[0] == {"split": "train", "min": 1, "median": 2, "95 %": 2, "max": 3}
    copies = check(splits, "duplicates")
    assert (copies.level, copies.sentence) == ("note", "1 row of train repeats an earlier one")
    assert copies.details == [{"copies": 2, "row": "one"}]
    overlap = check(splits, "overlap")
    assert overlap.level == "warn"
    assert overlap.sentence.endswith("2 of test are in train too")
    assert [row["row"] for row in overlap.details] == ["one", "one two"]


def test_identical_images_in_two_splits_are_found_whatever_their_names(tmp_path: Path) -> None:
    for i, name in enumerate(("train", "valid", "test")):
        pictures(tmp_path / name, 4, 10 * i)
    picture(tmp_path / "test" / "cat" / "copy.png", 0)
    overlap = check(load(tmp_path, IMAGES), "overlap")
    assert (overlap.level, overlap.details) == ("warn", [{"splits": "train, test", "row": "copy.png"}])


@pytest.mark.parametrize(("sizes", "level"), [((30, 30), "ok"), ((50, 20), "ok"), ((45, 15), "warn")])
def test_imbalance_of_three_to_one_suggests_class_weights(sizes: tuple[int, int], level: str) -> None:
    labels = ["a"] * sizes[0] + ["b"] * sizes[1]
    one = table([f"t{i}" for i in range(len(labels))], labels)
    balance = check(load({"train": one, "valid": one, "test": one}, ROLES), "balance")
    assert balance.level == level
    assert ("--class_weights balanced" in balance.sentence) == (level == "warn")


def test_sizes_and_modes_of_images_are_listed(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    images = check(load(tmp_path, IMAGES), "images")
    assert images.sentence == "an image of train has 8x6 pixels at the median; modes: 40 RGB"
    assert images.details[0] == {"split": "train", "min": "8x6", "median": "8x6", "max": "8x6"}


@pytest.mark.parametrize(("longer", "level"), [(0, "ok"), (2, "note"), (6, "warn")])
def test_the_length_check_counts_what_is_cut(longer: int, level: str) -> None:
    found = length_check(iter([130] * longer + [128] * (100 - longer)), 128)
    assert found.level == level
    assert longer == 0 or found.sentence.startswith(f"{longer} of 100 texts ({longer}.0%) are cut at 128 tokens")


def test_the_check_page_is_aligned_and_says_how_much_it_leaves_out() -> None:
    checks = [
        Check("rows", "ok", "short", [{"class": f"c{i}", "train": i} for i in range(15)]),
        Check("overlap", "warn", "word " * 40),
    ]
    lines = render(checks).splitlines()
    assert lines[0] == "ok    rows     short"
    assert lines[1] == "               class  train"
    assert lines[14] == "               ... 3 more"
    assert max(map(len, lines)) <= 100
    assert lines[-1].startswith(" " * 15 + "word")
    assert render([]) == ""


def test_check_details_can_be_written_as_json() -> None:
    splits = load(table([f"t{i}" for i in range(30)], [i / 3 for i in range(30)]), ROLES)
    assert json.loads(json.dumps([one.details for one in splits.checks])) == [one.details for one in splits.checks]


HUB = {
    "script": (
        RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        "runs a script to load, which is refused.",
    ),
    "config": (
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']"),
        "Expected a config of glue (cola, sst2); it is glue. Pass --data glue:cola.",
    ),
    "unknown": (
        datasets.exceptions.DatasetNotFoundError("Dataset 'glue' doesn't exist"),
        "cannot be loaded from the Hub",
    ),
}


@pytest.mark.parametrize("case", HUB)
def test_trouble_with_the_hub_ends_in_a_sentence(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, sentence = HUB[case]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(hftl.data.source.datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=re.escape(sentence)):
        load("glue", ROLES)


def test_a_hub_id_names_a_config_a_revision_and_further_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(name: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
        asked.append((name, config, revision))
        one = datasets.Dataset.from_list(ROWS)
        return datasets.DatasetDict(
            train=one, validation_matched=one.select(range(4)), validation_mismatched=one.select(range(6))
        )

    monkeypatch.setattr(hftl.data.source.datasets, "load_dataset", fake)
    splits = load("nyu/glue:mnli", ROLES, revision="abc")
    assert asked == [("nyu/glue", "mnli", "abc")]
    assert (len(splits.valid), len(splits.test)) == (4, 4)
    assert "nyu/glue:mnli also has the splits validation_mismatched, which were not used" in splits.notes
    other = load("nyu/glue:mnli", ROLES, test="validation_mismatched")
    assert (len(other.test), other.notes) == (6, [])
