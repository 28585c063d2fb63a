"""How a run starts: what it imports, how long each stage takes, and that the figures reach the report."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from reports import classification

from hftl.models.anatomy import Place
from hftl.results.report import page
from hftl.results.report.report import Report
from hftl.results.report.table import render
from hftl.tasks.base import Task
from hftl.tasks.text.classification import TextClassification
from hftl.train import startup
from hftl.train.rates import RateGroup

UNUSED = {"sklearn", "matplotlib", "evaluate", "torch.utils.tensorboard", "hftl.models.classical", "hftl.testing"}
"""What no plain run has a use for. transformers itself imports peft, scipy, torchvision, PIL and tokenizers."""
IMAGES = {"timm", "transformers.models.timm_wrapper.modeling_timm_wrapper"}
STAGES = ["imports", "data", "model", "trainer", "first batch", "first step"]

RUNS = """
import gc, json, sys
from hftl import Recipe
for settings in json.loads(sys.argv[1]):
    report = Recipe(**settings).run()
    said = {"modules": sorted(sys.modules), "startup": report.startup, "frozen": gc.get_freeze_count()}
    print("SAID", json.dumps(said))
"""


def run_apart(*settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of one step, one after the other in a process of their own, and what each says at its end."""
    words = json.dumps([{"max_steps": 1, "disable_tqdm": True, "cache_gb": 0.0} | each for each in settings])
    done = subprocess.run([sys.executable, "-c", RUNS, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("SAID ")]


@pytest.mark.launch
def test_a_run_imports_what_it_uses_and_accounts_for_its_start(
    tiny_bert: str, reviews_csv: str, tiny_cnn: str, colour_folder: str, tmp_path: Path
) -> None:
    text = {"model": tiny_bert, "data": reviews_csv, "output_dir": str(tmp_path / "text"), "head": "random"}
    image = {"task": "image-classification", "model": tiny_cnn, "data": colour_folder, "head": "random"}
    start = time.perf_counter()
    first, second = run_apart(text, image | {"output_dir": str(tmp_path / "image")})
    wall = time.perf_counter() - start

    assert not (UNUSED | IMAGES) & set(first["modules"])
    assert not UNUSED & set(second["modules"])
    assert set(second["modules"]) >= IMAGES
    for said in (first, second):
        assert list(said["startup"]) == STAGES
        assert all(took > 0 for took in said["startup"].values())
        assert said["frozen"] == 0
    counted = sum(first["startup"].values()) + sum(second["startup"].values())
    assert wall / 3 < counted < wall
    assert second["startup"]["imports"] < first["startup"]["imports"] / 3  # it counts from its own call
    assert Report.from_folder(tmp_path / "text").startup == first["startup"]


def test_the_stages_of_a_clock_add_up_to_the_time_since_its_start() -> None:
    before = time.perf_counter()
    clock = startup.Clock()
    for stage in ("data", "model", "data"):
        time.sleep(0.01)
        clock.mark(stage)
    after = time.perf_counter()
    assert list(clock.seconds) == ["data", "model"]
    assert clock.seconds["data"] > clock.seconds["model"] >= 0.01
    assert 0.03 <= sum(clock.seconds.values()) <= after - before


def test_a_clock_counts_from_the_start_of_the_process_where_torch_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    clock = startup.Clock()
    clock.mark("imports")
    assert clock.seconds["imports"] == pytest.approx(time.process_time(), rel=0.5)


@pytest.mark.usefixtures("unfrozen")
def test_imports_are_not_searched_for_garbage_then_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with startup.imports():
            assert not gc.isenabled()
            kept: list[Any] = []
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
        with pytest.raises(ImportError), startup.imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_where_torch_is_loaded_or_collection_is_off_imports_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with startup.imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    monkeypatch.delitem(sys.modules, "torch")
    gc.disable()
    try:
        with startup.imports():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_the_report_says_how_long_the_start_took() -> None:
    report = classification(startup={"imports": 4.25, "data": 0.1, "first step": 1.0})
    line = "started in 5.3 s: imports 4.2 s, data 0.1 s, first step 1.0 s"
    assert line in render(report).splitlines()
    shown = page.html(report)
    assert "up to the first step</dt><dd>5.3 s</dd>" in shown
    assert "imports 4.2 s, data 0.1 s, first step 1.0 s" in shown.split("<details>")[1]
    assert Report.from_dict(json.loads(report.json())).startup == report.startup
    assert "started in" not in render(classification())
    assert "up to the first step" not in page.html(classification())


def test_wrapping_the_optimizer_does_not_copy_the_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    group = RateGroup(Place("w", 1, 2), (1.0,), {"w": weight})
    copied = copy.deepcopy({"param_groups": [{"lr": 0.1, "rate_group": group}]})
    assert copied["param_groups"][0]["rate_group"].parameters["w"] is weight


def test_rows_of_text_are_told_apart_as_by_any_task() -> None:
    ids = [[5, 6], [5, 6, 7], [5, 6], [], [6, 5]]
    rows = datasets.Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "length": [2, 9, 2, 0, 2], "labels": ids}
    )
    task = TextClassification()
    keys, plain = task.identify(rows, None), Task.identify(task, rows, None)
    assert {len(key) for key in keys} == {16}
    assert [keys.index(key) for key in keys] == [plain.index(key) for key in plain] == [0, 1, 0, 3, 4]
    part = rows.select([4, 1])
    assert task.identify(part, None) == [keys[4], keys[1]]
    assert task.identify(datasets.concatenate_datasets([rows, part]), None) == [*keys, keys[4], keys[1]]


def test_the_end_of_one_column_is_not_the_start_of_the_next() -> None:
    task, columns = (
        TextClassification(),
        datasets.Features({name: datasets.List(datasets.Value("int64")) for name in ("input_ids", "token_type_ids")}),
    )
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [1]], "token_type_ids": [[3], [2, 3]]}, features=columns)
    first, second = task.identify(rows, None)
    assert first != second
