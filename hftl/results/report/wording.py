"""How numbers and foreign text are written for a reader: on the page, on the card and in the terminal.

Knows nothing of reports. Text that came with data never reaches a reader without passing through `visible`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeGuard

ABSENT = "–"


def known(value: float | None) -> TypeGuard[float]:
    """Whether a number is there: neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """A score with three decimals, or four digits where it is large: 0.870, 123.4. An absent one is a dash."""
    if not known(value):
        return ABSENT
    if 0 < abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def short(value: float | None) -> str:
    """A rate or a tick: three digits at most, no trailing zeros, and no exponent where plain digits are as short."""
    if not known(value):
        return ABSENT
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text and 1 <= abs(value) < 1e7 else text


def interval(low: float | None, high: float | None, between: str = "[{}, {}]") -> str:
    """`[0.825, 0.915]`, or nothing where there is no interval."""
    return between.format(number(low), number(high)) if known(low) and known(high) else ""


def score(one: Any) -> str:
    """`0.870 [0.825, 0.915]`, or nothing where nothing was measured."""
    return "" if one is None else f"{number(one.value)} {interval(one.low, one.high)}".strip()


def count(value: float | None) -> str:
    """1,797, 22.7 k, 22.7 M, 7.1 B."""
    if not known(value):
        return ABSENT
    if value < 10_000:
        return f"{value:,.0f}"
    scale, unit = next(pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if round(value / pair[0], 1) >= 1)
    return f"{value / scale:.1f} {unit}"


def size(value: float | None) -> str:
    """Bytes as decimal kB, MB, GB."""
    if not known(value):
        return ABSENT
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if round(value / scale, 1) >= 1:
            return f"{value / scale:.1f} {unit}" if value < 10 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """4.2 s, 41 s, 3 min 20 s, 2 h 05 min."""
    if not known(seconds):
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def stages(seconds: Mapping[str, float]) -> str:
    """Stages of one time: imports 4.1 s, data 0.1 s."""
    return ", ".join(f"{stage} {duration(took)}" for stage, took in seconds.items())


def share(part: float, whole: float) -> str:
    """100 %, 12.3 %, 0.04 %. A part that is not the whole never reads as 100 %, nor one that is there as 0 %."""
    if not whole:
        return ABSENT
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if percent >= 1:
        return f"{min(percent, 99.9):.1f} %"
    return f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"


def slug(text: str) -> str:
    """Letters, digits and hyphens only; never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-") or "data"
