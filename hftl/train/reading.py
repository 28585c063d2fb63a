"""How a Trainer reads rows: in which order, and what the cache has kept of them. Knows no strategy and no rates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import TrainerCallback

from hftl.train.cache.cache import Cache
from hftl.train.devices import share_buffers, watched
from hftl.train.resume.resuming import ResumableTrainer
from hftl.train.rows import Numbered, Rows
from hftl.train.sampling import (
    LengthGrouped,
    LongestFirst,
    in_order,
    lengths_of,
    metric_in_order,
    order_of,
    training_order,
)

_LOADER = (
    *("collate_fn", "num_workers", "pin_memory", "worker_init_fn", "multiprocessing_context", "prefetch_factor"),
    *("persistent_workers", "in_order"),
)
"""What a DataLoader is told beside its rows and batches."""


class RowReader(ResumableTrainer):
    """`transformers.Trainer` with rows of like length in a batch, and rows that are partly kept.

    Args:
        cache: keeps what frozen layers give; its parts are the train and eval dataset.
        max_tokens: of a micro-batch, padding counted, in place of a number of rows; the rows need lengths.
        longest: the number of tokens that longer rows have been cut at.
        The rest is the base class's.

    Attributes:
        further: gives metrics beside those of `compute_metrics`, at each evaluation of the run.
        eval_order: (rows,) which row each position was that `compute_metrics` was last fed; None for their own order.
    """

    def __init__(
        self, cache: Cache | None = None, max_tokens: int | None = None, longest: int | None = None, **others: Any
    ) -> None:
        self.cache, self.max_tokens, self.longest = cache, max_tokens, longest
        self.eval_order: Any = None
        self.further: Callable[[], dict[str, float]] | None = None
        self._read: Any = None  # the dataset of the evaluation in progress
        self._sampler: Any = None
        if cache is not None:
            others["data_collator"] = Numbered(others["data_collator"])
        super().__init__(**others)

    @property
    def _size(self) -> int:
        rows: Any = self.train_dataset
        return max(len(rows), 1)

    def _running(self, losses: torch.Tensor) -> dict[str, Any]:
        kept = {} if self.cache is None else {"computed": self.cache.computed, "notes": self.cache.notes}
        return super()._running(losses) | kept

    def _take_up(self, told: dict[str, Any]) -> None:
        super()._take_up(told)
        if self.cache is not None:
            self.cache.computed, self.cache.notes = told.get("computed", 0.0), told.get("notes", [])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        return super().training_step(model, self._whole(inputs, self.train_dataset), num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The base class's estimate; 0 while frozen layers are replayed: it counts inputs, which such batches lack."""
        replays = self.cache is not None and self.cache.replay is not None
        return 0 if replays else super().floating_point_ops(inputs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(model, self._whole(inputs, self._read), *args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        self._read, order = getattr(dataloader, "dataset", None), order_of(dataloader)
        metric = self.compute_metrics
        self.eval_order = order
        if order is not None and metric is not None and not self.args.batch_eval_metrics:
            self.compute_metrics, self.eval_order = metric_in_order(metric, order), None
        if self.args.world_size > 1:
            share_buffers(self.model)
        try:
            with watched(), self.cache.reading(self._read) if self.cache is not None else nullcontext():
                found = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = metric
        prefix = kwargs.get("metric_key_prefix", "eval")
        if self.further is not None and prefix == "eval":
            more = {f"{prefix}_{name}": value for name, value in self.further().items()}
            found = found._replace(metrics=(found.metrics or {}) | more)
        if order is None:
            return found
        ordered = {name: in_order(getattr(found, name), order) for name in ("predictions", "label_ids")}
        return found._replace(**ordered)

    def whole(self) -> Any:
        """A context in which the model runs whole, whatever is kept of its frozen layers."""
        return nullcontext() if self.cache is None else self.cache.reading(None)

    def _while_training(self) -> list[TrainerCallback]:
        return [_EpochOrder(self), *super()._while_training()]

    def _whole(self, inputs: dict[str, Any], rows: Any) -> dict[str, Any]:
        return inputs if self.cache is None else self.cache.complete(inputs, rows, self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        """The base class's; where batches vary in size, they take the place of its own: each process has its own ones.

        The base class takes such batches from a sampler of its own alone, and accelerate would part them once more.
        """
        given = super().get_train_dataloader()
        if self._sampler is None or isinstance(self._sampler, LengthGrouped):
            return given
        kept = {name: getattr(given, name) for name in _LOADER}
        loader = DataLoader(given.dataset, batch_sampler=self._sampler, **kept)
        rng, later = self.accelerator.rng_types.copy(), self.accelerator.non_blocking
        return prepare_data_loader(
            loader, self.args.device, 1, 0, put_on_device=True, rng_types=rng, non_blocking=later
        )

    def order(self, rows: Any) -> Any:
        """In which order rows are trained on: a sampler of rows, or of whole batches of this process."""
        return training_order(rows, self.args, self.max_tokens, self.longest)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The base class's; what is measured is never dropped, whatever `dataloader_drop_last` spares in training."""
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and kwargs.get("is_training", False)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset  # what comes has lost the column of lengths, which no model reads
        if not hasattr(rows, "__len__") or self.args.train_sampling_strategy in ("sequential", "batch_rebalance"):
            self._sampler = None
            return super()._get_train_sampler(train_dataset)
        self._sampler = self.order(rows)
        return self._sampler if isinstance(self._sampler, LengthGrouped) else SequentialSampler(rows)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        lengths = lengths_of(eval_dataset, self.args.length_column_name)
        if lengths is None or not self.args.eval_do_concat_batches:  # what comes batch by batch cannot be put back
            return super()._get_eval_sampler(eval_dataset)
        return LongestFirst(lengths)


class _EpochOrder(TrainerCallback):
    """Tells the sampler which epoch it is; accelerate's own call does not reach it after a resume."""

    def __init__(self, trainer: RowReader) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._sampler is not None:
            self.trainer._sampler.set_epoch(int(state.epoch or 0))
        if isinstance(self.trainer.train_dataset, Rows):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))
