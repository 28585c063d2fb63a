"""Tint the cells of a table: a confusion matrix by the share of its row, rates by the largest of all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hftl.results.report import wording
from hftl.settings.visible import cut, visible
from hftl.tasks.sections import Matrix, Table

SHOWN_CLASSES = 20
"""A confusion matrix with more classes is shown as its largest confusions."""
PAIRS = 20
Cell = tuple[str, Any, float | None]


@dataclass
class Shaded:
    """A table with tinted cells: heads (class, text), and rows of cells (class, text, tint or None)."""

    css: str
    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    title: str = ""
    note: str = ""
    kind: str = "shaded"


def confusion(matrix: Matrix) -> Shaded | Table:
    """The matrix with the share of each cell in its row, or, past SHOWN_CLASSES, the largest confusions."""
    counts, names = matrix.counts, matrix.names
    sums = [sum(row) for row in counts]
    if len(names) > SHOWN_CLASSES:
        pairs = [(n, sums[i], i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
        pairs = sorted(pairs, key=lambda pair: (-pair[0], -pair[0] / pair[1]))[:PAIRS]
        cells = [[names[i], names[j], f"{n} of {whole}", wording.share(n, whole)] for n, whole, i, j in pairs]
        title = f"The {len(pairs)} largest confusions among {len(names)} classes"
        heads, note = ["true", "predicted", "times", "of the true class"], "The whole matrix is in report.json."
        return Table(heading=matrix.heading, title=title, note=note, heads=heads, rows=cells)
    rows: list[list[Cell]] = []
    for i, (name, row, whole) in enumerate(zip(names, counts, sums, strict=True)):
        cells_of = [
            (f"cell{'' if i == j else ' off'}{'' if n else ' zero'}", n, shade(max(n / whole, 0.15)) if n else 0)
            for j, n in enumerate(row)
        ]
        recall = wording.number(row[i] / whole if whole else None)
        rows.append([("", cut(name, 60), None), *cells_of, ("recall", recall, None)])
    longest = max(map(len, names))
    upright = longest <= 3 or (longest <= 9 and len(names) <= 8)
    css = f"matrix{'' if upright else ' turned'}{'' if len(names) > 8 else ' narrow'}"
    heads_of = [("", "true ↓ predicted →"), *(("cell", cut(name, 24)) for name in names), ("cell", "recall")]
    return Shaded(css, heads_of, rows, matrix.title, matrix.note)


def shade(part: float) -> float:
    """Opacity of a cell's tint: half at most, so that text on it stays readable in dark and in light."""
    return round(0.5 * min(max(part, 0.0), 1.0), 3)


def rates(rows: list[dict]) -> list[Shaded]:
    """Modules with their rates, shaded by the share of the largest; modules in a row that share theirs are one row."""
    if not rows:
        return []
    top = max((rate for row in rows for rate in row["rates"] if rate), default=0) or 1
    last = max(len(rows[0]["rates"]) - 1, 1)
    heads = [("", "module"), ("num extra", "depth"), ("num extra", "parameters")]
    heads += [("cell", f"{round(100 * i / last)} %") for i in range(len(rows[0]["rates"]))]
    shaded: list[list[Cell]] = []
    for _, same in itertools.groupby(rows, key=lambda row: row["rates"]):
        group = list(same)
        row, names = group[0], [group[0]["module"], *(one["module"] for one in group[1:][-1:])]
        codes = [Markup("<code>{}</code>").format(Markup(".<wbr>").join(visible(name).split("."))) for name in names]
        module = Markup(" to ").join(codes) + (f" ({len(group)} modules)" if len(group) > 1 else "")
        depths = list(dict.fromkeys("–" if one["depth"] is None else one["depth"] for one in (row, group[-1])))
        depth = depths[0] if len(depths) == 1 else f"{depths[0]} to {depths[1]}"
        parameters = wording.count(sum(one["parameters"] for one in group))
        start = [("module", module, None), ("num extra", depth, None), ("num extra", parameters, None)]
        found = [
            ("cell" if rate else "cell zero", wording.short(rate), shade((rate or 0) / top)) for rate in row["rates"]
        ]
        shaded.append([*start, *found])
    return [Shaded("full", heads, shaded, note="Multipliers of the learning rate at five moments; 0 is frozen.")]
