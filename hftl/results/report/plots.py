"""Small line charts and reliability diagrams as inline SVG, drawn without a plotting library.

Knows points and axes, and nothing of reports. Colours come from the page's CSS classes, so that dark and light follow.
Every figure has an accessible title; every value that reaches the markup is escaped by `Markup.format`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hftl.results.report.wording import number, short
from hftl.tasks.sections import Curve

WIDTH, HEIGHT = 440, 264
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 40

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: `css` is its class on the page; `dots` marks each point (with its value as a tooltip)."""

    name: str
    css: str
    points: list[Point] = field(default_factory=list)
    dots: bool = False


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round values (steps of 1, 2, 2.5 or 5 times a power of ten) that cover [low, high], about `about` of them."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high), 1e-3):  # one value
        span = abs(high) if abs(high) > 1e-9 else 1.0
    raw = span / about
    power = 10 ** math.floor(math.log10(raw))
    step = next((s for s in (1, 2, 2.5, 5, 10) if raw / power <= s * 1.0001), 10) * power
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Frame:
    """Maps x in [x0, x1] to [left, right] and y in [y0, y1] to [bottom, top]; SVG grows downwards."""

    x0: float
    x1: float
    y0: float
    y1: float
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        return round(self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.bottom - self.top), 1)


def svg(key: str, title: str, parts: Sequence[Markup], width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Wrap the parts in one figure with the accessible name `title`; `key` makes its id unique on the page."""
    head = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title"><title id="{}-title">{}</title>'
    ).format(width, height, key, key, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, words: str, css: str = "tick", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(css, x, y, anchor, words)


def rule(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"></line>').format(css, x1, y1, x2, y2)


def axes(
    frame: Frame, xs: Sequence[float], ys: Sequence[float], label: str, show: Callable[[float], str] = short
) -> list[Markup]:
    """Horizontal grid lines with their values, ticks below, and the name of the x axis under them."""
    parts = []
    for value in ys:
        y = frame.y(value)
        parts.append(rule(frame.left, y, frame.right, y, "grid"))
        parts.append(text(frame.left - 7, y + 3.8, show(value), anchor="end"))
    parts.append(rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    for value in xs:
        x = frame.x(value)
        parts.append(rule(x, frame.bottom, x, frame.bottom + 4, "axis"))
        parts.append(text(x, frame.bottom + 16, show(value), anchor="middle"))
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 33, label, "label", "middle"))
    return parts


def line_chart(
    key: str, title: str, y_label: str, x_label: str, lines: list[Line], best: Point | None = None
) -> Markup:
    """Curves over epochs or steps. `best` is the chosen point of the run: a dashed rule, and a ring where y is finite.

    Points that are not finite are left out. Returns empty markup where no line has a point.
    """
    kept = [
        Line(line.name, line.css, [p for p in line.points if all(map(math.isfinite, p))], line.dots) for line in lines
    ]
    kept = [line for line in kept if line.points]
    if not kept:
        return Markup("")
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points]
    y_ticks = ticks(min(ys), max(ys), 4)
    end = max(xs)
    x_ticks = [t for t in ticks(0, end, 6, whole=end >= 3) if t <= end * 1.0001]
    low, high = y_ticks[0], y_ticks[-1]
    if best is not None and math.isfinite(best[1]):
        room = 0.16 * (high - low)  # for the words beside the best point, on the side where no curve runs
        above = best[1] >= max(ys)
        low, high = (low, max(high, best[1] + room)) if above else (min(low, best[1] - room), high)
    frame = Frame(0.0, end, low, high)
    parts = [text(0, 13, y_label, "label"), *axes(frame, x_ticks, y_ticks, x_label)]
    parts += _legend(kept)
    if best is not None:
        x = frame.x(best[0])
        parts.append(rule(x, frame.top, x, frame.bottom, "best"))
    for line in kept:
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in line.points)
        parts.append(Markup('<polyline class="line {}" points="{}"></polyline>').format(line.css, path))
        if line.dots:
            parts += [_dot(frame, line, p, x_label) for p in line.points]
    if best is not None and math.isfinite(best[1]):
        parts += _best(frame, best, x_label, above)
    return svg(key, title, parts)


def _legend(lines: list[Line]) -> list[Markup]:
    """Names of the curves at the top right, each after a stroke of its colour; one curve needs no legend."""
    parts: list[Markup] = []
    x = float(WIDTH - RIGHT)
    for line in reversed(lines if len(lines) > 1 else []):
        parts.append(text(x, 13, line.name, "label", "end"))
        x -= 6.4 * len(line.name) + 6
        parts.append(rule(x - 18, 9, x, 9, f"line {line.css}"))
        x -= 34
    return parts


def _dot(frame: Frame, line: Line, point: Point, x_label: str) -> Markup:
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{} {}: {} {}</title></circle>').format(
        line.css, frame.x(point[0]), frame.y(point[1]), x_label, short(point[0]), line.name, number(point[1])
    )


def _best(frame: Frame, best: Point, x_label: str, above: bool) -> list[Markup]:
    """A ring around the chosen point, and its value on the side where there is room."""
    x, y = frame.x(best[0]), frame.y(best[1])
    part = (x - frame.left) / (frame.right - frame.left)
    anchor = "start" if part < 0.25 else "end" if part > 0.75 else "middle"
    words = f"best: {x_label} {short(best[0])}, {number(best[1])}"
    ring = Markup('<circle class="ring" cx="{}" cy="{}" r="5.5"></circle>').format(x, y)
    return [ring, text(x, y - 12 if above else y + 22, words, "mark", anchor)]


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a share of n (Wilson 1927); it stays inside [0, 1] for small n."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def reliability(key: str, title: str, curve: Curve) -> Markup:
    """What came true by how sure the model was, with Wilson intervals; below it how many examples each bin holds."""
    height, fifths = 380, [0, 0.2, 0.4, 0.6, 0.8, 1]
    frame = Frame(0, 1, 0, 1, bottom=266)
    most = max(n for _, _, n in curve.bins)
    counts = Frame(0, 1, 0, most, top=288, bottom=340)
    parts = [text(0, 13, curve.y, "label")]
    for value in fifths:
        parts.append(rule(frame.left, frame.y(value), frame.right, frame.y(value), "grid"))
        parts.append(text(frame.left - 7, frame.y(value) + 3.8, short(value), anchor="end"))
    parts.append(rule(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "ideal"))
    parts += axes(counts, fifths, [], curve.x)
    parts.append(text(frame.left - 7, counts.bottom, "n", anchor="end"))
    spots = []
    for (x, y), (low, high, n) in zip(curve.points, curve.bins, strict=True):
        parts += _bin(frame, counts, (x, y), low, high, int(n))
        words = f"{curve.x} {x:.2f}, {curve.y} {y:.2f}, n = {n}"
        spot = Markup('<circle class="dot valid" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>')
        spots.append(spot.format(frame.x(x), frame.y(y), words))
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in curve.points)
    parts.append(Markup('<polyline class="line valid" points="{}"></polyline>').format(path))
    return svg(key, title, parts + spots, WIDTH, height)


def against(key: str, title: str, curve: Curve) -> Markup:
    """Points that no line joins, and the dashed line on which they should lie."""
    xs, ys = (sorted({point[i] for point in [*curve.points, *curve.guide]}) for i in (0, 1))
    across, up = ticks(xs[0], xs[-1], 5), ticks(ys[0], ys[-1], 4)
    frame = Frame(across[0], across[-1], up[0], up[-1])
    parts = [text(0, 13, curve.y, "label"), *axes(frame, across, up, curve.x)]
    for (x1, y1), (x2, y2) in zip(curve.guide, curve.guide[1:], strict=False):
        parts.append(rule(frame.x(x1), frame.y(y1), frame.x(x2), frame.y(y2), "ideal"))
    for x, y in curve.points:
        spot = Markup('<circle class="dot soft valid" cx="{}" cy="{}" r="2.5"></circle>')
        parts.append(spot.format(frame.x(x), frame.y(y)))
    return svg(key, title, parts)


def _bin(frame: Frame, counts: Frame, point: Point, start: float, end: float, n: int) -> list[Markup]:
    """The interval of one bin and the bar with its count."""
    low, high = wilson(point[1], n)
    x = frame.x(point[0])
    left, right, top = counts.x(start) + 1, counts.x(end) - 1, counts.y(n)
    bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"></rect>').format(
        left, top, round(max(right - left, 1), 1), round(counts.bottom - top, 1)
    )
    label = text((left + right) / 2, top - 4, str(n), "tick small", "middle")
    return [rule(x, frame.y(low), x, frame.y(high), "whisker"), bar, label]


def scatter(key: str, title: str, clouds: list[Line]) -> Markup:
    """Points of several groups on axes without units; `css` of a group colours it. Empty markup without a point."""
    points = [point for cloud in clouds for point in cloud.points]
    if not points:
        return Markup("")
    (xs, ys), height = zip(*points, strict=True), 300
    frame = Frame(min(xs), max(xs), min(ys), max(ys), left=10, top=30, bottom=height - 10)
    parts, at = [], 10.0
    for cloud in clouds:
        parts.append(Markup('<circle class="dot {}" cx="{}" cy="14" r="4"></circle>').format(cloud.css, at + 4))
        parts.append(text(at + 13, 18, cloud.name, "label"))
        at += 34 + 7 * len(cloud.name)
    for x, y, css in ((*point, cloud.css) for cloud in clouds for point in cloud.points):
        spot = Markup('<circle class="dot soft {}" cx="{}" cy="{}" r="2.5"></circle>')
        parts.append(spot.format(css, frame.x(x), frame.y(y)))
    return svg(key, title, parts, WIDTH, height)
