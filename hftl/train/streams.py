"""What a strategy reads beside the labelled batch: batches of other rows, the features of the head, partner modules.

Knows strategies by their verbs and models by their head; knows neither what the rows are nor what a loss is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from hftl.errors import UserError
from hftl.models.fitting import fitting
from hftl.models.head import Reads, output_layer
from hftl.models.untouched import untouched
from hftl.strategies.base import Strategy
from hftl.train.sampling import LengthGrouped, lengths_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

STATE = "partner.safetensors"
PARTNER = "partner"
"""The name under which a model holds what strategies train beside it; it is gone once training ends."""

NEEDED = {
    "unlabelled": "reads unlabelled rows of the target domain",
    "masked": "reads unlabelled texts of the target domain",
    "strong": "reads unlabelled rows of the target domain",
}


class Stream(NamedTuple):
    """Rows without labels: `rows.__getitems__(numbers)` gives a list of them, and `collate` makes a batch of it."""

    rows: Any
    collate: Callable[[list[Any]], dict[str, torch.Tensor]]


class Batches:
    """Batches of a stream, by number: a function of seed and number alone, so the same on resuming.

    Each pass over the rows is shuffled anew, rows of like length share a batch, and what fills no batch waits for the
    next pass. Streams of the same rows give the same rows for a number. A stream that is shorter than a batch repeats.

    Args:
        batch: rows of one process; the `processes` share what one would read alone.
    """

    def __init__(self, stream: Stream, batch: int, seed: int, processes: int = 1, process: int = 0) -> None:
        self.stream, self.batch, self.seed = stream, batch, seed
        self.processes, self.process = processes, process
        self.whole = batch * processes
        self._order = LengthGrouped(len(stream.rows), self.whole, lengths_of(stream.rows, "length"), seed)
        self._pass, self._rows = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        a_pass = max(1, len(self.stream.rows) // self.whole)
        if number // a_pass != self._pass:
            self._pass = number // a_pass
            self._order.set_epoch(self._pass)
            self._rows = np.resize(np.fromiter(self._order, np.int64), max(self.whole, len(self.stream.rows)))
        start = number % a_pass * self.whole + self.process * self.batch
        rows = self._rows[start : start + self.batch].tolist()
        words = (self.seed, number, self.process)
        with torch.random.fork_rng([]):  # what changes rows at random does so by their number, and moves nothing else
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
            return self.stream.collate(self.stream.rows.__getitems__(rows))


@dataclass
class View:
    """One batch of a stream, and what the model makes of it, computed when it is first asked for."""

    model: nn.Module
    inputs: dict[str, Any]
    reads: Reads

    @cached_property
    def _seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(**{k: v for k, v in self.inputs.items() if k != "labels"})["logits"].float()
        return logits, self.reads.last

    @property
    def logits(self) -> torch.Tensor:
        """(rows, classes) float32."""
        return self._seen[0]

    @property
    def features(self) -> torch.Tensor:
        """(rows, width) float32: what the output layer reads."""
        return self._seen[1]


@dataclass(frozen=True)
class Step:
    """What `Strategy.loss` sees of a micro-batch; `share` is its part of the update's items, progress is in [0, 1].

    For a strategy with `streams` there are also `views` (by stream: inputs, logits, features), the `features` that the
    output layer read for this batch, (rows, width), and the `partner` modules by the name of their strategy.
    """

    model: nn.Module
    inputs: dict[str, Any]
    outputs: Any
    share: torch.Tensor
    progress: float
    views: Mapping[str, View] = field(default_factory=dict)
    features: torch.Tensor | None = None
    partner: Any = None

    @property
    def logits(self) -> torch.Tensor:
        """(rows, classes) float32 of the labelled batch."""
        return self.outputs["logits"].float()


class Beside:
    """Everything a strategy that names `streams` works with, for one model, under a Trainer's arguments.

    Args:
        streams: by name; those that the strategy reads must be there.

    Raises:
        UserError: a stream is missing, the model's logits are not the output of one linear layer, or rows are packed or
            the model is split over devices.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        streams: Mapping[str, Stream],
        args: TrainingArguments,
        packing: bool,
    ) -> None:
        if packing:
            raise UserError("--packing and a strategy that reads unlabelled rows do not go together. Leave out one.")
        if args.deepspeed or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise UserError(
                "A strategy that reads unlabelled rows needs whole models: launch without FSDP or DeepSpeed."
            )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # a partner is used outside the wrapped forward, and would count so
        for name in strategy.streams:
            if name not in streams:
                readers = " | ".join(type(part).__name__ for part in strategy.parts if name in part.streams)
                raise UserError(f"{readers} {NEEDED.get(name, f'reads {name!r} rows')}. Pass --unlabelled with them.")
            if not len(streams[name].rows):
                raise UserError("Expected unlabelled rows; there are none. Pass another --unlabelled.")
        seed = args.seed if args.data_seed is None else args.data_seed
        place = (args.per_device_train_batch_size, seed, args.world_size, args.process_index)
        self.batches = {name: Batches(streams[name], *place) for name in strategy.streams}
        self.accumulation, self._last = args.gradient_accumulation_steps, (-1, -1)
        example = {k: v for k, v in next(iter(self.batches.values()))[0].items() if k != "labels"}
        with untouched(model), fitting(model, example):
            layer = output_layer(model.eval(), example)
        if layer is None:
            name = type(model).__name__
            raise UserError(
                f"{' | '.join(strategy.streams)} rows are aligned where one linear layer gives the logits; {name} has "
                "none. Pass another --model."
            )
        head: Any = model.get_submodule(layer)
        self.layer = layer
        self.reads: Any = None
        made = {
            type(part).__name__: part.partner(head.in_features, head.out_features, model) for part in strategy.parts
        }
        self.partner = nn.ModuleDict({name: module for name, module in made.items() if module is not None})
        self.attach(model)

    def attach(self, model: nn.Module) -> None:
        """Let the model hold its partner, so that it moves, trains and is saved with it, and listen to the head."""
        if len(self.partner) and not hasattr(model, PARTNER):
            model.add_module(PARTNER, self.partner)
        if self.reads is None:
            self.reads = Reads(model.get_submodule(self.layer))

    def detach(self, model: nn.Module) -> None:
        """Leave the task model alone."""
        if self.reads is not None:
            self.reads.stop()
            self.reads = None
        if hasattr(model, PARTNER):
            delattr(model, PARTNER)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the partner beside a checkpoint: that of an adapter holds nothing else."""
        if len(self.partner):
            save_model(self.partner, str(Path(folder) / STATE))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Take up what `save` wrote."""
        if len(self.partner):
            load_model(self.partner, Path(folder) / STATE)

    def views(self, model: nn.Module, update: int, device: Any) -> dict[str, View]:
        """The batches that belong to the next micro-batch of an update."""
        self._last = (update, self._last[1] + 1 if self._last[0] == update else 0)
        number = update * self.accumulation + self._last[1]
        return {
            name: View(model, {k: v.to(device) for k, v in batches[number].items()}, self.reads)
            for name, batches in self.batches.items()
        }
