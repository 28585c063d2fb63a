"""Check splits before training: sizes, duplicates, overlap, balance; `render` prints the page.

Every pass here is over arrays of a few bytes a row; texts are fetched only for the examples that are shown.
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from hftl.data.roles import Reading
from hftl.data.scan import DARK
from hftl.data.split import Split
from hftl.data.types import Check, counted, verb
from hftl.settings.visible import visible

_SHOWN = 12  # rows of a small table on the terminal
_EXAMPLES = 3


def split_checks(splits: dict[str, Split], reading: Reading | None) -> list[Check]:
    """Everything that the splits themselves show; `reading` is that of their labels."""
    found = [_rows(splits, reading), *_sizes(splits), _duplicates(splits["train"]), *_disagreement(splits["train"])]
    found.append(_overlap(splits))
    if reading is not None and reading.balanced:
        found.append(_balance(splits["train"], reading))
        found += _unmeasured(splits, reading)
    return found


def _unmeasured(splits: dict[str, Split], reading: Reading) -> list[Check]:
    """Classes that are learned and never measured: such as one whose only row is in train."""
    zeros = np.zeros(len(reading.names), np.int64)
    train, test = (sum(map(reading.count, splits[name].label_batches()), zeros) for name in ("train", "test"))
    never = [
        f"{reading.names[i]} ({counted(int(train[i]), 'row')} in train)"
        for i in np.flatnonzero((test == 0) & (train > 0))
    ]
    if not never:
        return []
    more = f" and {len(never) - 5} more" if len(never) > 5 else ""
    return [
        Check(
            "measured", "warn", f"no row of test has the class {', '.join(never[:5])}{more}: nothing is measured of it"
        )
    ]


def _rows(splits: dict[str, Split], reading: Reading | None) -> Check:
    sentence = ", ".join(f"{len(one.data):,} {split}" for split, one in splits.items())
    if reading is None:
        return Check("rows", "ok", sentence)
    more, details = reading.summary({split: one.label_batches() for split, one in splits.items()})
    return Check("rows", "ok", sentence + more, details)


def _sizes(splits: dict[str, Split]) -> list[Check]:
    found = []
    if any(one.scan.rows["words"].any() for one in splits.values()):
        details = [{"split": split, **_spread(one.scan.rows["words"])} for split, one in splits.items()]
        train = details[0]
        sentence = f"a text of train has {train['median']:,} words at the median and {train['max']:,} at most"
        found.append(Check("words", "ok", sentence, details))
    if any(one.scan.rows["width"].any() for one in splits.values()):
        details = []
        modes: Counter[str] = Counter()
        for split, one in splits.items():
            wide, high = _spread(one.scan.rows["width"]), _spread(one.scan.rows["height"])
            details.append({"split": split, **{k: f"{wide[k]}x{high[k]}" for k in ("min", "median", "max")}})
            names, numbers = np.unique(one.scan.rows["mode"], return_counts=True)
            modes.update({name.decode(): int(n) for name, n in zip(names, numbers, strict=True)})
        kinds = ", ".join(f"{n:,} {mode}" for mode, n in modes.most_common())
        sentence = f"an image of train has {details[0]['median']} pixels at the median; modes: {kinds}"
        found += [Check("images", "ok", sentence, details), *_pixels(splits)]
    return found


def _pixels(splits: dict[str, Split]) -> list[Check]:
    """What decoding made of images that is seldom meant."""
    rows = np.concatenate([one.scan.rows for one in splits.values()])
    blank, dark, animated = (int(rows[name].sum()) for name in ("blank", "dark", "animated"))
    found = []
    if blank > len(rows) / 20:
        sentence = f"{blank:,} of {len(rows):,} images have one colour throughout, so little can be told from them"
        found.append(Check("images", "warn", f"{sentence}: look at some"))
    if dark == len(rows):
        sentence = f"no pixel of any image is brighter than {DARK} of 255: stretch them to the range of their type"
        found.append(Check("images", "warn", sentence))
    if animated:
        sentence = f"{animated:,} of {len(rows):,} images have several frames or pages; the first of each is read"
        found.append(Check("images", "note", sentence))
    return found


def _spread(values: np.ndarray) -> dict[str, int]:
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100], method="lower")
    return {"min": int(low), "median": int(middle), "95 %": int(high), "max": int(top)}


def _duplicates(train: Split) -> Check:
    _, first, sizes = np.unique(train.scan.keys, return_index=True, return_counts=True)
    copies = int((sizes - 1).sum())
    if not copies:
        return Check("duplicates", "ok", "no row of train is there twice")
    most = [i for i in np.argsort(-sizes, kind="stable")[:_EXAMPLES] if sizes[i] > 1]
    details = [{"copies": int(sizes[i]), "row": _show(train, int(first[i]))} for i in most]
    return Check(
        "duplicates", "note", f"{counted(copies, 'row')} of train {verb(copies, 'repeat')} an earlier one", details
    )


def _disagreement(train: Split) -> list[Check]:
    """Rows that are equal, and whose labels are not."""
    if train.reading is None:
        return []
    group, sizes = np.unique(train.scan.keys, return_inverse=True, return_counts=True)[1:]
    labels: dict[int, set[bytes]] = {}
    rows = np.flatnonzero(sizes[group] > 1)
    held = train.values
    cells = (
        train.data.select_columns("label").select(rows)["label"][:] if held is None else (held[[row]] for row in rows)
    )
    for row, cell in zip(rows.tolist(), cells, strict=True):
        labels.setdefault(int(group[row]), set()).add(train.reading.digest(np.asarray(cell)))
    odd = [row for row in rows.tolist() if len(labels[int(group[row])]) > 1]
    if not odd:
        return []
    details = [{"row": _show(train, row)} for row in odd[:_EXAMPLES]]
    some = f"{counted(len(odd), 'row')} of train {verb(len(odd), 'equal')}"
    sentence = f"{some} another one whose label differs: no answer is right for both"
    return [Check("labels", "warn", sentence, details)]


def _overlap(splits: dict[str, Split]) -> Check:
    found, details = [], []
    for one, other in itertools.combinations(splits, 2):
        inside = np.isin(splits[other].scan.keys, splits[one].scan.keys)
        if inside.any():
            n = int(inside.sum())
            found.append(f"{n:,} of {other} {'is' if n == 1 else 'are'} in {one} too")
            rows = np.flatnonzero(inside)[:_EXAMPLES]
            details += [{"splits": f"{one}, {other}", "row": _show(splits[other], int(row))} for row in rows]
    if not found:
        return Check("overlap", "ok", "no row is in two splits")
    what = "rows" if len(found) == 1 else "rows of splits"
    sentence = f"the same {what} in two splits make results look better: {'; '.join(found)}"
    return Check("overlap", "warn", sentence, details)


def _balance(train: Split, reading: Reading) -> Check:
    names, sizes = reading.names, sum(map(reading.count, train.label_batches()), np.zeros(len(reading.names), np.int64))
    empty = [name for name, size in zip(names, sizes, strict=True) if size == 0]
    if empty:
        return Check("balance", "warn", f"no row of train has the class {', '.join(empty[:5])}; it cannot be learned")
    large, small = int(sizes.argmax()), int(sizes.argmin())
    ratio = sizes[large] / sizes[small]
    sentence = f"the largest class, {names[large]!r}, has {ratio:.1f} times the rows of {names[small]!r}"
    if ratio < 3 or len(sizes) < 2:
        return Check("balance", "ok", "the classes of train are of similar size" if ratio < 1.5 else sentence)
    cure = "; --class_weights balanced gives each class the same say" if reading.weighted else ""
    return Check("balance", "warn", sentence + cure)


def bad_rows(dropped: dict[str, dict[int, str]], total: int) -> Check:
    """What `on_bad_row="skip"` left out: split -> row -> reason."""
    count = sum(len(reasons) for reasons in dropped.values())
    if not count:
        return Check("bad rows", "ok", f"all {total:,} rows, of all splits, can be read, and none is empty")
    details = [
        {"split": split, "row": row + 1, "reason": why}
        for split, reasons in dropped.items()
        for row, why in reasons.items()
    ]
    sentence = (
        f"{count:,} of {total:,} rows of all splits {'was' if count == 1 else 'were'} left out (--on_bad_row skip)"
    )
    return Check("bad rows", "warn", sentence, details[:20])


def length_check(lengths: Iterable[int], limit: int, asked: int | None = None) -> Check:
    """How many texts are cut: `lengths` are in tokens, before the cut at `limit`; `asked` is --max_length."""
    found = np.fromiter(lengths, np.int64)
    total, longer, longest = len(found), int((found > limit).sum()), int(found.max(initial=0))
    most = f" (--max_length {asked} is more than the model takes)" if asked is not None and asked > limit else ""
    if not longer:
        said = f"no text is cut: the longest has {longest:,} tokens, the limit is {limit:,}{most}"
        return Check("lengths", "note" if most else "ok", said)
    share = longer / total
    cut = f"{longer:,} of {counted(total, 'text')} ({share:.1%}) {'is' if longer == 1 else 'are'} cut"
    sentence = f"{cut} at {limit:,} tokens{most}; the longest has {longest:,}"
    return Check("lengths", "warn" if share > 0.05 or most else "note", sentence)


def _show(one: Split, row: int) -> str:
    cells = one.data[row]
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
