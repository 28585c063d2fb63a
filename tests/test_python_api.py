"""What a person in a notebook passes and sees: rows in memory, a metric as a function, a report as a table."""

from __future__ import annotations

from typing import Any

import pandas
import pytest

import hftl
from hftl.data.load import load
from hftl.errors import UserError
from hftl.tasks.text.classification import TextClassification

ROWS = [{"text": f"row {i}", "label": "ab"[i % 2], "id": i} for i in range(40)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
SPLITS = {"train": ROWS[:20], "validation": ROWS[20:30], "test": ROWS[30:]}


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        (row for row in ROWS),
        pandas.DataFrame(ROWS),
        pandas.DataFrame(ROWS).sample(frac=1, random_state=0),
        pandas.DataFrame(ROWS).astype({"label": "category"}),
        COLUMNS,
        SPLITS,
        {name: pandas.DataFrame(rows) for name, rows in SPLITS.items()},
        {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in SPLITS.items()},
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_in_memory_are_data(data: Any) -> None:
    """F5."""
    splits = load(data, TextClassification.roles)
    assert splits.labels.names == ["a", "b"]
    assert sum(len(one) for one in (splits.train, splits.valid, splits.test)) == 40


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([*ROWS, {"text": 3, "label": "a"}], "Expected one kind of value in each column of the list"),
        ((i for i in range(3)), "Expected dicts such as"),
        (3, "Expected a path, a Hub id, a Dataset, a DataFrame or dicts as data; it is of type int"),
        ([], "there are none"),
    ],
    ids=["two kinds", "numbers", "a number", "nothing"],
)
def test_rows_in_memory_that_do_not_fit_are_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(data, TextClassification.roles)


def test_a_metric_is_a_function_and_a_report_shows_its_table(on_text, tmp_path) -> None:
    """F5."""

    def misses(predictions: Any, references: Any) -> float:
        return float((predictions != references).sum())

    settings = on_text | {"data": pandas.read_csv(on_text["data"]), "output_dir": str(tmp_path / "o")}
    report = hftl.Recipe(**settings, metrics=[misses], max_steps=1, disable_tqdm=True).run()
    assert report is not None
    score = report.test["accuracy"]
    assert report.test["misses"].value == pytest.approx((1 - score.value) * score.n)
    assert repr(report).startswith("text-classification")
    assert "misses" in repr(report)
    assert report._repr_html_().startswith("<pre>text-classification")
    assert "misses" in (tmp_path / "o" / "recipe.yaml").read_text()


def test_public_names_are_listed_and_imported() -> None:
    """F5."""
    assert {"Recipe", "load", "LoRA"} <= set(dir(hftl))
    assert not {"Any", "annotations", "importlib", "suggest"} & set(dir(hftl))
    names: dict[str, Any] = {}
    exec("from hftl import *", names)
    assert {"Recipe", "load", "main"} <= names.keys()
