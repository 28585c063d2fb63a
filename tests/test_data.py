"""Every kind of source of hftl.data arrives as the same three splits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import hftl.data.formats.bundled
from hftl.data.load import load
from hftl.data.new_rows import new_rows
from hftl.data.roles import Role
from hftl.data.types import split_of
from hftl.tasks.classification import PROBLEM_TYPES

ROLES = {
    "text": Role("text", ("text", "sentence", "sentence1")),
    "text_pair": Role("text", ("text_pair", "sentence2"), required=False),
    "label": Role("label", ("label", "labels"), reads=PROBLEM_TYPES),
}
IMAGES = {"image": Role("image", ("image", "img")), "label": Role("label", ("label", "labels"), reads=PROBLEM_TYPES)}
ROWS = [{"text": f"text number {i}", "label": ("neg", "pos")[i % 2], "other": i} for i in range(40)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that the ending of `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        table.to_parquet(str(path))
    elif path.suffix == ".arrow":
        with datasets.arrow_writer.ArrowWriter(features=table.features, path=str(path)) as writer:
            writer.write_table(table.data.table)
            writer.finalize()
    return path


def picture(path: Path, value: int, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pictures(folder: Path, n: int = 12, start: int = 0) -> Path:
    for i in range(n):
        picture(folder / ("cat", "dog")[i % 2] / f"{i}.png", start + i)
    return folder


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet", "arrow"])
def test_a_file_of_any_format_gives_the_same_splits(ending: str, tmp_path: Path) -> None:
    splits = load(write(tmp_path / f"rows.{ending}", ROWS), ROLES)
    reference = load(datasets.Dataset.from_list(ROWS), ROLES)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (32, 4, 4)
    assert splits.train.column_names == ["text", "label"]
    assert splits.labels.names == ["neg", "pos"]
    assert splits.fingerprints == reference.fingerprints
    assert splits.train[:] == reference.train[:]


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("train.jsonl", "dev.csv", "test.parquet"),
        ("reviews-train.csv", "reviews-val.csv", "reviews-test.csv"),
        ("train/a.csv", "valid/b.csv", "test/c.csv"),
        ("train-00000-of-00001.parquet", "valid-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    ],
)
def test_a_folder_of_files_named_after_splits_is_recognised(names: tuple[str, ...], tmp_path: Path) -> None:
    for name, rows in zip(names, (ROWS[:20], ROWS[20:28], ROWS[28:]), strict=True):
        write(tmp_path / name, rows)
    splits = load(tmp_path, ROLES)
    assert splits.train["text"][:] == [row["text"] for row in ROWS[:20]]
    assert splits.valid["text"][:] == [row["text"] for row in ROWS[20:28]]
    assert splits.test["text"][:] == [row["text"] for row in ROWS[28:]]
    assert splits.notes == []


def test_files_may_come_as_a_list_a_pattern_or_a_mapping(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"x_{n}.csv", rows) for n, rows in (("train", ROWS[:20]), ("dev", ROWS[20:]))]
    want = load(paths, ROLES).fingerprints
    assert load(str(tmp_path / "x_*.csv"), ROLES).fingerprints == want
    assert load({"train": paths[0], "validation": paths[1]}, ROLES).fingerprints == want


def test_files_of_a_folder_without_names_of_splits_are_all_train(tmp_path: Path) -> None:
    write(tmp_path / "part-1.csv", ROWS[:20])
    write(tmp_path / "part-2.csv", ROWS[20:])
    splits = load(tmp_path, ROLES)
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 40


def test_explicit_sources_override_the_splits_of_the_main_one(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.csv", ROWS[:20])
    write(tmp_path / "d" / "test.csv", ROWS[20:24])
    mine = write(tmp_path / "mine.csv", ROWS[24:34])
    splits = load(tmp_path / "d", ROLES, test=str(mine), valid=datasets.Dataset.from_list(ROWS[34:]))
    assert splits.test["text"][0] == "text number 24"
    assert splits.valid["text"][0] == "text number 34"


def test_a_saved_data_set_and_a_dataset_dict_keep_their_splits_and_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    rows = [{"text": str(i), "label": i % 2} for i in range(10)]
    table = datasets.Dataset.from_list(rows, features=features)
    given = datasets.DatasetDict(train=table, validation=table.select([0, 1]), test=table.select([2, 3]))
    given.save_to_disk(tmp_path / "saved")
    for source in (given, tmp_path / "saved"):
        splits = load(source, ROLES)
        assert splits.labels.names == ["z", "a"]
        assert (len(splits.train), splits.valid["label"][:], splits.test["text"][:]) == (10, [0, 1], ["2", "3"])


def test_a_split_column_is_honoured(tmp_path: Path) -> None:
    rows = [row | {"split": ("train", "train", "dev", "Test")[i // 2 % 4]} for i, row in enumerate(ROWS)]
    splits = load(write(tmp_path / "a.csv", rows), ROLES)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (20, 10, 10)
    assert splits.test["text"][0] == "text number 6"


@pytest.mark.parametrize("split_folders", [False, True])
def test_a_folder_of_images_by_class_needs_no_table(split_folders: bool, tmp_path: Path) -> None:
    if split_folders:
        for i, name in enumerate(("train", "val", "test")):
            pictures(tmp_path / name, 4 * (3 - i), 100 * i)
    else:
        pictures(tmp_path, 40)
    splits = load(tmp_path, IMAGES)
    sizes = (12, 8, 4) if split_folders else (32, 4, 4)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == sizes
    assert splits.labels.names == ["cat", "dog"]
    cell = splits.train[0]["image"]
    assert cell["bytes"] is None
    assert Path(cell["path"]).is_file()
    assert splits.train.features["image"] == datasets.Image(decode=False)


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_an_image_folder_with_metadata_takes_its_labels_and_splits(table: str, tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        picture(tmp_path / "images" / f"{i}.png", i)
        split = ("train", "train", "valid", "test")[i // 2 % 4]
        rows.append({"file_name": f"images/{i}.png", "label": ("a", "b")[i % 2], "split": split})
    write(tmp_path / table, rows)
    splits = load(tmp_path, IMAGES)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (8, 2, 2)
    assert splits.columns == {"image": "file_name", "label": "label"}


def test_images_may_be_bytes_in_parquet_or_names_in_a_csv_with_the_same_fingerprint(tmp_path: Path) -> None:
    files = [picture(tmp_path / "p" / f"{i}.png", i) for i in range(20)]
    rows = [{"img": {"bytes": f.read_bytes(), "path": None}, "label": f"c{i % 2}"} for i, f in enumerate(files)]
    parquet = write(tmp_path / "a.parquet", rows)
    plain = write(tmp_path / "b.parquet", [{"img": r["img"]["bytes"], "label": r["label"]} for r in rows])
    named = write(tmp_path / "c.csv", [{"img": f"p/{i}.png", "label": r["label"]} for i, r in enumerate(rows)])
    found = [load(path, IMAGES).fingerprints for path in (parquet, plain, named)]
    assert found[0] == found[1] == found[2]


def test_the_digits_are_small_grey_and_balanced() -> None:
    splits = load("hftl:digits", IMAGES)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (200, 200, 1397)
    assert np.bincount(splits.train["label"]).tolist() == np.bincount(splits.valid["label"]).tolist() == [20] * 10
    image = datasets.Image().decode_example(splits.train[0]["image"])
    assert (image.size, image.mode) == ((32, 32), "L")
    assert all(check.level == "ok" for check in splits.checks)
    assert load("hftl:digits", IMAGES, seed=7).fingerprints == splits.fingerprints


def test_the_reviews_are_read_from_the_three_files_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("train", ROWS[:20]), ("validation", ROWS[20:30]), ("test", ROWS[30:])):
        write(tmp_path / "reviews" / f"{name}.csv", rows)
    monkeypatch.setattr(hftl.data.formats.bundled, "SAMPLES", tmp_path)
    splits = load("hftl:reviews", ROLES)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (20, 10, 10)


def test_text_that_looks_like_nothing_stays_text(tmp_path: Path) -> None:
    texts = ["NA", "null", "None", "nan", "007", "1.50", "true", 'He said "no", twice', "line\nbreak", "ünï©ode"]
    rows = [{"text": text, "label": ("x", "y")[i % 2]} for i, text in enumerate(texts)]
    one = datasets.Dataset.from_list(rows)
    splits = load(write(tmp_path / "a.csv", rows), ROLES, valid=one, test=one)
    assert splits.train["text"][:] == texts


def test_a_tsv_may_have_stray_quotes_or_paired_ones(tmp_path: Path) -> None:
    stray = tmp_path / "a.tsv"
    stray.write_text('text\tlabel\n"Tis good\tx\n6" pan\ty\n' * 1 + "plain\tx\nmore\ty\n", encoding="utf-8")
    assert new_rows(stray, ROLES).inputs["text"][:] == ['"Tis good', '6" pan', "plain", "more"]
    paired = write(tmp_path / "b.tsv", [{"text": 'say "hi"', "label": "x"}, {"text": "a\tb", "label": "y"}])
    assert new_rows(paired, ROLES).inputs["text"][:] == ['say "hi"', "a\tb"]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\na,1\r\n\r\nb,0\r\n")
    assert new_rows(path, ROLES).inputs["text"][:] == ["a", "b"]
    lines = tmp_path / "b.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    assert new_rows(lines, ROLES).inputs["text"][:] == ["a", "b"]


def test_names_with_brackets_and_stars_are_files_not_patterns(tmp_path: Path) -> None:
    assert len(new_rows(write(tmp_path / "a[1]*.csv", ROWS), ROLES).inputs) == 40


def test_columns_are_found_in_any_case_and_mapped_by_name(tmp_path: Path) -> None:
    rows = [{"Sentence1": f"a{i}", "SENTENCE2": f"b{i}", "stars": i % 2, "x": 1} for i in range(30)]
    splits = load(write(tmp_path / "a.csv", rows), ROLES, columns={"label": "stars"})
    assert splits.columns == {"text": "Sentence1", "text_pair": "SENTENCE2", "label": "stars"}
    assert splits.train.column_names == ["text", "text_pair", "label"]
    swapped = load(
        write(tmp_path / "b.csv", rows),
        ROLES,
        columns={"text": "SENTENCE2", "text_pair": "Sentence1", "label": "stars"},
    )
    assert swapped.train[0]["text"].startswith("b")


def test_read_returns_all_rows_in_order_without_labels(tmp_path: Path) -> None:
    rows = new_rows(write(tmp_path / "a.csv", [{"text": f"t{i}"} for i in range(5)]), ROLES).inputs
    assert rows.column_names == ["text"]
    assert rows["text"][:] == ["t0", "t1", "t2", "t3", "t4"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("validation_matched", "valid"),
        ("my-dev-set", "valid"),
        ("Train", "train"),
        ("latest", None),
        ("testing", "test"),
    ],
)
def test_a_split_is_recognised_by_whole_words(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.launch
def test_another_process_with_another_hash_seed_makes_the_same_splits_from_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    pictures(tmp_path / "pictures", 40)
    code = (
        "import sys, json, glob, os\n"
        "from hftl.data.load import load\n"
        "from hftl.data.roles import Role\n"
        "from hftl.tasks.text.classification import TextClassification as task\n"
        "roles = {'text': Role('text', ('text',)), 'label': task.roles['label']}\n"
        "images = {'image': Role('image', ('image',)), 'label': task.roles['label']}\n"
        "found = [load(sys.argv[1], roles, max_train_samples=10), load(sys.argv[2], images)]\n"
        "print(json.dumps([one.fingerprints for one in found]))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    outputs, caches = [], []
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "HF_DATASETS_CACHE": str(tmp_path / "home")}
        environment["PYTHONPATH"] = str(Path(hftl.data.__file__).parents[2])
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "pictures")]
        outputs.append(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
        caches.append({p: p.stat().st_mtime_ns for p in (tmp_path / "home").rglob("*.arrow")})
    assert outputs[0] == outputs[1]
    assert caches[0] == caches[1]
    assert len(caches[0]) >= 4


def test_a_changed_image_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    before = load(tmp_path, IMAGES).fingerprints
    picture(tmp_path / "cat" / "0.png", 999, (9, 9))
    assert load(tmp_path, IMAGES).fingerprints != before
