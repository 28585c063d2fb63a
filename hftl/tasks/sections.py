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

    With a `guide`, the points of a dashed line where they should lie, no line joins them.
    """

    x: str
    y: str
    points: list[list[float]]
    guide: list[list[float]] = field(default_factory=list)
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

    `texts` are shown cut, `images` are data: URIs, `name` is that of the file. `tagged` are words, each with its tag
    and what was said of it.
    """

    texts: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    label: str = ""
    prediction: str | None = None
    words: str = ""
    name: str = ""
    tagged: list[list[str]] = field(default_factory=list)


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


def by_class(
    kind: str,
    names: Sequence[str],
    counts: Sequence[Sequence[int]],
    scores: Mapping[str, Mapping[str, Score]],
    unit: str = "rows",
) -> list[Section]:
    """A table of each class on test: its `kind`, precision, recall and n, the lowest first; [] without classes.

    Args:
        kind: "F1" or "IoU"; scores with an interval are there as `f1_<class>` or `iou_<class>`.
        counts: of each class on test what was found, what there is, and what was said.
        scores: by split ("valid", "test") and name.
        unit: what is counted of a class.
    """
    rows: list[list[Any]] = []
    for name, (hits, actual, said) in zip(names, counts, strict=True):
        whole = actual + said - hits if kind == "IoU" else (actual + said) / 2
        valid, test = (scores[split].get(f"{kind.lower()}_{name}") for split in ("valid", "test"))
        value, precision, recall = (float(hits / of) if of else None for of in (whole, said, actual))
        rows.append([name, valid, test or value, precision, recall, int(actual), math.inf if value is None else value])
    rows = [row[:-1] for row in sorted(rows, key=lambda row: row[-1])]
    heads = ["class", f"{kind}, valid", f"{kind}, test", "precision", "recall", unit]
    title = f"Precision, recall and {kind} of each of {len(rows)} classes, the lowest on test first"
    return [Table(heading=METRICS, title=title, heads=heads, rows=rows, folded=True)] if rows else []


def per_class(counts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of a confusion matrix, of each class: what was found, what there is, and what was said."""
    said = [sum(column) for column in zip(*counts, strict=True)]
    return [[row[i], sum(row), said[i]] for i, row in enumerate(counts)]


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


def neglected(names: Sequence[str], actual: Sequence[int], guessed: Sequence[int], one: bool = True) -> list[Section]:
    """A warning where a model answers one class alone, or never some that test has; [] where it does neither.

    Args:
        one: whether all that is counted gets exactly one answer, which is the same always where one is all there is.
    """
    never = [(name, n) for name, n, g in zip(names, actual, guessed, strict=True) if n and not g]
    answered = [name for name, g in zip(names, guessed, strict=True) if g]
    some = ", ".join(f"“{cut(name, 40)}” (n = {n:,})" for name, n in never[:5])
    said = f"Never predicted on test: {some}{f' and {len(never) - 5} more' if len(never) > 5 else ''}."
    if not answered:
        said = "The model has collapsed: on test it finds nothing."
    elif one and len(answered) == 1:
        said = f"The model has collapsed: on test it answers “{cut(answered[0], 80)}” always."
    return [Words(heading=FAULTS, sentences=[said])] if never else []


def reliability(x: str, y: str, bins: list[dict[str, Any]]) -> list[Section]:
    """What came true by how sure the model was; [] without bins (low, high, confidence, accuracy, count)."""
    note = "On the dashed diagonal, confidence is right. Whiskers are 95 % intervals; bars count what each bin holds."
    full = [b for b in bins if b["count"] and None not in (b["confidence"], b["accuracy"])]
    points = [[b["confidence"], b["accuracy"]] for b in full]
    widths = [[b["low"], b["high"], b["count"]] for b in full]
    made = Curve(heading=ERRORS, title="Reliability", note=note, x=x, y=y, points=points, bins=widths)
    return [made] if full else []
