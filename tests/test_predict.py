"""Predictions: computed longest first within a window, and given out in the order in which the rows came."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from hftl import Recipe, testing
from hftl.data.formats.decode import open_image
from hftl.data.new_rows import NewRows, new_rows
from hftl.data.roles import Role
from hftl.data.source import RawSplit
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.results import given, predict
from hftl.results.lines import Lines
from hftl.results.load import Loaded
from hftl.results.predict import Predictor
from hftl.results.report import wording
from hftl.tasks.base import Source, Task
from hftl.train import kernels


def predictor(task: str, model: str) -> Predictor:
    """A predictor with a random head, its widths of batches noted in `widths`."""
    labels = Labels("single_label_classification", ["a", "b"])
    made = Task.known()[task]()
    torch.manual_seed(1)
    built = made.build(Source(model), labels)
    found = Predictor(Loaded(built.model.eval(), built.processor, made, labels))
    found.widths = []
    found.model.register_forward_pre_hook(
        lambda module, args, inputs: found.widths.append(next(iter(inputs.values())).shape), with_kwargs=True
    )
    return found


class Counted(Sequence):
    """Rows that say how far they have been read."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.read = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read = max(self.read, i + 1)
        return self.rows[i]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for text, _ in testing.sentences(60)]


def test_a_list_is_predicted_longest_first_and_comes_back_in_order(tiny_bert, texts, monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 3)
    classify = predictor("text-classification", tiny_bert)
    together = classify(texts, batch_size=4)
    widths = [shape[1] for shape in classify.widths]
    assert len(widths) == 15
    assert all(widths[i : i + 3] == sorted(widths[i : i + 3], reverse=True) for i in range(0, 15, 3))
    assert widths != sorted(widths, reverse=True), "the windows are smaller than the list"
    alone = [classify(text) for text in texts]
    assert len({one["score"] for one in alone}) > 30
    np.testing.assert_allclose([one["score"] for one in together], [one["score"] for one in alone], atol=1e-5)
    assert [one["label"] for one in together] == [one["label"] for one in alone]


def test_no_more_than_a_window_of_rows_is_read_ahead(tiny_bert, texts, monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 3)
    rows, told = Counted([{"text": text} for text in texts]), []
    stream = predictor("text-classification", tiny_bert).stream(rows, 4, told.append)
    next(stream)
    assert rows.read == 12
    assert told == [4, 4, 4]
    assert len(list(stream)) == 59
    assert sum(told) == rows.read == 60


def test_images_are_read_batch_by_batch(tiny_cnn, colour_folder):
    folder = new_rows(colour_folder, {"image": Task.known()["image-classification"].roles["image"]}).inputs
    rows = Counted([folder[i] for i in range(10)])
    found = predictor("image-classification", tiny_cnn)
    stream = found.stream(rows, 4)
    next(stream)
    assert rows.read == 4
    assert len(list(stream)) == 9
    assert [shape[0] for shape in found.widths] == [4, 4, 2]


def test_a_row_without_a_text_is_named_by_its_number(tiny_bert, texts):
    rows = [{"text": text} for text in texts]
    rows[41]["text"] = None
    with pytest.raises(UserError, match="Expected a text in row 42 of the data"):
        list(predictor("text-classification", tiny_bert).stream(rows, 4))
    assert predictor("text-classification", tiny_bert)([]) == []


def test_a_file_of_predictions_keeps_the_order_of_its_rows(tiny_bert, texts, monkeypatch, tmp_path):
    classify = predictor("text-classification", tiny_bert)
    monkeypatch.setattr(predict, "load", lambda folder: classify)
    (tmp_path / "in.txt").write_text("\n".join(texts))
    with (tmp_path / "in.txt").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        predict.predict_file("any", "-", str(tmp_path / "out.csv"), batch_size=7)
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["text"] for row in written] == texts
    scores = [classify(text)["scores"]["a"] for text in texts]
    np.testing.assert_allclose([float(row["score_a"]) for row in written], scores, atol=2e-6)


# --- a file with more than inputs ---


TABLE = partial(pandas.read_csv, dtype=str, keep_default_na=False)


