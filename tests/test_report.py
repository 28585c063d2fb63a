"""The report: what report.json holds, what the page shows, what the terminal says."""

from __future__ import annotations

import errno
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE, PIXEL, classification, hostile, regression, scores

from hftl import plots, wording
from hftl.errors import UserError
from hftl.metrics import Score
from hftl.page import html
from hftl.plain import HIDDEN, plain
from hftl.report import Report
from hftl.verdict import limits, verdict

VOID = {"wbr", "meta", "img", "br", "hr", "link", "input"}
TOKEN = "hf_" + "aB3dE6gH9" * 3


class Page(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags with attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        self.raw.append(self.get_starttag_text() or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def page_of(report: Report) -> Page:
    return Page(html(Report.from_dict(report.as_dict())))


def strict(text: str) -> dict:
    """JSON as RFC 8259 has it: Python's NaN and Infinity are errors."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_report_json_holds_what_the_issue_asks_for(tmp_path: Path) -> None:
    classification().write(tmp_path)
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["test"]["accuracy"] == {"value": 0.87, "low": 0.825, "high": 0.915, "n": 500}
    assert found["valid"].keys() == found["test"].keys()
    assert {"seconds", "examples_per_second", "forward_passes", "trainable", "total", "peak_memory"} <= found.keys()
    assert {"seed", "versions"} <= found.keys()
    assert set(found["data"]["fingerprints"]) == {"train", "valid", "test"}


@pytest.mark.parametrize("make", [classification, regression, hostile])
def test_a_written_report_reads_back_the_same(make, tmp_path: Path) -> None:
    report = make()
    report.write(tmp_path)
    again = Report.from_folder(tmp_path)
    assert again.as_dict() == report.as_dict()
    assert isinstance(again.test[again.headline], Score)
    assert again.checks[:1] == report.checks[:1]
    assert again.table() == Report.from_dict(report.as_dict()).table()


def test_what_is_not_finite_is_null_in_json_and_nan_in_a_score(tmp_path: Path) -> None:
    report = classification(test={"accuracy": Score(math.nan, -math.inf, math.inf, 5)}, seconds=math.inf)
    report.write(tmp_path)
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["test"]["accuracy"] == {"value": None, "low": None, "high": None, "n": 5}
    assert found["seconds"] is None
    assert found["history"][0]["grad_norm"] is None
    assert math.isnan(Report.from_folder(tmp_path).test["accuracy"].low)
    assert "– on test (n = 5)" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


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
    report.write(tmp_path)
    for path in tmp_path.iterdir():
        assert TOKEN not in path.read_text(encoding="utf-8")
        assert "short" not in path.read_text(encoding="utf-8")
    found = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["settings"]["hub_token"] == HIDDEN
    assert found["settings"]["tokenizer"] == "t"
    assert found["command"].endswith("--seed 1")


def test_a_full_disk_leaves_the_earlier_report_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classification().write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        regression().write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, "", "[1]", "{", '{"task": "x"}', "\udcff"])
def test_a_folder_without_a_report_says_so(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="Expected"):
        Report.from_folder(tmp_path)


def test_names_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    classification().write(tmp_path)
    values = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    (tmp_path / "report.json").write_text(json.dumps(values | {"from_the_future": 1}), encoding="utf-8")
    assert Report.from_folder(tmp_path).task == "text-classification"


SECTIONS = ["Training", "Metrics", "Where it errs, on test", "Most confidently wrong, on test"]
SECTIONS += ["Learning rates by depth", "Data checks", "Data", "Settings", "Versions", "Command"]


def headings(report: Report) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html(Report.from_dict(report.as_dict())))


def test_a_full_page_has_every_section_in_order() -> None:
    assert headings(classification()) == SECTIONS


def test_an_empty_section_does_not_appear() -> None:
    assert headings(regression()) == ["Training", "Metrics", "Data", "Settings", "Versions", "Command"]
    assert headings(Report(task="text-classification", model="bert-base-uncased")) == []


@pytest.mark.parametrize("make", [classification, regression, hostile])
def test_the_page_is_well_formed_and_asks_for_nothing(make) -> None:
    page = page_of(make())
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "href"]
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert "default-src 'none'" in page.values("content")[0]
    assert not re.search(r"url\(|@import", html(classification()))


def test_every_attribute_value_is_quoted() -> None:
    for tag in page_of(hostile()).raw:
        assert not re.search(r"""=(?!["'])""", re.sub(r'"[^"]*"', '""', tag)), tag


def test_hostile_text_is_shown_and_does_nothing() -> None:
    source = html(Report.from_dict(hostile().as_dict()))
    page = Page(source)
    assert not re.search(r"<(script|img src=x)", source)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\ud800-\udfff]", source)
    assert HOSTILE[0] in page.text
    assert "nul␀ escape␛[31m" in page.text
    assert "{{ 7 * 7 }} {% raw %}" in page.text
    assert "https://example.org" not in source


def test_a_long_text_is_cut_and_a_thumbnail_is_kept() -> None:
    long = {"text": "word " * 1000, "label": "a", "prediction": "b", "confidence": 0.9}
    image = {"image": PIXEL, "label": ["a", "b"], "prediction": [], "confidence": None}
    page = page_of(classification(wrong=[image, long]))
    assert page.values("src") == [PIXEL]
    assert "a, b, predicted none" in page.text
    assert "word…" in page.text
    assert "word " * 90 not in page.text


def test_the_confusion_matrix_is_shaded_by_row_and_falls_back_to_pairs() -> None:
    small = html(classification(labels=["a", "b"], confusion=[[3, 1], [0, 0]]))
    assert re.findall(r"--s:([\d.]+)", small.split('id="confusion"')[1].split("</table>")[0]) == [
        "0.375",
        "0.125",
        "0",
        "0",
    ]
    names = [f"class {i}" for i in range(77)]
    matrix = [[9 if i == j else 0 for j in range(77)] for i in range(77)]
    matrix[5][7], matrix[3][2] = 6, 4
    many = page_of(classification(labels=names, confusion=matrix))
    assert "The 2 largest confusions among 77 classes" in many.text
    assert many.text.index("6 of 15") < many.text.index("4 of 13")


def test_the_best_epoch_is_the_first_of_the_best_and_the_closing_evaluation_is_no_point() -> None:
    source = html(classification())
    chart = source.split('aria-labelledby="headline-title"')[1].split("</svg>")[0]
    assert chart.count('class="dot valid"') == 4
    assert "best: epoch 3, 0.884" in chart
    lower = [{"eval_mse": value, "epoch": i + 1.0, "step": i} for i, value in enumerate([0.5, 0.2, 0.2, 0.4])]
    assert "best: epoch 2, 0.200" in html(regression(headline="mse", history=lower))


def test_every_chart_has_a_title_and_finite_coordinates() -> None:
    report = classification()
    report.history[3]["loss"] = math.inf
    source = html(Report.from_dict(report.as_dict()))
    charts = re.findall(r'<svg class="chart".*?</svg>', source, re.DOTALL)
    assert len(charts) == 3
    for chart in charts:
        assert re.search(r"<title id=\"[\w-]+\">[^<]+</title>", chart)
        numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy|width|height)="([^"]*)"', chart)
        assert all(math.isfinite(float(value)) for value in numbers)
        assert "nan" not in chart
        assert "inf" not in chart


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_cover_the_range(low: float, span: float, about: int) -> None:
    found = plots.ticks(low, low + span, about)
    slack = 1e-8 * max(1, abs(low), span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 2 * about + 3


def test_wilson_agrees_with_its_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert plots.wilson(81 / 263, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert plots.wilson(0, 20, 1.959964) == pytest.approx((0, 0.1611), abs=5e-5)


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
    found = wording.visible(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", found)
    assert wording.visible(found) == found
    assert len(wording.cut(text, 5)) <= 5


def test_the_verdict_names_the_interval_and_the_trivial_baseline() -> None:
    report = classification(labels=["a", "b"], confusion=[[60, 40], [10, 390]], test=scores(500, ["accuracy"], 0.9))
    assert verdict(report) == (
        "Accuracy 0.900 on test (95 % interval 0.855 to 0.945, n = 500); 0.885 on valid (95 % interval 0.840 to 0.930, "
        "n = 545), which chose the checkpoint. Always answering the most frequent class would give 0.800."
    )
    report.test = scores(500, ["accuracy"], 0.81)
    assert verdict(report).endswith("would give 0.800, which the interval does not exclude.")
    assert "recall 0.600, n = 100" in limits(report)[-1]
    assert "no test result" in " ".join(limits(classification(test={}, confusion=[])))


def test_the_closing_table_lines_up() -> None:
    lines = classification(adapter=False).table().splitlines()
    assert lines[0] == "text-classification  sentence-transformers/all-MiniLM-L6-v2  LoRA(r=8) | LayerDecay(0.85)"
    assert lines[2].split() == ["accuracy", "0.885", "[0.840,", "0.930]", "0.870", "[0.825,", "0.915]", "n=500"]
    assert [lines[1].index("valid"), lines[1].index("test")] == [lines[2].index("0.885"), lines[2].index("0.870")]
    assert not any(line.startswith("f1_ABBR") for line in lines)
    assert lines[6] == (
        "trained in 41 s, 476 examples/s, 22.9 M parameters of which 149.8 k trained (0.66 %), peak memory 1.2 GB"
    )
    assert lines[-2] == "try next     hftl predict runs/a --data new.csv --output predictions.csv"
    assert lines[-1].strip() == (
        'accelerate launch recipes/text_cls.py --data ../data/trec --strategy "LoRA(r=16)" --output_dir runs/lora'
    )


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
        classification(command=command).next_commands()[1]
        == f'{start} --strategy "LinearProbe" --output_dir runs/probe'
    )


def test_the_next_commands_can_be_given_and_a_terminal_is_not_steered() -> None:
    table = classification().table(["one", "two"])
    assert table.endswith("try next     one\n             two")
    assert "\x1b" not in hostile().table()
    assert "accelerate launch recipes/image_cls.py" in Report(task="image-classification", model="m").table()


def test_a_report_takes_numpy_and_objects_from_a_run() -> None:
    report = classification(confusion=np.eye(6, dtype=int).tolist(), seconds=np.float32(1.5), settings={"s": object()})
    report.checks.append(SimpleNamespace(name="a", level="ok", sentence="b", details=[{"n": np.int64(3)}]))
    found = strict(report.json())
    assert found["seconds"] == 1.5
    assert found["checks"][-1]["details"] == [{"n": 3}]


def test_text_on_the_page_has_enough_contrast_in_dark_and_in_light() -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, on the paper and on the darkest tint of a cell."""
    css = (Path(plots.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): ([^;]+);", part)) for part in re.findall(r":root \{(.*?)\n *\}", css, re.S)[:2]
    )
    for tokens in (light, dark):
        paper = rgb(tokens["paper"])
        for name in ("ink", "muted", "blue", "rust", "green"):
            assert contrast(rgb(tokens[name]), paper) >= 4.5, name
        for name in ("blue-rgb", "rust-rgb"):
            tint = [0.5 * float(value) + 0.5 * base for value, base in zip(tokens[name].split(), paper, strict=True)]
            assert contrast(rgb(tokens["ink"]), tint) >= 4.5, name


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def contrast(a: list[float], b: list[float]) -> float:
    def luminance(colour: list[float]) -> float:
        parts = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
