"""Each mistake in data ends in one sentence that says what to type."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import IMAGES, ROLES, ROWS, _own_cache, picture, pictures, write  # noqa: F401

from hftl.data.load import load
from hftl.data.roles import Role
from hftl.errors import UserError

GOOD = "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(20))
AMOUNTS = "text,label\n" + "".join(f"text {i},{i}.5\n" for i in range(20))
NUMBERS = {"read_as": "regression"}


def not_text() -> bytes:
    """A parquet file whose column of texts holds bytes that are none."""
    file, cells = io.BytesIO(), pa.array([b"caf\xe9"] * 9, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": cells, "label": ["a"] * 9}), file)
    return file.getvalue()


FILES: dict[str, tuple[Any, ...]] = {  # name, content, sentence, and what is asked for besides
    "empty": ("a.csv", b"", "Expected rows in a.csv; the file is empty."),
    "only a mark": ("a.csv", b"\xef\xbb\xbf\n", "Expected rows in a.csv; the file is empty."),
    "header only": ("a.csv", b"text,label\n", "it has a header (text, label) and nothing below."),
    "semicolons": ("a.csv", b"text;label\na;1\n", "its header 'text;label' has semicolons. Save it with commas."),
    "tabs": ("a.csv", b"text\tlabel\na\t1\n", "has tabs. Rename it to .tsv."),
    "commas in tsv": ("a.tsv", b"text,label\na,1\n", "has commas. Save it with tabs."),
    "latin 1": (
        "a.csv",
        GOOD.encode() + b"caf\xe9,1\n",
        f"at position {len(GOOD) + 3} (line 22) is not. Convert it: iconv -f WINDOWS-1252 -t UTF-8 a.csv > a-utf8.csv",
    ),
    "utf 16": ("a.csv", GOOD.encode("utf-16"), "byte 0xFF at position 0 (line 1) is not. Convert it: iconv -f UTF-16"),
    "latin 1 json": ("a.jsonl", b'{"text": "caf\xe9", "label": 1}\n', "byte 0xE9 at position 13 (line 1)"),
    "ragged": ("a.csv", GOOD.encode() + b"a,1,2\n", "Expected 2 cells in row 22 of a.csv, as in its header (row 1)"),
    "ragged at once": ("a.csv", b"text,label\na,1,2\nb,0,3\n", "Expected 2 cells in row 2 of a.csv"),
    "open quote": ("a.csv", b'text,label\na,1\n"b,0\nc,1\n', "A quote that opens in data row 2 of a.csv never closes."),
    "column twice": ("a.csv", b"text,text,label\na,b,1\n", "its header has 'text' more than once."),
    "bad json": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "Line 2 of a.jsonl is not JSON"),
    "json of numbers": ("a.jsonl", b"1\n2\n", 'Expected an object like {"text": ...} in line 1 of a.jsonl.'),
    "json null, of which pyarrow dies": (
        "a.jsonl",
        b'null\n{"text": "a"}\n',
        'Expected an object like {"text": ...} in line 1',
    ),
    "json null and more": ("a.jsonl", b'nullx"}\n{"text": "a"}\n', "Line 1 of a.jsonl is not JSON: Extra data."),
    "json null further down": ("a.json", b'{"text": "a"}\r\n null', 'Expected an object like {"text": ...} in line 2'),
    "bad json array": ("a.json", b'[{"text": "a"},\n{"text": }]', "a.json is not JSON at line 2"),
    "not parquet": ("a.parquet", b"junk", "a.parquet cannot be read as parquet: "),
    "not text in parquet": ("a.parquet", not_text(), "read as parquet: Column 0: In chunk 0: Invalid: Invalid UTF8"),
    "not arrow": ("a.arrow", b"junk", "a.arrow cannot be read as arrow: "),
    "another ending": ("a.xlsx", b"junk", "Expected a file that ends in .csv, .tsv"),
    "a spreadsheet": ("a.xlsx", b"PK", "Convert it to csv"),
    "only zeros": ("a.csv", b"text,label\n" + b"\0" * 500, "a.csv"),
    "a number that is none": ("a.csv", AMOUNTS.encode() + b"b,nan\n", "it has no label (1 bad of 21 rows)."),
    "a word among numbers": ("a.csv", AMOUNTS.encode() + b"b,high\n", "it has 'high'", NUMBERS),
    "an infinite number": ("a.csv", AMOUNTS.encode() + b"b,inf\n", "it has 'inf'", NUMBERS),
    "a number beyond float32": ("a.csv", AMOUNTS.encode() + b"b,1e60\n", "it has '1e60'", NUMBERS),
    "null for a text": (
        "a.jsonl",
        b'{"text": null, "label": "a"}\n{"text": "x", "label": "b"}\n',
        "data row 1 of a.jsonl; it has an empty text",
    ),
    "no good row": ("a.csv", b"text,label\n" + b" ,x\n ,y\n" * 3, "at least one good row", {"on_bad_row": "skip"}),
    "one column for two roles": (
        "a.csv",
        GOOD.encode(),
        "a column of its own for --label; 'label' has another role",
        {"columns": {"text": "label", "label": "label"}},
    ),
    "no label column": (
        "reviews.csv",
        b"text,stars\na,1\nb,0\n",
        "Expected a column 'label' in reviews.csv; it has text, stars. Pass --label stars.",
    ),
    "no text column": (
        "a.csv",
        b"review,label\na,1\n",
        "Expected a column 'text' in a.csv; it has review, label. Pass --text review.",
    ),
    "empty text": (
        "a.csv",
        GOOD.encode() + b",1\n  ,0\n",
        "Expected a full row in data row 21 of a.csv; it has an empty text (2 bad of 22 rows). "
        "Correct it, or pass --on_bad_row skip.",
    ),
    "empty label": ("a.csv", GOOD.encode() + b"a,\n", "data row 21 of a.csv; it has no label (1 bad of 21 rows)."),
    "short row": ("a.csv", GOOD.encode() + b"a\n", "data row 21 of a.csv; it has no label (1 bad of 21 rows)."),
    "no label at all": ("a.csv", b"text,label\na,\nb,\n", "no row of train has one. Pass --label COLUMN."),
    "one class": (
        "a.csv",
        b"text,label\na,x\nb,x\n",
        "Expected at least two classes in column 'label' of a.csv; every row of train is 'x'.",
    ),
    "a class per row": (
        "a.csv",
        ("text,label\n" + "".join(f"t{i},id{i}\n" for i in range(30))).encode(),
        "each of the 30 rows of train has its own. Pass --label COLUMN",
    ),
    "too few rows": (
        "a.csv",
        b"text,label\na,x\nb,y\n",
        "2 different rows do not go round. Add rows, or pass --test FILE.",
    ),
    "only numbers of one size": (
        "a.csv",
        b"text,label\na,1.5\nb,1.5\n",
        "Expected different numbers in column 'label' of a.csv",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_named_with_its_cure(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, content, sentence, *options = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load(tmp_path / name, ROLES, **(options[0] if options else {}))
    assert "\n" not in str(caught.value)
    assert "Failed to" not in capfd.readouterr().err, "datasets has said it, too"


def test_a_saved_data_set_whose_texts_lie_outside_the_file_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "seven x", "label": f"{i % 2}"} for i in range(20)]).save_to_disk(tmp_path)
    file = tmp_path / "data-00000-of-00001.arrow"
    begins = struct.pack("<3i", 0, 7, 14)
    assert file.read_bytes().count(begins) == 1
    file.write_bytes(file.read_bytes().replace(begins, struct.pack("<3i", 0, 7, 2**30)))
    with pytest.raises(UserError, match=r"looks like save_to_disk's, but cannot be read: .*out of bounds"):
        load(tmp_path, ROLES)


def rows(**columns: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


TEXTS = [f"text {i}" for i in range(20)]
BINARY = [i % 2 for i in range(20)]
CALLS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "problem type": (ROWS, {"read_as": "regresion"}, "it is 'regresion'. Did you mean 'regression'?"),
    "bad row word": (ROWS, {"on_bad_row": "ignore"}, "Expected --on_bad_row error or skip; it is 'ignore'."),
    "no such column": (
        ROWS,
        {"columns": {"label": "lable"}},
        "Expected a column 'lable' in the Dataset; it has text, label, other. Did you mean 'label'? Pass --label",
    ),
    "no such role": (ROWS, {"columns": {"txt": "text"}}, "'txt' is none. Did you mean 'text'?"),
    "no rows wanted": (ROWS, {"max_train_samples": 0}, "Expected --max_train_samples of 1 or more; it is 0."),
    "fewer rows than classes": (ROWS, {"max_train_samples": 1}, "Pass --max_train_samples 2."),
    "numbers as text": (
        rows(text=BINARY, label=BINARY),
        {},
        "Expected text in column 'text' of the Dataset; it holds int64. Pass --text COLUMN.",
    ),
    "words for numbers": (
        ROWS,
        NUMBERS,
        "for --problem_type regression; it has 'neg'. Correct it, or pass --problem_type single_label",
    ),
    "lists for one class": (
        rows(text=TEXTS, label=[["a"], ["b"]] * 10),
        {"read_as": "single_label_classification"},
        "its rows hold lists. Pass --problem_type multi_label_classification.",
    ),
    "lists for numbers": (
        rows(text=TEXTS, label=[[1], [2]] * 10),
        {"read_as": "regression"},
        "its rows hold lists",
    ),
    "lists of amounts": (rows(text=TEXTS, label=[[0.5, 2.0]] * 20), {}, "they hold other numbers."),
    "structs": (
        rows(text=TEXTS, label=[{"a": 1}] * 20),
        {},
        "Expected texts, numbers or lists of them in column 'label'",
    ),
    "no train": ({"test": datasets.Dataset.from_list(ROWS)}, {}, "Expected a train split in"),
    "a typo in a label of valid": (
        ROWS,
        {"valid": rows(text=["a", "b"], label=["postive", "neg"])},
        "Expected the labels of column 'label' of",
    ),
    "a new label in test": (
        ROWS,
        {"test": rows(text=["a", "b"], label=["pos", "postive"])},
        "those of train ('neg', 'pos'); test also has 'postive'. Did you mean 'pos'? Correct them, or add such rows",
    ),
    "another kind of label": (
        ROWS,
        {"valid": rows(text=["a"], label=[["pos"]])},
        "has lists and train has single labels.",
    ),
    "words among numbers": (
        rows(text=TEXTS, label=[0.5, 1.5] * 10),
        {"test": rows(text=["a"], label=["high"])},
        "as in train; it has 'high'.",
    ),
    "a test without labels": (ROWS, {"test": rows(text=["a"])}, "Leave --test out; hftl predict reads it."),
    "a test without text": (
        ROWS,
        {"test": rows(body=["a"], mark=["pos"])},
        "Expected a column 'text' in the Dataset; it has body, mark. Pass --text body.",
    ),
    "a pair without its second": (
        rows(text=TEXTS, text_pair=TEXTS, label=BINARY),
        {"test": rows(text=["a"], label=[1])},
        "Expected a column 'text_pair' in",
    ),
    "an unknown sample": ("hftl:digit", {}, "it is 'hftl:digit'. Did you mean 'digits'?"),
    "no such file": ("nowhere/reviews.csv", {}, "Expected a file or folder at nowhere/reviews.csv; there is none."),
    "no name": ("", {}, "it is empty. Pass --data FILE"),
    "a name that the Hub forbids": ("some one/..", {}, "some one/.."),
    "no such pattern": ("nowhere/*.csv", {}, "Expected files at nowhere/*.csv; there are none."),
    "no Hub": ("someone/something", {}, "called someone/something; no such path, and the Hub cannot be reached."),
    "a number": (3, {}, "it is of type int."),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_is_answered_with_what_to_type(case: str) -> None:
    source, options, sentence = CALLS[case]
    source = datasets.Dataset.from_list(source) if isinstance(source, list) else source
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load(source, ROLES, **options)
    assert "\n" not in str(caught.value)


def test_a_misspelt_file_is_guessed(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(UserError, match=r"there is none\. Did you mean 'reviews\.csv'\?"):
        load(tmp_path / "review.csv", ROLES)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_file_name_in_the_data_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "secret.png", 1)
    folder = tmp_path / "data"
    picture(folder / "a.png", 2)
    write(folder / "metadata.csv", [{"file_name": "a.png", "label": "x"}, {"file_name": name, "label": "y"}])
    with pytest.raises(UserError, match=f"inside it; a row names '{re.escape(name)}'"):
        load(folder, IMAGES)


def test_a_path_that_hides_among_bytes_cannot_leave_the_folder(tmp_path: Path) -> None:
    inside, outside = picture(tmp_path / "d" / "a.png", 1), picture(tmp_path / "secret.png", 2)
    cells = [{"bytes": inside.read_bytes(), "path": None}, {"bytes": None, "path": str(outside)}]
    path = write(tmp_path / "d" / "a.parquet", [{"image": cell, "label": f"{i}"} for i, cell in enumerate(cells)])
    with pytest.raises(UserError, match="Expected images inside the folder of the data"):
        load(path, IMAGES)


def test_images_and_texts_are_told_apart_and_images_lie_in_a_folder_by_class(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", 8)
    (tmp_path / "a.csv").write_text(GOOD)
    for source, roles, sentence in (
        ("a.csv", IMAGES, "Expected a column 'image' in a.csv"),
        ("photos", ROLES, "Expected a column 'text' in photos"),
        ("photos/cat", IMAGES, r"one folder of images per class"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(tmp_path / source, roles)
    for path in (tmp_path / "photos" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"two classes.* 'cat'"):
        load(tmp_path / "photos", IMAGES)


def test_a_folder_without_images_or_tables_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"Expected in .* one folder of images per class.* it holds notes\.txt\."):
        load(tmp_path, IMAGES)


def test_unreadable_images_are_named_counted_and_can_be_skipped(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    whole = picture(tmp_path / "cat" / "cut.jpg", 7, (64, 64)).read_bytes()
    (tmp_path / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "zero.png").write_bytes(b"")
    (tmp_path / "dog" / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"the unreadable image cat/cut\.jpg \(.*truncated.*\) \(3 bad of 43 rows\)"):
        load(tmp_path, IMAGES)
    splits = load(tmp_path, IMAGES, on_bad_row="skip")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 40
    check = next(check for check in splits.checks if check.name == "bad rows")
    assert (check.level, check.sentence) == ("warn", "3 of 43 rows of all splits were left out (--on_bad_row skip)")
    reasons = {row["reason"] for row in check.details}
    assert "the unreadable image dog/zero.png (the file is empty)" in reasons
    assert "the unreadable image dog/text.png (not an image)" in reasons


def test_a_missing_image_is_a_bad_row(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    table = [{"file_name": name, "label": label} for name, label in (("a.png", "x"), ("gone.png", "y"))]
    write(tmp_path / "metadata.csv", table)
    with pytest.raises(UserError, match=r"the unreadable image gone\.png \(No such file or directory\)"):
        load(tmp_path, IMAGES)


def test_a_file_name_column_in_memory_has_no_folder_to_start_from() -> None:
    table = rows(image=["a.png", "b.png"], label=["x", "y"])
    with pytest.raises(UserError, match=r"Cast it: data\.cast_column\('image', datasets\.Image\(\)\)"):
        load(table, {"image": Role("image", ("image",)), "label": ROLES["label"]})


def test_an_iterable_data_set_is_refused_with_a_cure() -> None:
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(UserError, match=r"type IterableDataset\. Make a Dataset of it"):
        load(stream, ROLES)