@pytest.fixture
def told(monkeypatch, tmp_path, tiny_bert, capsys):
    """Predict a table of texts, in `tmp_path`; what was written, and what was said."""
    classify = predictor("text-classification", tiny_bert)
    monkeypatch.setattr(predict, "load", lambda folder: classify)
    monkeypatch.chdir(tmp_path)

    def run(columns: dict[str, list], output: str = "out.csv", **how: Any) -> tuple[pandas.DataFrame, str]:
        pandas.DataFrame(columns).to_json("new.jsonl", orient="records", lines=True)
        capsys.readouterr()
        predict.predict_file("any", "new.jsonl", output, **how)
        read = pandas.read_parquet if output.endswith("parquet") else TABLE
        return read(output), capsys.readouterr().out

    return run


def test_every_other_column_is_kept_and_labelled_rows_are_scored(told):
    """P2."""
    columns = {"id": [7, 8, 9, 10], "text": list("wxyz"), "label": ["a", "b", "b", "new"], "prediction": list("1234")}
    table, said = told(columns)
    assert [*table] == ["id", "text", "label", "prediction", "prediction_by_model", "score_a", "score_b"]
    assert table["id"].tolist() == ["7", "8", "9", "10"]
    right = (table["label"] == table["prediction_by_model"])[:3].mean()
    assert f"accuracy             {right:.3f}" in said
    assert "against the labels in 'label', 3 rows" in said
    assert [*told(columns, "only.csv", only=True)[0]] == ["text", "prediction", "score_a", "score_b"]


def test_a_bad_row_is_left_out_and_counted_or_ends_it_and_nothing_done_is_lost(told, tmp_path, capsys, monkeypatch):
    """P3."""
    columns = {"id": [1, 2, 3], "text": ["a", None, "c"]}
    table, said = told(columns, on_bad_row="skip")
    assert table["id"].tolist() == ["1", "3"]
    assert "1 row left out: row 2: no text" in said
    rows = {"id": list(range(5)), "text": [*"abcd", None]}
    monkeypatch.setattr(predict, "WINDOW", 1)
    with pytest.raises(UserError, match="Expected a text in row 5"):
        told(rows, "cut.csv", batch_size=2)
    assert pandas.read_csv(tmp_path / "cut.csv.partial")["id"].tolist() == [0, 1, 2, 3]
    assert "4 rows in cut.csv.partial" in capsys.readouterr().err


def test_what_was_done_before_a_bad_row_is_kept_also_within_a_window(told, tmp_path):
    """P3."""
    with pytest.raises(UserError, match="Expected a text in row 65"):
        told({"id": list(range(73)), "text": ["a"] * 64 + [None] + ["b"] * 8}, "cut.csv")
    assert pandas.read_csv(tmp_path / "cut.csv.partial")["id"].tolist() == list(range(64))
    assert len(told({"text": [None, *"ab" * 40]}, "first.csv", on_bad_row="skip")[0]) == 80


NONE = [float("nan")] * 2


@pytest.mark.parametrize(
    ("word", "names", "cells", "found"),
    [
        ("single_label_classification", ["neg", "pos"], ["pos", " neg", "new", None], [1, 0, -1, -1]),
        ("single_label_classification", ["false", "true"], ["True", "FALSE"], [1, 0]),
        ("multi_label_classification", ["a", "b"], ["a|b", "b|c", None], [[1, 1], NONE, NONE]),
        ("multi_label_classification", ["0", "1", "2"], [[1, 0, 1], [1, 1, 0]], [[1, 0, 1], [1, 1, 0]]),
        ("multi_label_classification", ["0", "1", "2"], [[0], [1, 2]], [[1, 0, 0], [0, 1, 1]]),
        ("token_classification", ["B-X", "O"], [["O", "B-X"], ["O", "B-Z"], None], [[1, 0], [1, -1], []]),
    ],
)
def test_labels_are_read_as_the_model_has_learnt_them(word, names, cells, found):
    """A vector of 0 and 1 that is read as ids, or "True" that is no label, gives a score of something else."""
    roles = (task.roles["label"] for task in Task.known().values() if "label" in task.roles)
    role = next(one for one in roles if word in one.reads)
    data = datasets.Dataset.from_dict({"text": ["a"] * len(cells), "label": cells})
    rows = NewRows(data.select_columns(["text"]), {"text": "text", "label": "label"}, [], RawSplit(data, "a"), None)
    read = rows.labels(role, Labels(word, names))
    assert read is not None
    for one, right in zip(read["label"], found, strict=True):
        np.testing.assert_array_equal(one, right)


