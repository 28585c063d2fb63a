"""Set the rows of a target domain aside from those of the source; no label of the target is read.

In unsupervised domain adaptation train, valid and test are of the source domain; of the target there are unlabelled
rows to train with, and labelled ones to test on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hftl.data.carve import generator
from hftl.data.formats.images import loose_images
from hftl.data.source import Opened, RawSplit, one_set, open_source
from hftl.data.types import Target
from hftl.errors import UserError, suggest


def set_aside(opened: Opened, target: Target, seed: int) -> tuple[RawSplit | None, RawSplit | None]:
    """Take the target's rows out of `opened`: those to train with, whose labels nothing reads, and those to test on.

    Of a domain that is a value of a column, its rows of train and valid are to train with and those of test to test
    on; where the data has no test split, each row goes to one half or the other, by the seed.

    Raises:
        UserError: no such file, column or domain, or two answers to one question.
    """
    target = _own(opened, target)
    if target.domain is None or target.target is None:
        for flag, given in (("target", target.target), ("source", " ".join(target.source))):
            if given:
                raise UserError(f"--{flag} {given} names a domain. Pass --domain with its column, and --target.")
        return _one(target.unlabelled, "train", "unlabelled"), _one(target.target_test, "test", "target_test")
    for name in ("unlabelled", "target_test"):
        if getattr(target, name) is not None:
            raise UserError(f"--target takes its rows from --data, and --{name} from elsewhere. Leave out one of them.")
    taken: dict[str, RawSplit] = {}
    seen: set[str] = set()
    for split, rows in opened.splits.items():
        if target.domain not in rows.data.column_names:
            there = ", ".join(rows.data.column_names[:12])
            hint = suggest(target.domain, rows.data.column_names)
            raise UserError(f"Expected a column {target.domain!r} in {rows.name}; it has {there}.{hint}")
        values = np.array([str(value) for value in rows.data[target.domain][:]])
        seen |= set(values.tolist())
        here = values == target.target
        learned = np.isin(values, target.source) if target.source else ~here
        opened.splits[split] = rows.take(np.flatnonzero(learned), " ".join(target.source) or f"not {target.target}")
        taken[split] = rows.take(np.flatnonzero(here), target.target)
    for flag, name in [("target", target.target), *(("source", name) for name in target.source)]:
        if name not in seen:
            names = ", ".join(sorted(seen)[:12])
            hint = suggest(name, seen) or f" Pass --{flag} with one of them."
            raise UserError(f"Expected a domain {name!r} in column {target.domain!r}; it has {names}.{hint}")
    if target.target in target.source:
        raise UserError(f"--target {target.target} is among --source, too. Leave it out of one of them.")
    empty = next((split for split in ("train", "test") if split in taken and not len(opened.splits[split].data)), None)
    if empty:
        raise UserError(f"All rows of {empty} are of the domain {target.target!r}; there is no source to learn from.")
    return _halves(opened, taken, seed)


def _own(opened: Opened, target: Target) -> Target:
    """The target without the bundled rows that a recipe names by default, where the user's own data does not fit them.

    Raises:
        UserError: bundled rows would be the only target of the user's own data.
    """
    bundled = {name for name in ("unlabelled", "target_test") if str(getattr(target, name)).startswith("hftl:")}
    if target.domain is not None and target.target is not None:
        gone: dict[str, Any] = dict.fromkeys(bundled)
        return replace(target, **gone)
    if "unlabelled" in bundled and not opened.name.startswith("hftl:"):
        raise UserError(
            f"--unlabelled is {target.unlabelled}, which does not go with {opened.name}. Pass --unlabelled with rows "
            "of your target, or --domain and --target."
        )
    return replace(target, target_test=None) if bundled == {"target_test"} else target


def _halves(opened: Opened, taken: dict[str, RawSplit], seed: int) -> tuple[RawSplit, RawSplit]:
    train = taken["train"]
    if "test" in taken and len(taken["test"].data):
        return train, taken["test"]
    order = generator(seed, "target").permutation(len(train.data))
    half = len(order) // 2
    opened.notes.append(f"no test split: half of {train.name} trains without labels, half tests, seed {seed}")
    return train.take(np.sort(order[:half]), "unlabelled half"), train.take(np.sort(order[half:]), "test half")


def _one(source: Any, split: str, name: str) -> RawSplit | None:
    """The rows of a source of its own: all of it, or its `split` where it has several."""
    if source is None:
        return None
    loose = loose_images(source) if split == "train" else None  # without labels a folder needs no folder by class
    return one_set(open_source(source if loose is None else loose), split, f"--{name} {source}")
