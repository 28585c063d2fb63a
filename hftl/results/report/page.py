"""A report as one HTML file that needs nothing else: no script, no font, no address.

Knows how to lay a report out, and nothing of how its numbers came about. Every string is made visible
(`wording.visible`) and escaped on its way into the page; a content security policy forbids scripts and requests, should
one ever slip through.
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from hftl.results.report import plots, wording
from hftl.results.report.verdict import adapted, verdict
from hftl.tasks.metrics.names import LOWER_IS_BETTER
from hftl.tasks.metrics.segments import colour

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.tasks.metrics.bootstrap import Score

SHOWN_CLASSES = 20
"""A confusion matrix with more classes is shown as its largest confusions."""
PAIRS = 20
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

FILTERS = (
    "count",
    "cut",
    "duration",
    "interval",
    "metric_name",
    "number",
    "share",
    "short",
    "size",
    "stages",
    "visible",
)
"""Functions of `hftl.results.report.wording` that templates may use."""


def environment(**options: Any) -> jinja2.Environment:
    """Templates of this package, with the project's number formats as filters; an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("hftl.results.report"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    for name in FILTERS:
        made.filters[name] = getattr(wording, name)
    return made


@functools.cache
def _template() -> jinja2.Template:
    return environment(autoescape=True, finalize=_finalize).get_template("report.html.j2")


def html(report: Report) -> str:
    """The page. `report` holds plain values (`Report.from_dict(report.as_dict())`)."""
    sections = {
        "verdict": verdict(report),
        "short_model": report.model.rstrip("/").split("/")[-1],
        "curves": curves(report),
        "metrics": metric_rows(report),
        "classes": class_rows(report),
        "two": domains(report),
        "confusion": confusion(report),
        "reliability": reliability(report),
        "wrong": wrong(report.wrong),
        "masks": report.problem_type == "image_segmentation",
        "legend": [(name, "#{:02x}{:02x}{:02x}".format(*colour(i))) for i, name in enumerate(report.labels)],
        "kind": "IoU" if report.problem_type == "image_segmentation" else "F1",
        "augmented": augmented(report.augmented),
        "rates": rates(report.rates),
        "checks": sorted(report.checks, key=lambda check: list(MARKS).index(check.level)),
        "marks": MARKS,
        "main": [(name, report.settings[name]) for name in MAIN if _says(report.settings.get(name))],
    }
    return _template().render(report=report, **sections)


