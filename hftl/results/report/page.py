"""Write a report as one HTML file that needs nothing else: no script, no font, no address.

Every string is made visible (`hftl.settings.visible`) and escaped on its way into the page; a content security policy
forbids scripts and requests, should one ever slip through.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hftl.results.report import plots, wording
from hftl.results.report.shaded import confusion, rates
from hftl.results.report.verdict import adapted, valid_chose, verdict
from hftl.settings.visible import cut, visible
from hftl.tasks.metrics.names import metric_name
from hftl.tasks.sections import FAULTS, LIMITS, METRICS, Baseline, Curve, Gallery, Matrix, Section, Table

if TYPE_CHECKING:
    import jinja2

    from hftl.results.report.report import Report

CURVE_POINTS = 300
"""A training curve with more points is averaged down to this many."""
MARKS = {"warn": "!", "note": "i", "ok": "✓"}
MAIN = [
    *("strategy", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "weight_decay", "warmup_steps", "lr_scheduler_type", "optim", "max_length"),
    *("class_weights", "augment", "early_stopping_patience", "bf16", "fp16", "seed"),
]
"""Settings shown at once; the others wait behind a click."""
_IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+")
_COLOUR = re.compile(r"#[0-9a-f]{6}")
WORDS = ("count", "duration", "interval", "number", "share", "short", "size", "stages")
"""Functions of `hftl.results.report.wording` that templates may use."""


@dataclass
class Figure:
    """A drawing, one beside the other where there is room for two."""

    drawing: Markup
    title: str = ""
    note: str = ""
    kind: str = "figure"


@dataclass
class Part:
    """One heading of the page: sentences, what is drawn under them, and a note."""

    heading: str
    items: list[Any]
    sentences: list[str] = field(default_factory=list)
    note: str = ""
    key: str = ""

    @property
    def id(self) -> str:
        return self.key or wording.slug(self.heading)

    @property
    def groups(self) -> list[tuple[bool, list[Any]]]:
        """Items in order; figures that follow each other, which go side by side, together."""
        small = [item.kind == "figure" or "narrow" in getattr(item, "css", "") for item in self.items]
        pairs = itertools.groupby(zip(small, self.items, strict=True), key=lambda pair: pair[0])
        return [(beside, [item for _, item in group]) for beside, group in pairs]


def environment(**options: Any) -> jinja2.Environment:
    """Templates of this package, with the project's number formats as filters; an unknown name is an error."""
    import jinja2  # not before a report is written

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("hftl.results.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters |= {name: getattr(wording, name) for name in WORDS} | {"cut": cut, "metric_name": metric_name}
    return made


@functools.cache
def _template() -> jinja2.Template:
    return environment(autoescape=True, finalize=_finalize).get_template("report.html.j2")


def html(report: Report) -> str:
    """The page. `report` holds plain values (`Report.from_dict(report.as_dict())`)."""
    return _template().render(
        report=report,
        verdict=verdict(report),
        short_model=report.model.rstrip("/").split("/")[-1],
        parts=[part for part in parts(report) if part.items or part.sentences],
        checks=[
            (check, listed(check.details[:50])) for mark in MARKS for check in report.checks if check.level == mark
        ],
        marks=MARKS,
        main=[(name, report.settings[name]) for name in MAIN if report.settings.get(name) not in (None, False, "", -1)],
    )


def _finalize(value: Any) -> Any:
    """What every `{{ }}` passes through: markup made here stays, all other text is made visible and then escaped."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return visible(value)


def parts(report: Report) -> list[Part]:
    """The page from its curves to the rates: the report's own numbers, and the sections that the task gave."""
    drawn: dict[str, list[Any]] = {}
    for section in report.sections:
        drawn.setdefault(section.heading, []).extend(items(section))
    chose = "Valid chose the checkpoint and so flatters it; test" if valid_chose(report) else "Test"
    note = f"Brackets hold 95 % intervals; n counts {report.unit}s. {chose} was read once, at the end."
    return [
        Part(FAULTS, drawn.pop(FAULTS, [])),
        Part("Training", curves(report), key="curves"),
        Part(METRICS, [*numbers(report), *drawn.pop(METRICS, [])], note=note if report.metrics() else ""),
        together(report),
        domains(report),
        *(Part(heading, found) for heading, found in drawn.items() if heading not in ("", LIMITS)),
        Part("Learning rates by depth", rates(report.rates), key="rates"),
    ]


def items(section: Section) -> list[Any]:
    """A section of the task as the template draws it; what says nothing on a page is left out."""
    if isinstance(section, Matrix):
        return [confusion(section)]
    if isinstance(section, Curve):
        key, title = wording.slug(section.title), f"{section.title} on test: {section.y} by {section.x}"
        if section.bins:
            drawing = plots.reliability(key, title, section)
        elif section.guide:
            drawing = plots.against(key, title, section)
        else:
            points = [(x, y) for x, y in section.points]
            drawing = plots.line_chart(key, title, section.y, section.x, [plots.Line("", "valid", points, dots=True)])
        return [Figure(drawing, section.title, section.note)] if drawing else []
    if isinstance(section, Gallery):  # an image is kept only if it is a data: URI, because the page asks for nothing
        for example in section.examples:
            example.images = [one for one in example.images if _IMAGE.fullmatch(one)]
        section.legend = [[name, colour] for name, colour in section.legend[:60] if _COLOUR.fullmatch(colour)]
    return [] if isinstance(section, Baseline) else [section]


def curves(report: Report) -> list[Figure]:
    """Loss over the run, and the headline metric on valid; a chart without points is not there."""
    x = "epoch" if all("epoch" in row for row in report.history) else "step"
    losses = _points(report.history, x, "loss")
    valid, headline = _evaluations(report, x, "eval_loss"), _evaluations(report, x, f"eval_{report.headline}")
    name, best = metric_name(report.headline), None
    if headline:
        sign = -1 if report.headline in report.lower else 1
        best = max(headline, key=lambda point: sign * point[1])  # the first of equals, as the Trainer has it
    lines = [plots.Line("training", "quiet", _thin(losses)), plots.Line("valid", "valid", valid, dots=True)]
    rule = (best[0], math.nan) if best else None
    shown = [plots.Line(name, "valid", headline, dots=True)]
    charts = [
        plots.line_chart("loss", f"Training and valid loss by {x}", "loss", x, lines, rule),
        plots.line_chart("headline", f"{name} on valid by {x}", f"{name}, valid", x, shown, best),
    ]
    return [Figure(chart) for chart in charts if chart]


def _points(history: list[dict], x: str, y: str) -> list[plots.Point]:
    return [(row[x], row[y]) for row in history if row.get(y) is not None and row.get(x) is not None]


def _evaluations(report: Report, x: str, y: str) -> list[plots.Point]:
    """One point for each moment: the evaluation of the restored best checkpoint, at the end, repeats the last one."""
    first: dict[float, float] = {}
    for at, value in _points(report.history, x, y):
        first.setdefault(at, value)
    return list(first.items())


def _thin(points: list[plots.Point]) -> list[plots.Point]:
    """At most CURVE_POINTS points, each the mean of its neighbours."""
    step = math.ceil(len(points) / CURVE_POINTS) or 1
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def numbers(report: Report) -> list[Table]:
    """One row a metric, the headline first; a column a split with its n, and a metric of fewer rows says so."""
    splits = {split: found for split in ("valid", "test", "target") if (found := getattr(report, split))}
    sizes = {split: max(score.n for score in found.values()) for split, found in splits.items()}
    rows = []
    for name in report.metrics():
        head = Markup("{} <span class='down'>lower is better</span>" if name in report.lower else "{}")
        cells = [(found.get(name), sizes[split]) for split, found in splits.items()]
        found = [s if s is None or s.n == n else f"{wording.score(s)}, n = {s.n:,}" for s, n in cells]
        rows.append([head.format(visible(metric_name(name))), *found])
    heads = ["metric", *(f"{split}, n = {n:,}" for split, n in sizes.items())]
    return [Table(heading=METRICS, heads=heads, rows=rows)] if rows else []


def together(report: Report) -> Part:
    """Of a run on several tasks, what each has gained or lost."""
    said = {"gained": "helped", "lost": "hurt", "no difference": "made no difference"}
    rows: list[list[Any]] = []
    for row in report.tasks:
        micro = f"{row.steps:,} ({wording.share(row.share, 1)})"
        scores = (row.single, row.multi, row.difference)
        rows.append([row.task, metric_name(row.metric), micro, *scores, said.get(row.verdict)])
    heads = ["task", "metric", "micro-batches", "alone", "together", "difference", "the others"]
    note = (
        "Alone, a task has the same model, seed, data and number of micro-batches. Brackets hold 95 % intervals; that "
        "of a difference is paired over the test rows, of one seed. Each task has a folder with a report of its own."
    )
    tables = [Table(heading="", heads=heads, rows=rows)] if rows else []
    return Part("Task by task, on test", tables, note=note, key="tasks")


def domains(report: Report) -> Part:
    """Each domain of test on its own; and of a target domain what was seen, in sentences, pictures and a table."""
    name, about, made = metric_name(report.headline), report.adaptation, Part("Domains", [])
    if report.domains:
        found = [(domain, scores.get(report.headline)) for domain, scores in report.domains.items()]
        rows = [[domain, score, score.n if score else None] for domain, score in found]
        made.items.append(Table(heading="", heads=["domain of test", name, "n"], rows=rows))
    if about is None:
        return made
    made.sentences = adapted(report)
    note = (
        "Features that the output layer reads, on the first two principal axes of both domains together. The distance "
        "is 2 for domains that a linear classifier tells apart, 0 where it cannot."
    )
    for moment, points in about.projection.items():
        clouds = [
            plots.Line(domain, css, [tuple(point) for point in points[domain]])
            for domain, css in (("source", "valid"), ("target", "other"))
        ]
        picture = plots.scatter(f"domains-{moment}", f"Features of both domains {moment}", clouds)
        distance = wording.number(about.distance.get(moment))
        made.items.append(Figure(picture, f"{moment.capitalize()}: proxy A-distance {distance}", note))
        note = ""
    names = list(dict.fromkeys(n for row in about.checkpoints for n in row if n not in ("step", "epoch")))
    marked = {"chosen": about.chosen, "oracle": about.oracle}
    rows = []
    for row in about.checkpoints:
        marks = [mark for mark, best in marked.items() if best and best["step"] == row["step"]]
        rows.append([row["step"], *(row.get(n) for n in names), ", ".join(marks)])
    if rows:
        made.items.append(Table(heading="", heads=["step", *names, ""], rows=rows))
        made.note = (
            f"source: {name} on valid. Without target labels: entropy of the target’s probabilities (lower is better), "
            "soft neighbourhood density (higher), importance-weighted and deep embedded validation (lower). oracle: "
            f"{name} on labelled target rows, shown for comparison; it chose only where the marks say so."
        )
    return made


def listed(details: list[dict[str, Any]]) -> Table:
    """Rows that a check names, each with the keys of the first."""
    heads = list(details[0]) if details else []
    return Table(heading="", heads=heads, rows=[[_joined(row.get(key, "")) for key in heads] for row in details])


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
