"""What is fuzzed, as functions of one example: each returns, or raises `UserError`; anything else is a defect.

`test_fuzz` runs a few examples of each with the suite, and `benchmarks/fuzz.py` as many as a night allows.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reports import HOSTILE, classification
from test_report_page import Page

from hftl.cli import main as cli
from hftl.data.formats.decode import open_image, read_mask
from hftl.data.load import load
from hftl.data.new_rows import new_rows
from hftl.data.scan import _look
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.results import predict
from hftl.results.lines import FORMS
from hftl.results.predict import Predictor
from hftl.results.report.card import markdown
from hftl.results.report.page import html
from hftl.results.report.report import Report
from hftl.run.recipe import Recipe
from hftl.settings import spec
from hftl.settings.fields import training_settings
from hftl.strategies import Strategy
from hftl.tasks import augment
from hftl.tasks.augment.base import known
from hftl.tasks.classification import PROBLEM_TYPES
from hftl.tasks.image.classification import ImageClassification
from hftl.tasks.image.segmentation import ImageSegmentation
from hftl.tasks.text.classification import TextClassification

KNOWN = training_settings() | Recipe().own(Recipe().task)
ROWS = [{"text": f"good film {i}", "label": ("bad", "good")[i % 2]} for i in range(24)]


@dataclass(frozen=True)
class Target:
    """One thing to fuzz: `run` takes an example of `examples`."""

    run: Callable[[Any], None]
    examples: st.SearchStrategy[Any]


def fuzz(target: Target, examples: int, last: Path | None = None) -> int:
    """Run a target on so many examples; returns how many ran.

    Args:
        last: a file that is to hold the example that runs, for one that ends the process.

    Raises:
        Exception: the smallest example that is answered with anything but a result or a `UserError`.
    """
    ran = 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.examples)
    def one(example: Any) -> None:
        nonlocal ran
        ran += 1
        if last is not None:
            last.write_text(repr(example), "utf-8")
        with contextlib.suppress(UserError):
            target.run(example)

    one()
    return ran


# --- what a person types ---

names = st.sampled_from([*Strategy.known(), *known(), "x", "__import__", "None", "Lora"])
words = st.sampled_from(["r", "alpha", "decay", "targets", "p", "n", "rate", "model", "**", "lr", "k"])
numbers = (
    st.integers().map(str) | st.floats().map(repr) | st.sampled_from(["9" * 5000, "1e999", "-1", "0x" + "f" * 400])
)
values = st.recursive(
    numbers | st.text(max_size=8).map(repr) | st.sampled_from(["None", "True", "os", "f''", "lambda: 1", "1j", "b''"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    max_leaves=4,
)
arguments = st.lists(values | st.builds("{}={}".format, words, values), max_size=3).map(", ".join)
terms = names | st.builds("{}({})".format, names, arguments)
chains = st.lists(terms, min_size=1, max_size=3).map(" | ".join)
notation = chains | st.text(max_size=40) | st.builds("{}{}{}".format, chains, st.text(max_size=3), chains)

flags = st.sampled_from([f"--{name}" for name in KNOWN]) | st.text(max_size=8).map("--{}".format)
given_words = (
    numbers | st.text(max_size=12) | st.sampled_from(["true", "none", "[1, 2]", '{"a": 1}', "[" * 5000, "{", "nan"])
)
command_lines = st.lists(flags | given_words | st.builds("{}={}".format, flags, given_words), max_size=6)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
dumped = st.dictionaries(st.sampled_from(sorted(KNOWN)) | st.text(max_size=6), plain, max_size=4).map(
    lambda found: yaml.safe_dump(found, allow_unicode=True)
)
signs = st.text(alphabet="abs:-?!&*<{}[],|>'\"%@`#\n\t 01~=.\0\x1b\ufeff", max_size=40)
files = (dumped | signs | st.builds("{}{}{}".format, dumped, signs, dumped)).map(str.encode) | st.binary(max_size=60)


def build_strategy(text: str) -> None:
    assert all(isinstance(part, Strategy) for part in spec.build(text, Strategy.known()))


def build_augmentation(text: str) -> None:
    augment.read(text)


def read_flags(line: list[str]) -> None:
    chosen = cli.read_flags(line, KNOWN)
    assert chosen.keys() <= KNOWN.keys()


def read_settings(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_bytes(content)
        assert isinstance(cli.merge(Recipe(), ["--config", str(path)]), Recipe)


# --- data ---


def csv_bytes() -> bytes:
    return b"text,label\n" + b"".join(f"{row['text']},{row['label']}\n".encode() for row in ROWS)


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def arrow_bytes() -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def image_bytes(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((24, 24), 64).convert(mode).save(file, kind, **options)
    return file.getvalue()


TABLES = {
    "csv": csv_bytes(),
    "tsv": csv_bytes().replace(b",", b"\t"),
    "jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "json": json.dumps(ROWS).encode(),
    "parquet": parquet_bytes(),
    "arrow": arrow_bytes(),
}
PICTURES = [image_bytes(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")]
PICTURES += [image_bytes("PNG", mode) for mode in ("1", "L", "LA", "RGBA", "I;16")]
PICTURES += [image_bytes("PNG", "P", transparency=3), image_bytes("TIFF", "F"), image_bytes("TIFF", "I")]
PICTURES += [image_bytes("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")]
PICTURES += [image_bytes(kind, save_all=True, append_images=[Image.new("RGB", (24, 24))]) for kind in ("GIF", "WEBP")]
pieces = st.binary(max_size=12) | st.sampled_from(
    [
        b'"',
        b",",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"{",
        b"[",
        b"null",
        b"1e999",
        b"\xef\xbb\xbf",
        b"\r",
        b"\t",
        b"=1+1",
        b"-1",
    ]
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30), pieces), min_size=1, max_size=4)


def edited(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """The content with bytes taken out and put in, at places given as a share of its length."""
    for place, gone, new in changes:
        at = int(place * len(content))
        content = content[:at] + new + content[at + gone :]
    return content


def table_of(kind: str) -> st.SearchStrategy[tuple[str, bytes]]:
    return (st.builds(edited, st.just(TABLES[kind]), edits) | st.binary(max_size=200)).map(lambda made: (kind, made))


def read_table(example: tuple[str, bytes]) -> None:
    kind, content = example
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{kind}")
        path.write_bytes(content)
        found = load(str(path), TextClassification.roles, on_bad_row="skip")
        assert len(found.train) > 0
        assert len(new_rows(str(path), TextClassification.roles).inputs) > 0


def saved_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_list(ROWS).save_to_disk(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


SAVED = saved_files()


def read_saved(example: tuple[str, list[tuple[float, int, bytes]]]) -> None:
    name, changes = example
    with tempfile.TemporaryDirectory() as folder:
        for other, content in SAVED.items():
            Path(folder, other).write_bytes(edited(content, changes) if other == name else content)
        found = load(folder, TextClassification.roles, on_bad_row="skip")
        assert all(isinstance(text, str) for text in found.train["text"])


def read_picture(content: bytes) -> None:
    cell = {"bytes": content, "path": None}
    seen = _look(cell, None)
    assert seen.reason or (seen.width > 0 and seen.height > 0)
    try:
        open_image(cell)
    except UserError:
        assert seen.reason, "what training refuses the scan has found"
        raise
    assert not seen.reason
    read_mask(cell)


signed = st.text(alphabet="ab01 [](){}|,;:/'\".-\n\u200bé", max_size=8)
one_cell = st.sampled_from([st.integers(-3, 3), st.floats(), st.booleans(), st.integers(), st.text(max_size=5), signed])
some_cells = one_cell.flatmap(
    lambda cell: st.sampled_from([cell, st.lists(cell, max_size=3), signed.map("[{}]".format)]).flatmap(
        lambda kind: st.lists(st.none() | kind, min_size=2, max_size=6)
    )
)


def read_labels(example: tuple[str | None, list[Any]]) -> None:
    """What training reads of a label is what scoring reads of it."""
    read_as, cells = example
    try:
        table = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(cells))], "label": cells})
    except (pa.ArrowException, OverflowError):  # numbers that no column holds
        return
    roles = TextClassification.roles
    splits = datasets.DatasetDict.fromkeys(("train", "valid", "test"), table)
    found = load(splits, roles, read_as=read_as, on_bad_row="skip")
    scored = new_rows(table, roles).labels(roles["label"], found.labels)
    learnt = dict(zip(found.train["text"], found.train["label"], strict=True))
    assert scored is not None
    assert learnt == {f"t{i}": cell for i, cell in enumerate(scored["label"]) if f"t{i}" in learnt}
    if found.labels.read_as == "multi_label_classification":
        assert {bit for bits in learnt.values() for bit in bits} <= {0, 1}


places = st.lists(
    st.sampled_from(
        ["train", "Testing", "val_set", "a", "b", "images", "masks", "a_mask", "__MACOSX", ".x", "é ", "1", "labels"]
    ),
    max_size=3,
).map("/".join)
file_names = st.builds(
    "{}{}{}".format,
    st.sampled_from(["1", "2", "img_1", "x y", "Thumbs", ".DS_Store", "._1", "metadata", "-1"]),
    st.sampled_from(["", "_mask", "_seg", "_L"]),
    st.sampled_from([".png", ".JPG", ".tif", ".db", ".csv", ".jsonl", "", ".heic"]),
)
contents = (
    st.sampled_from([*PICTURES[:1], image_bytes("PNG", "L"), image_bytes("PNG", "P")])
    | st.just(b"file_name,label\n1.png,a\n2.png,b\n")
    | st.binary(max_size=20)
)
trees = st.dictionaries(st.tuples(places, file_names), contents, min_size=1, max_size=12)


def read_tree(example: tuple[dict[tuple[str, str], bytes], type]) -> None:
    files, task = example
    with tempfile.TemporaryDirectory() as folder:
        for (place, name), content in files.items():
            path = Path(folder, place, name)
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # two names for one place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        with contextlib.suppress(UserError):
            assert len(new_rows(folder, task.roles).inputs) > 0
        found = load(folder, task.roles, on_bad_row="skip")
        assert len(found.train) > 0
        assert all(open_image(cell) for cell in found.train["image"])


class Constant(Predictor):
    """A predictor of a model that finds all texts good."""

    def __init__(self) -> None:
        self.task, self.labels = TextClassification(), Labels("single_label_classification", ["bad", "good"])
        self.processor, self.batch_size, self.columns = None, 4, {"text": "text", "label": "label"}
        self.reads, self.roles = {"text": self.task.roles["text"]}, ["text"]

    def _encoded(self, rows: Any, labels: Any = None) -> list[dict[str, Any]]:
        return [{"length": len(row["text"])} for row in rows]

    def _logits(self, encoded: Any, scored: Any = None) -> Any:
        return [np.array([0.0, 1.0]) for _ in encoded]


def predict_table(example: tuple[tuple[str, bytes], str]) -> None:
    (kind, content), form = example
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        path, output = Path(folder, f"a.{kind}"), Path(folder, f"new{form}")
        path.write_bytes(content)
        with contextlib.redirect_stderr(said), mock.patch.object(predict, "load", return_value=Constant()):
            predict.predict_file("", str(path), str(output), on_bad_row="skip")
        written = new_rows(str(output), {"text": TextClassification.roles["text"]}, columns={"text": "text"})
        assert len(written) > 0


# --- the report ---

strange = (
    st.text(max_size=30)
    | st.sampled_from(HOSTILE)
    | st.text(alphabet="<>&\"'/=-\n:#{}%`|\\ \u202e\x1b\0a", max_size=20)
)


def write_report(found: tuple[list[str], str, str, str]) -> None:
    labels, text, file, strategy = found
    report = classification(labels=labels, text=text, strategy=strategy or "Full", command=file)
    report.data |= {"source": file, "columns": {"text": text, "label": file}, "notes": [text]}
    report.model = file or "m"
    shown = Report.from_dict(json.loads(report.json()))
    page = Page(html(shown))
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("href", "srcdoc")]
    assert all(value.startswith("data:image/") for value in page.values("src"))
    card = markdown(shown)
    assert card.startswith("---\n")
    head = yaml.safe_load(card.split("\n---\n")[0])
    assert head["pipeline_tag"] == report.task
    assert head["library_name"] == "peft"
    assert head.keys() <= {
        *("library_name", "pipeline_tag", "tags", "metrics", "model-index", "datasets", "base_model"),
        *("base_model_relation", "base_model_revision"),
    }
    values = {row["name"]: row["value"] for row in head["model-index"][0]["results"][0]["metrics"]}
    assert values["Accuracy"] == round(report.test["accuracy"].value, 6)


TARGETS = {
    "strategies": Target(build_strategy, notation),
    "augmentations": Target(build_augmentation, notation),
    "flags": Target(read_flags, command_lines),
    "settings files": Target(read_settings, files),
    **{kind: Target(read_table, table_of(kind)) for kind in TABLES},
    "saved data sets": Target(read_saved, st.tuples(st.sampled_from(sorted(SAVED)), edits)),
    "images": Target(read_picture, st.builds(edited, st.sampled_from(PICTURES), edits) | st.binary(max_size=200)),
    "label cells": Target(read_labels, st.tuples(st.sampled_from([None, *PROBLEM_TYPES]), some_cells)),
    "folders": Target(read_tree, st.tuples(trees, st.just(ImageClassification))),
    "masks": Target(read_tree, st.tuples(trees, st.just(ImageSegmentation))),
    "predict": Target(
        predict_table,
        st.tuples(st.sampled_from([*TABLES]).flatmap(table_of), st.sampled_from(FORMS)),
    ),
    "report": Target(
        write_report, st.tuples(st.lists(strange, min_size=2, max_size=4, unique=True), strange, strange, strange)
    ),
}
