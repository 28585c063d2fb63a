"""The check page: what a person should know of the data before training. Knows splits, and changes none.

Every pass here is over arrays of a few bytes a row; texts are fetched only for the examples that are shown.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from hftl.data.part import Part
from hftl.data.types import MULTI, PIXELS, TAGS, Check, Labels
from hftl.settings.visible import visible

_SHOWN = 12  # rows of a small table on the terminal
_EXAMPLES = 3


def split_checks(parts: dict[str, Part], labels: Labels) -> list[Check]:
    """Everything that the splits themselves show."""
    found = [_rows(parts, labels), *_sizes(parts), _duplicates(parts["train"]), _overlap(parts)]
    if labels.names and labels.problem_type not in (TAGS, PIXELS):
        found.append(_balance(parts, labels))
    return found


def counts(part: Part, labels: Labels) -> np.ndarray:
    """Rows of each class, (classes,) int64; a row with several classes counts for each. Words of each tag.

    Pixels of each class, where the labels are masks.
    """
    total = np.zeros(len(labels.names), np.int64)
    if part.masks is not None:
        return part.masks.of_classes(labels.values)
    if part.classes is not None:
        return total + np.bincount(part.classes, minlength=len(total))
    for values in part.label_batches():
        if labels.problem_type == TAGS:
            total += np.bincount(values[values >= 0], minlength=len(total))
            continue
        total += values.sum(axis=0).astype(np.int64)
    return total


def _rows(parts: dict[str, Part], labels: Labels) -> Check:
    sentence = ", ".join(f"{len(part.data):,} {split}" for split, part in parts.items())
    details: list[dict[str, Any]] = []
    if labels.problem_type == "regression":
        for split, part in parts.items():
            values = np.concatenate(list(part.label_batches()))
            numbers = {"min": values.min(), "mean": values.mean(dtype=np.float64), "max": values.max()}
            details.append({"split": split, **{name: round(float(value), 4) for name, value in numbers.items()}})
    elif labels.names:
        table = {split: counts(part, labels) for split, part in parts.items()}
        for i, name in enumerate(labels.names):
            details.append(
                {
                    "tag" if labels.problem_type == TAGS else "class": name,
                    **{split: int(column[i]) for split, column in table.items()},
                }
            )
        sentence += f"; {len(labels.names)} {'tags' if labels.problem_type == TAGS else 'classes'}"
        sentence += ", counted in pixels" if labels.problem_type == PIXELS else ""
    return Check("rows", "ok", sentence, details)


def _sizes(parts: dict[str, Part]) -> list[Check]:
    found = []
    if any(part.scan.words.any() for part in parts.values()):
        details = [{"split": split, **_spread(part.scan.words)} for split, part in parts.items()]
        train = details[0]
        sentence = f"a text of train has {train['median']:,} words at the median and {train['max']:,} at most"
        found.append(Check("words", "ok", sentence, details))
    if any(part.scan.width.any() for part in parts.values()):
        details = []
        modes: Counter[str] = Counter()
        for split, part in parts.items():
            wide, high = _spread(part.scan.width), _spread(part.scan.height)
            details.append({"split": split, **{k: f"{wide[k]}x{high[k]}" for k in ("min", "median", "max")}})
            names, numbers = np.unique(part.scan.mode, return_counts=True)
            modes.update({name.decode(): int(n) for name, n in zip(names, numbers, strict=True)})
        kinds = ", ".join(f"{n:,} {mode}" for mode, n in modes.most_common())
        sentence = f"an image of train has {details[0]['median']} pixels at the median; modes: {kinds}"
        found.append(Check("images", "ok", sentence, details))
    return found


def _spread(values: np.ndarray) -> dict[str, int]:
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100], method="lower")
    return {"min": int(low), "median": int(middle), "95 %": int(high), "max": int(top)}


def _duplicates(train: Part) -> Check:
    _, first, sizes = np.unique(train.scan.keys, return_index=True, return_counts=True)
    copies = int((sizes - 1).sum())
    if not copies:
        return Check("duplicates", "ok", "no row of train is there twice")
    most = [i for i in np.argsort(-sizes, kind="stable")[:_EXAMPLES] if sizes[i] > 1]
    details = [{"copies": int(sizes[i]), "row": _show(train, int(first[i]))} for i in most]
    return Check("duplicates", "note", f"{copies:,} rows of train repeat an earlier one", details)


def _overlap(parts: dict[str, Part]) -> Check:
    found, details = [], []
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            inside = np.isin(parts[other].scan.keys, parts[one].scan.keys)
            if inside.any():
                found.append(f"{int(inside.sum()):,} of {other} are in {one} too")
                rows = np.flatnonzero(inside)[:_EXAMPLES]
                details += [{"splits": f"{one}, {other}", "row": _show(parts[other], int(row))} for row in rows]
    if not found:
        return Check("overlap", "ok", "no row is in two splits")
    what = "rows" if len(found) == 1 else "rows of splits"
    return Check(
        "overlap", "warn", f"the same {what} in two splits make results look better: {'; '.join(found)}", details
    )


def _balance(parts: dict[str, Part], labels: Labels) -> Check:
    sizes = counts(parts["train"], labels)
    empty = [name for name, size in zip(labels.names, sizes, strict=True) if size == 0]
    if empty:
        return Check("balance", "warn", f"no row of train has the class {', '.join(empty[:5])}; it cannot be learned")
    large, small = int(sizes.argmax()), int(sizes.argmin())
    ratio = sizes[large] / sizes[small]
    sentence = f"the largest class, {labels.names[large]!r}, has {ratio:.1f} times the rows of {labels.names[small]!r}"
    if ratio < 3 or len(sizes) < 2:
        return Check("balance", "ok", "the classes of train are of similar size" if ratio < 1.5 else sentence)
    cure = "" if labels.problem_type == MULTI else "; --class_weights balanced gives each class the same say"
    return Check("balance", "warn", sentence + cure)


def bad_rows(dropped: dict[str, dict[int, str]], total: int) -> Check:
    """What `on_bad_row="skip"` left out: split -> row -> reason."""
    count = sum(len(reasons) for reasons in dropped.values())
    if not count:
        return Check("bad rows", "ok", f"all {total:,} rows can be read, and none is empty")
    details = [
        {"split": split, "row": row + 1, "reason": why}
        for split, reasons in dropped.items()
        for row, why in reasons.items()
    ]
    return Check("bad rows", "warn", f"{count:,} of {total:,} rows were left out (--on_bad_row skip)", details[:20])


def length_check(lengths: Iterable[int], limit: int) -> Check:
    """How many texts are cut: `lengths` are in tokens, before the cut at `limit`."""
    found = np.fromiter(lengths, np.int64)
    total, longer, longest = len(found), int((found > limit).sum()), int(found.max(initial=0))
    if not longer:
        return Check("lengths", "ok", f"no text is cut: the longest has {longest:,} tokens, the limit is {limit:,}")
    share = longer / total
    sentence = f"{longer:,} of {total:,} texts ({share:.1%}) are cut at {limit:,} tokens; the longest has {longest:,}"
    return Check("lengths", "warn" if share > 0.05 else "note", sentence)


def _show(part: Part, row: int) -> str:
    cells = part.data[row]
    shown = [_brief(value) for role, value in cells.items() if role != "label"]
    return " | ".join(shown)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return value["path"].rsplit("/", 1)[-1] if value.get("path") else "an image"
    value = " ".join(map(str, value)) if isinstance(value, list) else value
    return textwrap.shorten(str(value)[:1000], 80, placeholder=" ...")


def render(checks: list[Check]) -> str:
    """The check page as plain aligned text; nothing in it, such as a colour code in a label, acts on a terminal."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        head = f"{check.level:<4}  {check.name:<{width}}  "
        lines += textwrap.wrap(visible(check.sentence), 100, initial_indent=head, subsequent_indent=" " * len(head))
        lines += [" " * len(head) + line for line in _table(check.details)]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    cells = [[visible(row.get(name, "")) for name in names] for row in rows[:_SHOWN]]
    cells.insert(0, [visible(name) for name in names])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return lines + ([f"... {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else [])
