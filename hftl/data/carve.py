"""Draw rows with a seed: those that a missing split takes from train, and those of a smaller train split.

Every choice is a function of its arguments alone, so each process of a run makes the same one.
"""

from __future__ import annotations

import zlib

import numpy as np

from hftl.data.types import counted
from hftl.errors import UserError

FEWEST = 3  # rows of a class that carving touches: one to learn from, one for valid, one for test


def carve(
    share: float, groups: np.ndarray, classes: np.ndarray | None, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Set rows aside: `(rest, taken)`, both sorted row numbers.

    Rows of one group (the same text, the same image) stay together, or valid would hold copies of what was learned.

    Args:
        share: of the rows, in (0, 1); each class with FEWEST groups or more gives this share, and at least one.
        groups: one number per row.
        classes: the class id per row; None draws without regard to classes.
        purpose: "valid" or "test": the two draws are independent.

    Raises:
        UserError: no row can be taken without emptying a class.
    """
    first, inverse = np.unique(groups, return_index=True, return_inverse=True)[1:]
    # np.unique sorts by hash: return to the order of the rows, so that the draw does not hang on hash values
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    member, first = rank[inverse.reshape(-1)], first[order]
    random = generator(seed, purpose)
    if classes is None:
        count = max(1, round(share * len(first)))
        chosen = random.permutation(len(first))[:count] if len(first) > 1 else np.array([], dtype=int)
    else:
        chosen = _stratified(share, classes[first], random)
    if len(chosen) == 0:
        raise UserError(
            f"Expected enough rows in train to set some aside for {purpose}; {counted(len(first), 'different row')} "
            f"{'does' if len(first) == 1 else 'do'} not go round. Add rows, or pass --{purpose} FILE."
        )
    taken = np.isin(member, chosen)
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _stratified(share: float, classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    chosen: list[int] = []
    spare: list[int] = []
    for value in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == value))
        if len(rows) >= FEWEST:
            chosen.extend(rows[: max(1, round(share * len(rows)))])
        elif len(rows) > 1:
            spare.append(rows[0])
    if not chosen and spare:
        # no class is large enough: a plain random draw, that still leaves each class a row to learn from
        count = max(1, round(share * len(classes)))
        chosen = list(random.permutation(spare)[:count])
    return np.array(chosen, dtype=int)


def subset(count: int, classes: np.ndarray | None, rows: int, seed: int) -> np.ndarray:
    """`count` of `rows` row numbers, sorted; each class keeps its share, and at least one row where `count` allows.

    Raises:
        UserError: a count below 1.
    """
    if count < 1:
        raise UserError(f"Expected --max_train_samples of 1 or more; it is {count}.")
    if count >= rows:
        return np.arange(rows)
    random = generator(seed, "subset")
    if classes is None:
        return np.sort(random.permutation(rows)[:count])
    values, sizes = np.unique(classes, return_counts=True)
    if count < len(values):
        raise UserError(
            f"Expected --max_train_samples of {len(values)} or more, one row a class; it is {count}. "
            f"Pass --max_train_samples {len(values)}."
        )
    quota = _quota(count, sizes)
    drawn = [random.permutation(np.flatnonzero(classes == v))[:q] for v, q in zip(values, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def _quota(count: int, sizes: np.ndarray) -> np.ndarray:
    """Seats by the largest remainder, after one seat for each class."""
    exact = (count - len(sizes)) * (sizes - 1) / max(1, sizes.sum() - len(sizes))
    quota = 1 + np.floor(exact).astype(int)
    left = count - quota.sum()
    quota[np.argsort(-(exact % 1), kind="stable")[:left]] += 1
    return quota


def generator(seed: int, purpose: str) -> np.random.Generator:
    # zlib.crc32, not hash(): that one differs between processes
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def scarce(groups: np.ndarray, classes: np.ndarray) -> list[int]:
    """Ids of the classes with too few different rows (less than FEWEST) to give any away."""
    first = np.unique(groups, return_index=True)[1]
    values, sizes = np.unique(classes[first], return_counts=True)
    return [int(value) for value, size in zip(values, sizes, strict=True) if size < FEWEST]