def _finalize(value: Any) -> Any:
    """What every `{{ }}` passes through: markup made here stays, all other text is made visible and then escaped."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return wording.visible(value)


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", -1)


def curves(report: Report) -> list[Markup]:
    """Loss over the run, and the headline metric on valid; a chart without points is not there."""
    x = "epoch" if all("epoch" in row for row in report.history) else "step"
    losses = _points(report.history, x, "loss")
    valid, headline = _evaluations(report, x, "eval_loss"), _evaluations(report, x, f"eval_{report.headline}")
    name = wording.metric_name(report.headline)
    best = None
    if headline:
        sign = -1 if report.headline in LOWER_IS_BETTER else 1
        best = max(headline, key=lambda point: sign * point[1])  # the first of equals, as the Trainer has it
    unit = "loss" if report.problem_type == "regression" else "loss (nats)"
    lines = [plots.Line("training", "quiet", _thin(losses)), plots.Line("valid", "valid", valid, dots=True)]
    rule = (best[0], math.nan) if best else None
    shown = [plots.Line(name, "valid", headline, dots=True)]
    charts = [
        plots.line_chart("loss", f"Training and valid loss by {x}", unit, x, lines, rule),
        plots.line_chart("headline", f"{name} on valid by {x}", f"{name}, valid", x, shown, best),
    ]
    return [chart for chart in charts if chart]


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


def metric_rows(report: Report) -> list[dict]:
    """One row a metric, the headline first."""
    return [
        {"name": n, "lower": n in LOWER_IS_BETTER}
        | {split: getattr(report, split).get(n) for split in ("valid", "test", "target")}
        for n in report.metrics()
    ]


def domains(report: Report) -> dict[str, Any]:
    """Each domain of test on its own; and of a target domain what was seen, in sentences, pictures and a table."""
    apart = [{"name": name, "score": found.get(report.headline)} for name, found in report.domains.items()]
    about = report.adaptation
    if not about and not apart:
        return {}
    pictures = []
    for moment, points in about.get("projection", {}).items():
        distance = wording.number(about["distance"].get(moment))
        clouds = [
            plots.Line(name, css, [tuple(point) for point in points[name]])
            for name, css in (("source", "valid"), ("target", "other"))
        ]
        picture = plots.scatter(f"domains-{moment}", f"Features of both domains {moment}", clouds)
        pictures.append((f"{moment.capitalize()}: proxy A-distance {distance}", picture))
    rows = about.get("checkpoints", [])
    heads = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch")))
    marked = {name: about[name]["step"] for name in ("chosen", "oracle") if about.get(name)}
    return {
        "apart": apart,
        "said": adapted(report),
        "pictures": pictures,
        "heads": heads,
        "rows": [row | {"marks": [n for n, step in marked.items() if step == row["step"]]} for row in rows],
    }


def class_rows(report: Report) -> list[dict]:
    """F1 or IoU of each class, the lowest on test first."""
    names = [n for n in dict.fromkeys([*report.test, *report.valid]) if report.class_of(n) is not None]
    rows = [{"name": report.class_of(n), "valid": report.valid.get(n), "test": report.test.get(n)} for n in names]
    return sorted(rows, key=lambda row: _sortable(row["test"] or row["valid"]))


def _sortable(score: Score) -> float:
    return score.value if wording.known(score.value) else -1.0


def confusion(report: Report) -> dict:
    """The matrix with the share of each cell in its row, or, past SHOWN_CLASSES, the largest confusions."""
    matrix, names = report.confusion, report.labels
    if not matrix or len(names) != len(matrix):
        return {}
    sums = [sum(row) for row in matrix]
    pairs: list[dict[str, Any]] = [
        {"true": names[i], "predicted": names[j], "count": n, "row": sums[i]}
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if n and i != j
    ]
    pairs = sorted(pairs, key=lambda pair: (-pair["count"], -pair["count"] / pair["row"]))[:PAIRS]
    if len(names) > SHOWN_CLASSES:
        return {"rows": [], "pairs": pairs, "classes": len(names), "wide": True}
    rows = [
        {
            "name": name,
            "n": total,
            "recall": row[i] / total if total else None,
            "cells": [
                {"n": n, "shade": shade(max(n / total, 0.15)) if n else 0, "right": i == j} for j, n in enumerate(row)
            ],
        }
        for i, (name, row, total) in enumerate(zip(names, matrix, sums, strict=True))
    ]
    longest = max(map(len, names))
    upright = longest <= 3 or (longest <= 9 and len(names) <= 8)
    return {"rows": rows, "pairs": [], "names": names, "upright": upright, "wide": len(names) > 8}


def shade(part: float) -> float:
    """Opacity of a cell's tint: half at most, so that text on it stays readable in dark and in light."""
    return round(0.5 * min(max(part, 0.0), 1.0), 3)


def reliability(report: Report) -> Markup:
    """Of several labels each has a probability of its own, so there the axes are probability and frequency."""
    several = report.problem_type == "multi_label_classification"
    y, x = ("frequency", "probability") if several else ("accuracy", "confidence")
    return plots.reliability("reliability", f"Reliability on test: {y} by {x}", y, x, report.calibration)


def wrong(examples: list[dict]) -> list[dict]:
    """Examples with their text cut; an image is kept only if it is a data: URI, because the page asks for nothing."""
    shown = []
    for example in examples:
        texts = [wording.cut(example[key]) for key in ("text", "text_pair") if example.get(key) is not None]
        image = str(example.get("image") or "")
        image = image if _IMAGE.fullmatch(image) else ""
        names = {key: _joined(example.get(key)) for key in ("label", "prediction")}
        shown.append({"texts": texts, "image": image, "confidence": example.get("confidence")} | names)
    return shown


def augmented(pairs: list[dict]) -> list[dict]:
    """Rows before and after augmentation: each a data: URI of an image, or a text, cut."""
    images = all(_IMAGE.fullmatch(str(pair.get(name))) for pair in pairs for name in ("before", "after"))
    return [
        {name: str(pair.get(name)) if images else wording.cut(pair.get(name)) for name in ("before", "after")}
        | {"images": images}
        for pair in pairs
    ]


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return wording.number(value) if isinstance(value, float) else wording.cut(value, 80)


def rates(rows: list[dict]) -> dict:
    """Modules with their rates, shaded by the share of the largest rate in the table."""
    if not rows:
        return {}
    top = max((rate for row in rows for rate in row["rates"] if rate), default=0) or 1
    last = max(len(rows[0]["rates"]) - 1, 1)
    heads = [f"{round(100 * i / last)} %" for i in range(len(rows[0]["rates"]))]
    shaded = []
    for row in rows:
        cells = [{"rate": rate, "shade": shade((rate or 0) / top)} for rate in row["rates"]]
        module = Markup(".<wbr>").join(wording.visible(row["module"]).split("."))  # `join` escapes the parts
        shaded.append(row | {"module": module, "cells": cells})
    return {"heads": heads, "rows": shaded}