def test_labels_that_read_in_another_way_are_kept_and_said(told):
    table, said = told({"text": ["x", "y"], "label": [["a"], ["b"]]})
    assert table["label"].tolist() == ["a", "b"]
    assert "the labels in 'label' were not scored: they do not read as single_label_classification" in said
    assert "no row has a label in 'label' that the model knows" in told({"text": ["x"], "label": ["new"]}, "new.csv")[1]


def test_cells_keep_their_kind_where_the_form_has_kinds(told):
    columns = {"text": ["x", "y"], "n": [1, None], "tags": [["a", "b"], []], "prediction_by_model": [0, 0]}
    columns |= {"meta": [{"k": "é"}, {"k": "e"}]}
    table, _ = told(columns | {"prediction": [1, 2]})
    assert table["n"].tolist() == ["1.0", ""]
    assert table["tags"].tolist() == ["a|b", ""]
    assert table["meta"].tolist() == ['{"k": "é"}', '{"k": "e"}']
    assert "prediction_by_model_by_model" in table
    held, _ = told(columns, "out.parquet")
    assert held["score_a"].dtype == np.float64
    assert held["n"].isna().tolist() == [False, True]
    assert held["tags"].map(list).tolist() == [["a", "b"], []]


def test_splits_of_a_column_or_of_files_are_said_and_can_be_asked_for(tmp_path):
    """P2."""
    roles = TEXT | {"label": Task.known()["text-classification"].roles["label"]}
    (tmp_path / "one.csv").write_text("text,split\na,train\nb,dev\nc,train\n")
    whole = new_rows(tmp_path / "one.csv", roles)
    assert (len(whole), whole.notes[1:]) == (3, ["all rows were read, of the splits train, valid; --split takes one"])
    assert len(new_rows(tmp_path / "one.csv", roles, split="validation")) == 1
    (tmp_path / "files").mkdir()
    for name in ("train", "dev", "readme"):
        (tmp_path / "files" / f"{name}.csv").write_text("text\na\n")
    with pytest.raises(UserError, match="Pass --split NAME"):
        new_rows(tmp_path / "files", roles)
    notes = new_rows(tmp_path / "files", roles, split="dev").notes[1:]
    assert notes == [
        "the split valid was read; --split takes train, too",
        "readme.csv was not read: its name names no split",
    ]


def test_columns_of_0_and_1_stay_columns_and_are_read_as_several_labels(tmp_path):
    (tmp_path / "one.csv").write_text("text,toxic,threat\na,1,0\nb,0,x\n")
    role = Task.known()["text-classification"].roles["label"]
    rows = new_rows(tmp_path / "one.csv", TEXT | {"label": role}, trained={"label": "toxic,threat"})
    assert rows.line(0) == {"text": "a", "toxic": "1", "threat": "0"}
    with pytest.raises(UserError, match="row 2 has 'x'"):
        rows.labels(role, Labels("multi_label_classification", ["toxic", "threat"]))
    with pytest.raises(UserError, match="Expected a column 'nope'"):
        new_rows(tmp_path / "one.csv", TEXT | {"label": role}, columns={"label": "nope"})
    assert new_rows(tmp_path / "one.csv", TEXT, trained={"text": "Text"}).columns == {"text": "text"}


def test_images_are_named_by_folder_and_file_and_a_broken_one_is_left_out(colour_folder, tmp_path, tiny_cnn):
    """P2, P3: image_0006.jpg of which class?"""
    import shutil

    shutil.copytree(colour_folder, tmp_path / "data")
    rows = new_rows(tmp_path / "data", Task.known()["image-classification"].roles)
    names = [rows.line(i)["image"] for i in range(len(rows))]
    assert len({*names}) == len(names)
    assert all((tmp_path / "data" / name).is_file() for name in names)
    (tmp_path / "data" / names[3]).write_bytes(b"no image")
    bad: dict[int, str] = {}
    found = list(predictor("image-classification", tiny_cnn).stream(rows.inputs, 4, skip=bad.__setitem__))
    assert [i for i, one in enumerate(found) if one is None] == [*bad] == [3]
    stream = predictor("image-classification", tiny_cnn).stream(rows.inputs, 4)
    assert len([next(stream) for _ in range(3)]) == 3
    with pytest.raises(UserError, match=rf"Row 4: .*{names[3]}"):
        next(stream)


