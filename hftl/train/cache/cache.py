"""Frozen work done once: what the frozen part of a model gives for each row is computed once, kept, and replayed.

Knows models, rows and the disk; no task, no strategy and no training loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hftl.models.cut import find_cut
from hftl.models.replay import Cut, Inputs, Replay, capture, stand_in
from hftl.models.wrapped import inside, out_of_peft
from hftl.train.cache.store import NoRoom, Reader, Store
from hftl.train.rows import Rows, ahead, spans_of

GB = 1_000_000_000
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Cache:
    """What one run keeps: the outputs of frozen layers while they are frozen, and decoded inputs.

    Args:
        parts: the rows that are read more than once: those trained on, and those evaluated again and again.
        collate: makes a batch of rows as the task encodes them.
        gb: room on disk for all that is kept, of all runs.
        dtype: how floats are kept: float32, bfloat16, or auto for as they were computed.
        batch: rows computed at a time.
        bar: show how far it is.
        unread: settings in a model's config that no frozen layer reads, so that a run with others reuses what is kept.
    """

    def __init__(
        self,
        parts: list[Rows],
        collate: Callable[[list[dict[str, Any]]], Inputs],
        gb: float = 20.0,
        dtype: str = "auto",
        batch: int = 64,
        bar: bool = True,
        unread: Collection[str] = (),
    ) -> None:
        self.unread = unread
        self.parts, self.collate, self.dtype, self.batch = parts, collate, DTYPES[dtype], batch
        self.limit, self.bar = int(gb * GB), bar
        self.computed = 0.0
        """Rows times the share of a forward pass, computed to be kept."""
        self.notes: list[str] = []
        """What was kept or could not be, in sentences."""
        self.replay: Replay | None = None
        self._readers: dict[int, Reader] = {}
        self._template: Inputs = {}

    @property
    def share(self) -> float:
        """Of a forward pass, what need not be computed now."""
        return self.replay.cut.share if self.replay else 0.0

    def enter(self, model: nn.Module, active: set[int], passes: float, accelerator: Any) -> None:
        """A new stage begins, of so many passes over the rows: keep what is frozen in it, if that pays.

        Args:
            active: ids of the parameters that train in it.
            accelerator: says which process this is, and in which precision the model runs.
        """
        self.leave()
        parts = [rows for rows in self.parts if not rows.changed]
        if not self.limit or passes <= 1 or not parts or parts[0] is not self.parts[0]:
            return
        small, large = (self._on(model, self.collate(rows)) for rows in self._examples())
        cut = find_cut(model, active, small, large)
        try:
            if cut is not None:
                work = self._at_cut(model, cut, str(accelerator.mixed_precision))
                self._readers = self.keep(work, parts, accelerator)
                self._template = small
                self.replay = Replay(model, cut)
                self._resume()
                self._note(
                    f"Up to {cut.name} ({cut.share:.0%} of a forward pass) was computed once for each row and kept."
                )
            elif any(rows.decoded and rows.kept is None for rows in parts):
                self._keep_inputs(parts, small, accelerator)
        except NoRoom as full:
            self._note(f"Frozen layers and images are computed anew in each epoch: {full} See --cache_gb.")
            if accelerator.is_main_process:
                print(self.notes[-1])

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def refuse(self, why: str) -> None:
        """Keep nothing of what could be kept, and say so in the report."""
        if self.limit and any(not rows.changed for rows in self.parts):
            self._note(f"Frozen layers and images are computed anew in each epoch: {why}.")

    def leave(self) -> None:
        """Let the whole model run again."""
        self._pause()
        self.replay, self._readers = None, {}

    @contextlib.contextmanager
    def reading(self, rows: Any) -> Iterator[None]:
        """Run the whole model for rows that nothing was kept of."""
        known = self.replay is None or id(rows) in self._readers
        if not known:
            self._pause()
        try:
            yield
        finally:
            if not known:
                self._resume()

    def complete(self, inputs: Inputs, rows: Any, device: torch.device) -> Inputs:
        """Make a batch ready for the model: what was kept goes to the replay, what is missing is read."""
        numbers = inputs.pop("row", None)
        if numbers is None:
            return inputs
        replay = self.replay if id(rows) in self._readers else None
        if inputs.keys() <= {"labels"} and (replay is None or replay.cut.inputs):
            inputs = self.collate(rows.plain(numbers.tolist()))  # read before a new stage
        if replay is None:
            return inputs
        mask = inputs.get("attention_mask")
        left = mask is not None and bool((mask[:, 0] == 0).any())
        kept = self._readers[id(rows)].batch(numbers.tolist(), left=left)
        if not replay.cut.inputs:
            inputs = stand_in(self._template, inputs)
        shapes = replay.cut.output.shapes
        floats = [s.dtype if self.dtype and s.dtype.is_floating_point else None for s in shapes]
        replay.feed([t.to(device, d, non_blocking=True) for t, d in zip(kept, floats, strict=True)], inputs)
        return inputs

    def _pause(self) -> None:
        if self.replay is not None:
            self.replay.stop()
        for rows in self.parts:
            rows.light = False

    def _resume(self) -> None:
        if self.replay is not None:
            self.replay.start()
            for rows in self.parts:
                rows.light = id(rows) in self._readers and not self.replay.cut.inputs

    def _examples(self) -> tuple[list, list]:
        """Two and three rows, of unlike length where the rows have lengths."""
        rows = self.parts[0]
        order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
        middle = len(order) // 2
        picks = [order[0], order[min(1, len(order) - 1)]], [order[-1], order[0], order[middle]]
        return tuple(rows.plain([int(n) for n in pick]) for pick in picks)  # type: ignore[return-value]

    def _keep_inputs(self, parts: list[Rows], example: Inputs, accelerator: Any) -> None:
        """Keep images as the model reads them, so that none is decoded twice."""
        names = [name for name in example if name != "labels"]

        def compute(inputs: Inputs) -> list[tuple[torch.Tensor, ...]]:
            return list(zip(*(inputs[name] for name in names), strict=True))

        size = sum(example[name][0].numel() * example[name].element_size() for name in names)
        readers = self.keep(Work("inputs", "Decoding images", compute, lambda length: size), parts, accelerator)
        for rows in parts:
            reader = readers[id(rows)]
            rows.kept = lambda numbers, reader=reader: dict(zip(names, reader.batch(numbers), strict=True))

    def _at_cut(self, model: nn.Module, cut: Cut, precision: str) -> Work:
        """The work of the frozen part of a model."""
        shapes = cut.output.shapes

        def compute(inputs: Inputs) -> list[tuple[torch.Tensor, ...]]:
            model.eval()
            on = self._on(model, inputs)
            tensors = [t.to(self.dtype) if self.dtype and t.is_floating_point() else t for t in capture(model, cut, on)]
            spans = spans_of(inputs)
            return [
                tuple(
                    tensor[i][
                        tuple(span if size == "length" and not shape.first else slice(None) for size in shape.sizes[1:])
                    ]
                    for tensor, shape in zip((t.cpu() for t in tensors), shapes, strict=True)
                )
                for i, span in enumerate(spans)
            ]

        size = lambda length: sum(s.per_row(length) * s.dtype.itemsize for s in shapes)  # noqa: E731
        return Work(
            digest(model, [cut.name, *cut.output.shapes, precision, self.dtype], cut.weights, self.unread),
            f"Frozen up to {cut.name}, once",
            compute,
            size,
            cut.share,
        )

    def keep(self, work: Work, parts: list[Rows], accelerator: Any) -> dict[int, Reader]:
        """Readers by the id of the rows; what is not yet on disk is computed now, each process its share.

        Raises:
            NoRoom: on all processes, where one of them found none.
        """
        store = Store(work.space, self.limit)
        first, of = accelerator.process_index, accelerator.num_processes
        failure = ""
        with store.lock() if accelerator.is_main_process else contextlib.nullcontext():
            accelerator.wait_for_everyone()
            missing = store.missing_of([rows.keys for rows in parts])
            accelerator.wait_for_everyone()
            try:
                self._hold_against_limit(work, parts, missing)
                for rows, numbers in zip(parts, missing, strict=True):
                    self._fill(store, work, rows, numbers[first::of])
            except NoRoom as full:
                failure = str(full)
            failed = torch.tensor([float(bool(failure))], device=accelerator.device)
            if float(accelerator.reduce(failed, "sum")) > 0:
                raise NoRoom(failure or "another process found no room on disk.")
        return {id(rows): store.reader(rows.keys) for rows in parts}

    def _hold_against_limit(self, work: Work, parts: list[Rows], missing: list[np.ndarray]) -> None:
        needed = 0
        for rows, numbers in zip(parts, missing, strict=True):
            lengths = np.zeros(1) if rows.lengths is None else rows.lengths[numbers]
            needed += work.size(int(lengths.mean() if len(lengths) else 0)) * len(numbers)
        if needed > self.limit:
            raise NoRoom(f"it would take about {needed / GB:.1f} GB, and {self.limit / GB:.1f} GB are allowed.")

    def _fill(self, store: Store, work: Work, rows: Rows, numbers: np.ndarray) -> None:
        """Compute and publish the rows of these numbers, the longest first."""
        if not len(numbers):
            return
        if rows.lengths is not None:
            numbers = numbers[np.argsort(-rows.lengths[numbers], kind="stable")]
        batches = [numbers[start : start + self.batch].tolist() for start in range(0, len(numbers), self.batch)]

        def read(batch: list[int]) -> Inputs:
            return self.collate(rows.plain(batch))

        bar = tqdm(total=len(numbers), desc=work.what, unit="row", disable=not self.bar)
        with store.writer() as writer, bar, torch.no_grad():
            for batch, inputs in zip(batches, ahead(read, batches), strict=True):
                writer.add([rows.keys[n] for n in batch], work.compute(inputs))
                bar.update(len(batch))
        self.computed += work.share * len(numbers)

    def _on(self, model: nn.Module, inputs: Inputs) -> Inputs:
        device = next(model.parameters()).device
        return {name: value.to(device) for name, value in inputs.items()}


@dataclass(frozen=True)
class Work:
    """What is to be kept: where, under which words, how to compute it for a batch, and its bytes for a length."""

    space: str
    what: str
    compute: Callable[[Inputs], list[tuple[torch.Tensor, ...]]]
    size: Callable[[int], int]
    share: float = 0.0


def digest(model: nn.Module, about: Iterable[Any], weights: Iterable[str], unread: Collection[str]) -> str:
    """Names what a model computes for a row: the weights it depends on by content, and the model's settings."""
    config: Any = model.config
    told = {k: v for k, v in config.to_dict().items() if k not in unread}
    words = [inside(out_of_peft(str(word))) for word in about]
    named = hashlib.blake2b(
        json.dumps([told, words, torch.__version__], sort_keys=True, default=str).encode(), digest_size=16
    )
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for weight in weights:
        named.update(state[weight].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return named.hexdigest()
