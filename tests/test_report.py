"""The report: what report.json holds, what is kept out of it, and what the terminal says."""

from __future__ import annotations

import errno
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import classification, errors, hostile, regression, scores

from hftl.errors import UserError
from hftl.results.privacy import HIDDEN
from hftl.results.report import wording
from hftl.results.report.plain import plain
from hftl.results.report.report import Adapted, Report
from hftl.results.report.table import own_commands, render
from hftl.results.report.verdict import limits, verdict
from hftl.results.report.write import write
from hftl.settings.visible import cut, visible
from hftl.tasks.image.classification import ImageClassification
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.sections import confused

TOKEN = "hf_" + "aB3dE6gH9" * 3


def strict(text: str) -> dict:
    """JSON as RFC 8259 has it: Python's NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_report_json_holds_what_the_issue_asks_for(tmp_path: Path) -> None:
    write(classification(), tmp_path)
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["test"]["accuracy"] == {"value": 0.87, "low": 0.825, "high": 0.915, "n": 500}
    assert found["valid"].keys() == found["test"].keys()
    assert {"seconds", "examples_per_second", "forward_passes", "trainable", "total", "peak_memory"} <= found.keys()
    assert {"seed", "versions"} <= found.keys()
    assert set(found["data"]["fingerprints"]) == {"train", "valid", "test"}


@pytest.mark.parametrize("make", [classification, regression, hostile])
def test_a_written_report_reads_back_the_same(make, tmp_path: Path) -> None:
    report = make()
    write(report, tmp_path)
    again = Report.from_folder(tmp_path)
    assert again.folder == tmp_path.as_posix()  # where it was read; all else is as it was written
    again.folder = report.folder
    assert again.as_dict() == report.as_dict()
    assert isinstance(again.test[again.headline], Score)
    assert again.checks[:1] == report.checks[:1]
    assert render(again) == render(Report.from_dict(report.as_dict()))


def test_what_is_not_finite_is_null_in_json_and_nan_in_a_score(tmp_path: Path) -> None:
    report = classification(test={"accuracy": Score(math.nan, -math.inf, math.inf, 5)}, seconds=math.inf)
    write(report, tmp_path)
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["test"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 5}
    assert found["seconds"] is None
    assert found["history"][0]["grad_norm"] is None
    assert math.isnan(Report.from_folder(tmp_path).test["accuracy"].low)
    assert "– on test (n = 5)" in (tmp_path / "report.html").read_text(encoding="utf-8")


NUMPY = st.floats(width=32).map(np.float32) | st.integers(0, 9).map(np.int64) | st.just(np.array([1.0, math.nan]))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | NUMPY | st.builds(Path) | st.just(object)
KEYS = st.text() | st.integers()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.sets(st.integers())))
def test_any_value_becomes_strict_json(value: object) -> None:
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    assert json.loads(text.encode("utf-8")) == plain(value)


def test_no_token_reaches_any_file(tmp_path: Path) -> None:
    report = classification(command=f"x.py --hub_token {TOKEN} --push_to_hub_token=short --data {TOKEN} --seed 1")
    report.settings |= {"hub_token": "short", "nested": {"api_key": "short", "note": f"used {TOKEN}"}, "tokenizer": "t"}
    write(report, tmp_path)
    for path in tmp_path.iterdir():
        assert TOKEN not in path.read_text(encoding="utf-8")
        assert "short" not in path.read_text(encoding="utf-8")
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["settings"]["hub_token"] == HIDDEN
    assert found["settings"]["tokenizer"] == "t"
    assert found["command"].endswith("--seed 1")


def test_a_full_disk_leaves_the_earlier_report_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(classification(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(regression(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "content",
    [None, "", "[1]", "{", '{"task": "x"}', "\udcff", '{"task": "x", "model": "m", "valid": {}, "test": {"a": 1}}'],
)
def test_a_folder_without_a_report_says_so(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="Expected"):
        Report.from_folder(tmp_path)


def test_names_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    write(classification(), tmp_path)
    values = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    (tmp_path / "report.json").write_text(json.dumps(values | {"from_the_future": 1}), encoding="utf-8")
    assert Report.from_folder(tmp_path).task == "text-classification"


def test_words_for_numbers_never_round_a_part_to_all_or_nothing() -> None:
    assert [wording.share(part, 1000) for part in (1000, 999.99, 123, 0.1, 0.001, 0)] == [
        *("100 %", "99.9 %", "12.3 %", "0.01 %", "< 0.01 %", "0 %")
    ]
    assert [wording.duration(s) for s in (4.21, 9.97, 41.2, 59.6, 200, 7500)] == [
        *("4.2 s", "10 s", "41 s", "1 min 00 s", "3 min 20 s", "2 h 05 min")
    ]
    assert [wording.count(n) for n in (0, 1797, 22_713_216, 999_960, 7.1e9)] == [
        "0",
        "1,797",
        "22.7 M",
        "1.0 M",
        "7.1 B",
    ]
    assert [wording.size(n) for n in (12, 1.24e9, 999_999_999, 74e9)] == ["12 B", "1.2 GB", "1.0 GB", "74 GB"]
    assert [wording.number(v) for v in (0.87, 0.0001, 1234.5, math.nan, None)] == [
        "0.870",
        "1.0e-04",
        "1,234.5",
        "–",
        "–",
    ]


@given(st.text())
def test_visible_text_is_one_harmless_line(text: str) -> None:
    found = visible(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", found)
    assert visible(found) == found
    assert len(cut(text, 5)) <= 5


def test_the_verdict_names_the_interval_and_the_trivial_baseline() -> None:
    report = classification(labels=["a", "b"], test=scores(500, ["accuracy"], 0.9))
    report.sections = errors(["a", "b"], [[60, 40], [10, 390]], report)
    assert verdict(report) == (
        "Accuracy 0.900 on test (95 % interval 0.855 to 0.945, n = 500); 0.885 on valid (95 % interval 0.840 to 0.930, "
        "n = 545), which chose the checkpoint. Always answering the most frequent class would give 0.800."
    )
    report.test = scores(500, ["accuracy"], 0.81)
    assert verdict(report).endswith("would give 0.800, which the interval does not exclude.")
    report.test = scores(500, ["accuracy"], 0.8)
    assert verdict(report).endswith("would give 0.800, which this model does not beat.")
    assert "recall 0.600, n = 100" in limits(report)[-1]
    assert "no test result" in " ".join(limits(classification(test={}, sections=[])))


def test_the_verdict_on_another_domain_begins_with_it_and_says_what_chose() -> None:
    report = classification(target=scores(126, ["accuracy"], 0.2), adaptation=Adapted("entropy"))
    assert verdict(report).startswith(
        "Accuracy 0.200 on the target (95 % interval 0.155 to 0.245, n = 126); 0.870 on test"
    )
    assert "which chose the checkpoint" not in verdict(report)
    report.adaptation.select = "source"
    assert "n = 545), which chose the checkpoint." in verdict(report)


def test_the_closing_table_lines_up() -> None:
    lines = render(classification(adapter=False)).splitlines()
    assert lines[:2] == [
        "text-classification  sentence-transformers/all-MiniLM-L6-v2  LoRA(r=8) |",
        "  LayerDecay(0.85)",
    ]
    assert lines[2].split() == ["valid", "(n=545)", "test", "(n=500)"]
    assert lines[3].split() == ["accuracy", "0.885", "[0.840,", "0.930]", "0.870", "[0.825,", "0.915]"]
    assert [lines[2].index("valid"), lines[2].index("test")] == [lines[3].index("0.885"), lines[3].index("0.870")]
    assert not any(line.startswith("f1_ABBR") for line in lines)
    whole = " ".join(line.strip() for line in lines)
    assert "trained in 41 s, 476 examples/s, 22.9 M parameters of which 149.8 k trained (0.66 %), peak" in whole
    assert "Always answering the most frequent class would give accuracy 0." in whole
    assert max(map(len, lines)) <= 80
    assert lines[-3:] == [
        "try next     hftl predict runs/a --data new.csv --output predictions.csv",
        "             accelerate launch recipes/text_cls.py --data ../data/trec \\",
        '               --strategy "LoRA(r=16)" --output_dir runs/lora',
    ]
    third = render(classification(target=scores(126, ["accuracy"]))).splitlines()
    assert max(map(len, third)) <= 80, "a third split stands below"


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("text_cls.py --data a.csv --resume", "accelerate launch recipes/text_cls.py --data a.csv"),
        ("python my.py --output_dir=b --seed 1", "python my.py --seed 1"),
        ("torchrun my.py --data 'a b.csv'", "torchrun my.py --data 'a b.csv'"),
        ("pytest tests", "accelerate launch recipes/text_cls.py"),
        ("python 'unbalanced", "accelerate launch recipes/text_cls.py"),
        ("", "accelerate launch recipes/text_cls.py"),
    ],
)
def test_the_second_command_is_this_run_trained_another_way(command: str, start: str) -> None:
    assert (
        own_commands(classification(command=command))[1] == f'{start} --strategy "LinearProbe" --output_dir runs/probe'
    )


@pytest.mark.parametrize(
    ("counts", "loss", "given", "offered"),
    [
        ([[10, 0], [10, 0]], 9.0, " --learning_rate 5", "--data a.csv --output_dir"),
        ([[10, 0], [10, 0]], 9.0, "", "--learning_rate 5e-06"),
        ([[10, 0], [10, 0]], 0.69, "", "--num_train_epochs 12"),
        ([[10, 0, 0], [0, 10, 0], [3, 3, 0]], 0.3, "", "--class_weights balanced"),
        ([[3, 10], [10, 7]], 0.69, "", "--num_train_epochs 12"),
    ],
    ids=["rate given", "rate of the strategy", "few updates", "never predicted", "no better than the majority"],
)
def test_what_is_offered_after_a_collapse_is_a_cure_and_no_other_strategy(counts, loss, given, offered) -> None:
    """D10."""
    names, rows = ["a", "b", "c"][: len(counts)], sum(map(sum, counts))
    right = sum(row[i] for i, row in enumerate(counts)) / rows
    report = classification(
        sections=confused(names, counts, max(map(sum, counts)) / rows),
        settings={"learning_rate": 5e-5, "num_train_epochs": 3.0, "class_weights": None},
        command=f"text_cls.py --data a.csv{given}",
        labels=names,
        test={"accuracy": Score(right, right, right, rows), "log_loss": Score(loss, loss, loss, rows)},
    )
    said = " ".join(render(report).split())
    assert ("warning: " in said) == (loss != 0.69 or counts[0][1] == 0)
    assert ("this model does not beat it" in said) == (len(counts) == 2)
    assert offered in own_commands(report)[0]
    assert "--strategy" not in " ".join(own_commands(report))


def test_the_next_commands_can_be_given_and_a_terminal_is_not_steered() -> None:
    table = render(classification(), ["one", "two"])
    assert table.endswith("try next     one\n             two")
    assert "\x1b" not in render(hostile())
    assert "accelerate launch recipes/image_cls.py" in render(
        Report(task="image-classification", model="m", usage=ImageClassification.usage)
    )


def test_a_report_takes_numpy_and_objects_from_a_run() -> None:
    report = classification(
        sections=confused(["a", "b"], np.eye(2, dtype=int).tolist(), None),
        seconds=np.float32(1.5),
        settings={"s": object()},
    )
    report.checks.append(SimpleNamespace(name="a", level="ok", sentence="b", details=[{"n": np.int64(3)}]))
    found = strict(report.json())
    assert found["seconds"] == 1.5
    assert found["checks"][-1]["details"] == [{"n": 3}]