def test_a_label_is_given_from_the_threshold_on_that_the_folder_keeps(tiny_bert, tmp_path, monkeypatch):
    """P8."""
    labels = Labels("multi_label_classification", ["a", "b"])
    task = Task.known()["text-classification"](threshold=0.2)
    rows, logits = [{"text": "x"}] * 2, [np.array([-1.0, -2.0]), np.array([-3.0, 1.0])]
    assert [one["label"] for one in task.answers(logits, rows, labels)] == [["a"], ["b"]]
    task.cut_at(0.1, labels)
    assert [one["label"] for one in task.answers(logits, rows, labels)] == [["a", "b"], ["b"]]
    with pytest.raises(UserError, match="--threshold is for several labels a row"):
        task.cut_at(0.1, Labels("single_label_classification", ["a", "b"]))


def test_a_file_scores_as_the_report_does_at_the_folders_threshold(tiny_bert, tmp_path, capsys):
    """P2, P8."""
    for name, seed in (("train", 1), ("test", 2)):
        texts = [text for text, _ in testing.sentences(60, seed)]
        rows = {"text": texts, "label": [[str(word) for word in ("w1", "film") if word in text] for text in texts]}
        pandas.DataFrame(rows).to_json(tmp_path / f"{name}.jsonl", orient="records", lines=True)
    data, folder = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}, tmp_path / "run"
    quick = {"num_train_epochs": 1, "disable_tqdm": True, "output_dir": str(folder)}
    report = Recipe(model=tiny_bert, data=data, threshold=0.3, **quick).run()
    capsys.readouterr()
    predict.predict_file(str(folder), data["test"], str(tmp_path / "out.csv"))
    said = capsys.readouterr().out
    assert predict.load(folder).task.threshold == 0.3
    for name, score in report.test.items():
        assert f"  {name.ljust(20)} {wording.score(score)}" in said


# --- what people hand over ---

PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
PNG = io.BytesIO()
Image.fromarray(PIXELS).save(PNG, "png")
IMAGE, TEXT = {"image": Role("image", ("image",))}, {"text": Role("text", ("text",))}
PAIR = TEXT | {"text_pair": Role("text", ("text_pair",))}


