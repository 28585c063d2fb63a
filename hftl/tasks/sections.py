"""Describe what a page and a card draw of a task's results: tables, curves, matrices, galleries and sentences.

Every section is plain values, so that report.json holds it under its `kind` and reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftl.settings.visible import cut

if TYPE_CHECKING:
    from hftl.tasks.metrics.bootstrap import Score

METRICS, ERRORS, LIMITS = "Metrics", "Where it errs, on test", "Limits"
FAULTS = "Look at this first"
"""Headings: what belongs to the numbers, figures of errors, sentences for the card's last section, and what a result
that looks like one may hide."""


@dataclass(kw_only=True)
class Section:
    """Something to draw; those of one `heading` stand together under it, each below its own `title`."""

    heading: str
    title: str = ""
    note: str = ""


@dataclass(kw_only=True)
class Table(Section):
    """Cells are texts, numbers, Scores or None; the first of a row names it. `folded` waits behind a click."""

    heads: list[str]
    rows: list[list[Any]]
    folded: bool = False
    kind: str = field(default="table", init=False)


@dataclass(kw_only=True)
class Curve(Section):
    """Points (x, y). With `bins` (low, high, n of each point) both axes are shares, with intervals and a diagonal.

    `loose` points are not joined: on their diagonal x and y are equal.
    """

    x: str
    y: str
    points: list[list[float]]
    loose: bool = False
    bins: list[list[float]] = field(default_factory=list)
    kind: str = field(default="curve", init=False)


@dataclass(kw_only=True)
class Matrix(Section):
    """Counts by true class (row) and predicted class (column)."""

    names: list[str]
    counts: list[list[int]]
    kind: str = field(default="matrix", init=False)


@dataclass(kw_only=True)
class Example:
    """A row as a person sees it, and what is said of it. What came of a text or an image stands after it.

    `texts` are shown cut, `images` are data: URIs.
    """

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    label: str = ""
    prediction: str | None = None
    words: str = ""


@dataclass(kw_only=True)
class Gallery(Section):
    """Examples side by side. `legend` has names with their colours (#rrggbb); `wide` is for images of several parts."""

    examples: list[Example]
    legend: list[list[str]] = field(default_factory=list)
    wide: bool = False
    kind: str = field(default="gallery", init=False)


@dataclass(kw_only=True)
class Words(Section):
    """Sentences."""

    sentences: list[str]
    kind: str = field(default="words", init=False)


@dataclass(kw_only=True)
class Baseline(Section):
    """What a metric on test would be without learning, for the verdict: "`title` would give `value`".

    `metric` is its name, where it is not the headline.
    """

    value: float
    metric: str = ""
    kind: str = field(default="baseline", init=False)


KINDS: dict[str, type[Section]] = {
    kind.__name__.lower(): kind for kind in (Table, Curve, Matrix, Gallery, Words, Baseline)
}


def by_class(kind: str, classes: Mapping[str, str], scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
    """A table of a metric of each class, the lowest on test first; [] without classes.

    Args:
        classes: name of the metric -> the class that it is of.
        scores: by split ("valid", "test") and name.
    """
    valid, test = scores["valid"], scores["test"]
    rows = [[label, valid.get(name), test.get(name)] for name, label in classes.items() if name in {**valid, **test}]

    def value(row: list[Any]) -> float:
        found = (row[2] or row[1]).value
        return found if math.isfinite(found) else -1.0

    rows.sort(key=value)
    title = f"{kind} of each of {len(rows)} classes, the lowest on test first"
    heads = ["class", "valid", "test"]
    return [Table(heading=METRICS, title=title, heads=heads, rows=rows, folded=True)] if rows else []


def confused(names: list[str], counts: list[list[int]], trivial: float | None) -> list[Section]:
    """The confusion matrix, what always answering one class would give, and a sentence on the class found least often.

    Args:
        trivial: the headline metric of always answering the most frequent class; None where that says nothing.
    """
    if not any(map(any, counts)) or len(names) != len(counts):
        return []
    made: list[Section] = [
        Matrix(
            heading=ERRORS, title="Confusion", note="Shade: share of the row’s true class.", names=names, counts=counts
        )
    ]
    if trivial is not None:
        made.append(Baseline(heading="", title="Always answering the most frequent class", value=trivial))
    found = [(row[i] / sum(row), sum(row), i) for i, row in enumerate(counts) if sum(row)]
    made += neglected(names, [sum(row) for row in counts], [sum(column) for column in zip(*counts, strict=True)])
    if len(found) > 1:
        recall, n, i = min(found)
        least = f"The class found least often on test is “{cut(names[i], 80)}”: recall {recall:.3f}, n = {n:,}."
        made.append(Words(heading=LIMITS, sentences=[least]))
    return made


def neglected(names: Sequence[str], actual: Sequence[int], guessed: Sequence[int]) -> list[Section]:
    """A warning where a model answers one class alone, or never some that test has; [] where it does neither."""
    never = [(name, n) for name, n, g in zip(names, actual, guessed, strict=True) if n and not g]
    answered = [name for name, g in zip(names, guessed, strict=True) if g]
    if not never:
        return []
    if len(answered) <= 1:
        said = (
            f"The model has collapsed: on test it answers “{cut(answered[0], 80)}” always."
            if answered
            else ("The model has collapsed: on test it finds nothing.")
        )
    else:
        some = ", ".join(f"“{cut(name, 40)}” (n = {n:,})" for name, n in never[:5])
        said = f"Never predicted on test: {some}{f' and {len(never) - 5} more' if len(never) > 5 else ''}."
    return [Words(heading=FAULTS, sentences=[said])]


def reliability(x: str, y: str, bins: list[dict[str, Any]]) -> list[Section]:
    """What came true by how sure the model was; [] without bins (low, high, confidence, accuracy, count)."""
    note = "On the dashed diagonal, confidence is right. Whiskers are 95 % intervals; bars count what each bin holds."
    full = [b for b in bins if b["count"] and None not in (b["confidence"], b["accuracy"])]
    points = [[b["confidence"], b["accuracy"]] for b in full]
    widths = [[b["low"], b["high"], b["count"]] for b in full]
    made = Curve(heading=ERRORS, title="Reliability", note=note, x=x, y=y, points=points, bins=widths)
    return [made] if full else []
