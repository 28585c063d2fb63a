"""The page: what it shows and in which order, that it is well formed, and that nothing from data acts on its reader."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE, PIXEL, classification, hostile, regression

from hftl.results.report import plots
from hftl.results.report.page import html
from hftl.results.report.report import Report
from hftl.tasks.sections import Example, Gallery, confused

VOID = {"wbr", "meta", "img", "br", "hr", "link", "input"}


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
    long = Example(texts=["word " * 1000], label="a", prediction="b", words="with 0.900")
    image = Example(images=[PIXEL], label="a, b", prediction="")
    page = page_of(classification(sections=[Gallery(heading="Wrong", examples=[image, long])]))
    assert page.values("src") == [PIXEL]
    assert "a, b, predicted none" in page.text
    assert "word…" in page.text
    assert "word " * 90 not in page.text


def test_the_confusion_matrix_is_shaded_by_row_and_falls_back_to_pairs() -> None:
    small = html(classification(labels=["a", "b"], sections=confused(["a", "b"], [[3, 1], [0, 0]], None)))
    assert re.findall(r"--s:([\d.]+)", small.split("<h3>Confusion</h3>")[1].split("</table>")[0]) == [
        "0.375",
        "0.125",
        "0",
        "0",
    ]
    names = [f"class {i}" for i in range(77)]
    matrix = [[9 if i == j else 0 for j in range(77)] for i in range(77)]
    matrix[5][7], matrix[3][2] = 6, 4
    many = page_of(classification(labels=names, sections=confused(names, matrix, None)))
    assert "The 2 largest confusions among 77 classes" in many.text
    assert many.text.index("6 of 15") < many.text.index("4 of 13")


def test_wrong_rows_are_shown_by_their_kind_with_the_names_of_their_files() -> None:
    """F9."""
    words = [["lung", "B-Disease", "O"], ["cancer", "I-Disease", "I-Disease"], ["grows", "O", "O"]]
    shown = [Example(tagged=words, words="with confidence 0.998"), Example(images=[PIXEL], name="three/0006.jpg")]
    text = " ".join(page_of(classification(sections=[Gallery(heading="Wrong", examples=shown)])).text.split())
    assert "lung B-Disease → O cancer I-Disease grows with confidence 0.998" in text
    assert "three/0006.jpg" in text


def test_modules_that_share_their_rates_are_one_row() -> None:
    """F9."""
    text = " ".join(page_of(classification()).text.split())
    assert "bert.encoder.layer.1 to bert.encoder.layer.6 (6 modules)1 to 610.6 M000.20.40.5" in text


def test_the_numbers_have_the_n_of_each_split_and_a_metric_of_fewer_rows_its_own() -> None:
    report = classification()
    report.test["ece"] = replace(report.test["ece"], n=9)
    text = " ".join(page_of(report).text.split())
    assert "valid, n = 545" in text
    assert "test, n = 500" in text
    assert "0.870 [0.825, 0.915], n = 9" in text


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