@pytest.mark.parametrize(
    ("inputs", "count"),
    [
        ("a text", None),
        (("a", "b"), None),
        ([], 0),
        (["a", "b"], 2),
        (np.array(["a", "b"]), 2),
        ((text for text in "abc"), 3),
        (pandas.Series(["a", "b"]), 2),
        (pandas.DataFrame({"text": ["a", "b"], "id": [1, 2]}), 2),
        (datasets.Dataset.from_dict({"text": ["a", "b"]}), 2),
        (datasets.Dataset.from_dict({"text": ["a", "b"]})["text"], 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_several_inputs_are_told_from_one(inputs, count):
    found = given.many(inputs, TEXT["text"])
    assert (found if found is None else len(found)) == count
    for value in found or []:
        assert isinstance(given.row(value, TEXT)["text"], str)


@pytest.mark.parametrize(
    "value",
    [
        PNG.getvalue(),
        io.BytesIO(PNG.getvalue()),
        PIXELS,
        torch.tensor(PIXELS),
        torch.tensor(PIXELS).permute(2, 0, 1),
        (PIXELS / 255).astype(np.float32),
        Image.fromarray(PIXELS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_image_comes_in_every_form_that_people_have(value):
    assert given.many(value, IMAGE["image"]) is None
    found = open_image(given.row(value, IMAGE)["image"])
    np.testing.assert_array_equal(np.asarray(found.convert("RGB")), PIXELS)


def test_a_stack_of_images_is_several():
    assert len(given.many(np.stack([PIXELS, PIXELS]), IMAGE["image"]) or []) == 2


@pytest.mark.parametrize(
    ("value", "roles", "sentence"),
    [
        ("a", PAIR, "Expected 2 values a row"),
        (("a", "b"), TEXT, "Expected 1 value a row"),
        (None, TEXT, "Expected a text for text; nothing came"),
        (3, TEXT, "Expected a text for text; a int came"),
        (np.zeros((2, 2, 7)), IMAGE, "Expected pixels of shape"),
        (np.full((4, 4, 3), 300), IMAGE, "Expected integers from 0 to 255"),
        ({"txt": "a"}, TEXT, "Expected the key"),
        ({"tokens": ["a", 3]}, {"tokens": Role("words", ("tokens",))}, "Expected a list of texts for tokens; a int"),
    ],
)
def test_what_no_role_reads_is_one_short_sentence(value, roles, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        given.row(value, roles)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("value", "trained"),
    [
        ({"text": "a", "pair": "b"}, {}),
        ({"question": "a", "sentence": "b", "text": "c"}, {"text": "question", "text_pair": "sentence"}),
        ({"text": "a", "text_pair": "b"}, {"text": "question", "text_pair": "text"}),
    ],
)
def test_a_pair_may_be_called_so_and_as_in_training(value, trained):
    """P1."""
    assert given.row(value, PAIR, trained) == {"text": "a", "text_pair": "b"}


def test_rows_that_are_cut_are_counted(told):
    """T15."""
    said = told({"text": ["a", "b " * 100, "c " * 62, "d " * 63]})[1]
    assert "2 rows with more than the 64 tokens that are read of each: the rest was left out (first: row 2)" in said
    assert "columns: text = text" in said


def test_what_was_done_before_ctrl_c_is_given_out(tiny_bert, texts):
    """P3: of a window as well, whose batches go by length."""
    classify, done = predictor("text-classification", tiny_bert), []

    def tell(count: int) -> None:
        done.append(count)
        if sum(done) == 8:
            raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(one for one in classify.stream([{"text": text} for text in texts], 4, tell) if one)
    assert len(found) == 8


def test_loose_images_are_named_relative_to_their_folder_and_other_files_are_said(tmp_path, monkeypatch):
    """P2."""
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("one.png", "deep/two.png"):
        Image.fromarray(PIXELS).save(tmp_path / "new" / name)
    (tmp_path / "new" / "three.heic").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    rows = new_rows("new", IMAGE)
    assert [rows.line(i)["image"] for i in range(2)] == ["one.png", "deep/two.png"]
    assert rows.notes == [
        "columns: image = image",
        "images lie in the folder itself, so the folders in it were not read as labels",
        "files that were not read: 1 (1 .heic)",
    ]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
def test_predictions_are_written_in_the_form_that_the_name_tells(name, tmp_path):
    with Lines(str(tmp_path / name)) as lines:
        lines.add({"text": "a, b", "prediction": "x", "x": 0.5})
        lines.add({"text": "c", "prediction": "y", "x": 0.25})
    read: dict[str, Any] = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}
    read[".tsv"], read[".jsonl"] = partial(pandas.read_csv, sep="\t"), partial(pandas.read_json, lines=True)
    assert read[Path(name).suffix](tmp_path / name).to_dict("list") == {
        "text": ["a, b", "c"],
        "prediction": ["x", "y"],
        "x": [0.5, 0.25],
    }
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(UserError, match="tells no form"):
        Lines("out.xlsx")


def test_images_of_several_forms_may_stand_in_one_list(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    undecoded = {"bytes": None, "path": str(tmp_path / "one.png")}
    mixed = [str(tmp_path / "one.png"), Image.fromarray(PIXELS), PNG.getvalue(), tmp_path / "one.png", undecoded]
    column = [given.row(value, IMAGE)["image"] for value in mixed]
    assert all(np.array_equal(np.asarray(open_image(one)), PIXELS) for one in column)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_many_threads_get_what_one_gets_and_nothing_is_printed(kind, tiny_bert, tiny_cnn, texts, colour_folder, capfd):
    """P6."""
    asked: list[Any] = texts if kind == "text" else sorted(Path(colour_folder).rglob("*.png"))[:40]
    call = predictor(*(("text-classification", tiny_bert) if kind == "text" else ("image-classification", tiny_cnn)))
    capfd.readouterr()
    alone = [call(one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, asked)) == alone
    assert capfd.readouterr() == ("", "")


def test_texts_are_cut_alike_by_many_threads(tiny_bert):
    """Without a lock one in a hundred is cut where another thread's is, or not at all."""
    read = predictor("text-classification", tiny_bert)
    asked = [{"text": "good film " * (60 if i % 3 else 2)} for i in range(1500)]
    wanted = [read.batch([row])["input_ids"].shape for row in asked[:3]] * 500
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda row: read.batch([row])["input_ids"].shape, asked)) == wanted
    finally:
        sys.setswitchinterval(before)


def test_images_are_laid_out_and_parted_as_a_cpu_computes_them_fastest(tiny_cnn, colour_folder, monkeypatch):
    monkeypatch.setattr(kernels, "ENOUGH", 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    classify = predictor("image-classification", tiny_cnn)
    classify(sorted(Path(colour_folder).rglob("*.png"))[:10])
    assert [shape[0] for shape in classify.widths] == [8, 2]
    four = [weight for weight in classify.model.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in four)
