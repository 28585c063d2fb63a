"""Read labels that are masks: a class for each pixel of an image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hftl.data.roles import Reading
from hftl.data.types import Check, Labels
from hftl.errors import UserError, suggest
from hftl.paths import expanded

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from hftl.data.pixels import MaskScan
    from hftl.data.source import Opened, RawSplit


@dataclass(frozen=True)
class Masks(Reading):
    """A class for each pixel; an encoded label is the undecoded mask, whose pixels are `values`."""

    classes: str | None = None
    """A file with the names of the classes; None: the values found in train are the classes."""
    ignored: tuple[int, ...] = (255,)
    """Pixel values that are no class; 255 is another, unless none is named or masks have 0 and 255 alone."""

    def folders(self, source: object) -> Opened | None:
        from hftl.data.pixels import paired_folders

        return paired_folders(source)

    def look(self, raw: RawSplit, column: str, inputs: Callable[[], datasets.Dataset]) -> Any:
        import datasets

        from hftl.data.pixels import scan_masks

        rows = datasets.concatenate_datasets([inputs(), self.encode(raw, column)], axis=1)
        return scan_masks(rows, raw.roots, f"the masks of {raw.name}")

    def settle(self, train: MaskScan, offered: Mapping[str, Reading]) -> Self:
        """The classes: those of the file of names, in its order, or else the values found in train.

        Raises:
            UserError: fewer than two classes, a file that does not read, or a name that is there twice.
        """
        present = train.present
        named = names_in(self.classes) if self.classes else {value: str(value) for value in present}
        ignored = {*self.ignored, 255} if self.ignored else set[int]()
        if present == [0, 255] and 0 not in ignored:
            ignored.discard(255)  # else there were but one class
            named = {0: named[0], 255: named[1]} if sorted(named) == [0, 1] else named
        kept = {value: name for value, name in sorted(named.items()) if value not in ignored}
        if len(set(kept.values())) < len(kept):
            twice = next(name for name in kept.values() if list(kept.values()).count(name) > 1)
            raise UserError(f"Expected each name once in {self.classes}; {twice!r} comes more than once. Correct it.")
        if len(kept.keys() & set(present)) < 2:
            raise UserError(self._too_few(train, ignored))
        return replace(self, names=tuple(kept.values()), values=tuple(kept), ignored=tuple(sorted(ignored)))

    def _too_few(self, train: MaskScan, ignored: set[int]) -> str:
        held = ", ".join(map(str, train.present[:8])) or "nothing"
        if train.reasons:
            first = train.reasons[min(train.reasons)]
            why = f"{len(train.reasons):,} of {len(train.pixels):,} rows cannot be used, the first has {first}"
        elif out := sorted(ignored.intersection(train.present)):
            why = f"its pixels have {held}, of which {', '.join(map(str, out))} is ignored. Pass --ignored with fewer"
        else:
            why = f"its pixels have {held}" + (f", and {self.classes} names others" if self.classes else "")
            why += ". Correct the masks" + (" or the names" if self.classes else "")
        return f"Expected two classes or more in {train.where}; {why}."

    def notes(self, train: MaskScan, offered: Mapping[str, Reading]) -> list[Check]:
        """Which values were read as what, and the classes that no pixel of train has."""
        counts = train.pixels["counts"].sum(axis=0, dtype="int64")
        shown = [f"{value} = {name}" if str(value) != name else name for value, name in self._pairs()]
        sentence = f"pixels of {train.where} with these values are classes: {', '.join(shown[:8])}"
        if share := counts[list(self.ignored)].sum() / counts.sum():
            sentence += f"; {share:.1%} of them are none ({' or '.join(map(str, self.ignored))})"
        found = [Check("masks", "note" if 255 in self.values else "ok", sentence)]
        if never := [name for value, name in self._pairs() if not counts[value]]:
            off = self._off_by_one(counts)
            found.append(
                Check("masks", "warn", f"no pixel of train is {', '.join(never[:5])}; it cannot be learned{off}")
            )
        return found

    def _pairs(self) -> list[tuple[int, str]]:
        return list(zip(self.values, self.names, strict=True))

    def _off_by_one(self, counts: np.ndarray) -> str:
        """A hint where the lowest or highest class is never there, as if names were counted from another number."""
        ends = (self.values[0], self.values[-1])
        if not self.classes or all(counts[value] for value in ends):
            return ""
        name = Path(self.classes).name
        return f" (if the names are off by one: the first line of {name} names value 0, and it may be empty)"

    def check_same(self, train: Any, other: Any, split: str) -> None:
        """Values that train lacks are flaws of single rows."""

    def learnt(self, labels: Labels, raw: RawSplit, column: str) -> Self:
        if not labels.values:
            raise UserError("the folder does not say which values of pixels are its classes")
        return super().learnt(labels, raw, column)

    def encode(self, raw: RawSplit, column: str) -> datasets.Dataset:
        from hftl.data.formats.images import as_images

        return as_images(raw.labels(column), "label", raw.root, f"column {column!r} of {raw.name}", "label")

    def held(self, batches: Iterator[np.ndarray], found: MaskScan) -> np.ndarray:
        return found.pixels

    def flaws(
        self, data: datasets.Dataset, batches: Iterable[np.ndarray], found: MaskScan
    ) -> Iterator[tuple[int, str]]:
        """Masks that cannot be read, that hold a value which is no class, or ignored pixels alone."""
        yield from found.reasons.items()
        counts = found.pixels["counts"]
        other = [value for value in range(256) if value not in (*self.values, *self.ignored)]
        strange: np.ndarray = counts[:, other] > 0
        classes = f"the {len(self.names)} classes" + (f" of {Path(self.classes).name}" if self.classes else "")
        hint = self._off_by_one(counts.sum(axis=0, dtype="int64")) if self.classes else " (as train has them)"
        for row in strange.sum(axis=1).nonzero()[0].tolist():
            value = other[int(strange[row].argmax())]
            yield row, f"a mask with the value {value}, which is none of {classes}{hint} nor ignored"
        for row in (counts[:, self.values].sum(axis=1) == 0).nonzero()[0].tolist():
            yield row, "a mask of ignored pixels alone"

    def digest(self, values: np.ndarray) -> bytes:
        return values["digest"].tobytes()

    def count(self, values: np.ndarray) -> np.ndarray:
        return values["counts"][:, self.values].sum(axis=0, dtype="int64")

    def summary(self, splits: Mapping[str, Iterable[np.ndarray]]) -> tuple[str, list[dict[str, Any]]]:
        sentence, rows = super().summary(splits)
        return f"{sentence}, counted in pixels", rows


def names_in(file: str) -> dict[int, str]:
    """Pixel value -> class name: a text with a name a line, or JSON with a list or `{"0": "sky", ...}`.

    JSON may hold either under `id2label`, `label_names` or `names`, beside other things.
    """
    path = expanded(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except OSError as failure:
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"--classes {file} cannot be read: {failure.strerror}.{suggest(path.name, near) or ' Check the path.'}"
        ) from failure
    except ValueError as failure:
        raise UserError(f"--classes {file} is neither text nor JSON: {failure}. Write a name a line.") from failure
    if isinstance(found, dict):
        found = next((found[key] for key in ("id2label", "label_names", "names") if key in found), found)
    pairs = dict(_numbered(found))
    if not pairs or min(pairs) < 0 or max(pairs) > 255:
        raise UserError(
            f'Expected a name a line in {file}, or JSON like ["sky", "road"] or {{"0": "sky"}}. Correct it.'
        )
    return pairs


def _numbered(found: Any) -> Iterator[tuple[int, str]]:
    if isinstance(found, list):
        yield from ((i, name) for i, name in enumerate(found) if isinstance(name, str) and name)
    elif isinstance(found, dict) and all(str(key).isdigit() for key in found):
        yield from ((int(key), str(name)) for key, name in found.items())
