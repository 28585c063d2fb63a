"""A thin `transformers.Trainer` that does what it says about losses, rates and frozen weights.

It adds what the base class gets wrong or lacks, and knows no task and no data set:
  - the loss of an update is the mean over all its items, however they are spread over micro-batches and processes;
  - each parameter trains at the rate that the strategy gives it, which may change during the run;
  - what is frozen is in eval mode: no dropout, no moving BatchNorm statistics;
  - what frozen layers give is computed once, where it is needed more than once;
  - rows of like length share a batch, in an order that is the same on every process and after a resume.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from hftl.errors import UserError, explained
from hftl.models.anatomy import Anatomy
from hftl.models.anatomy import anatomy as anatomy_of
from hftl.models.fresh import came_fresh, says_what_came
from hftl.models.packing import Packing
from hftl.strategies.base import Strategy
from hftl.train import items
from hftl.train.cache.cache import Cache
from hftl.train.devices import shard_by_block, watched
from hftl.train.rated import RatedTrainer
from hftl.train.rates import rate_groups, refuse_unknown
from hftl.train.streams import Beside, Step, Stream


class Trainer(RatedTrainer):
    """`transformers.Trainer` with a `strategy`; whatever stands below beside it, it takes what the base class takes.

    Outside of `train` the model is as it was given, but for what `strategy.prepare` adds: nothing is frozen or hooked.

    Args:
        strategy: how the weights meet the task; `strategy.prepare` is applied to the model here.
        anatomy: where each parameter sits, computed from the model as it was loaded.
        fresh: in place of `anatomy`, the names of the parameters that the checkpoint did not supply; by default what
            `from_pretrained` says of them.
        forward: `(model, inputs) -> outputs`, a mapping with `loss` and `logits`, in place of `model(**inputs)`.
        item_losses: `(logits, labels) -> losses` of shape (items,) to train on in place of the model's own loss.
        cache, max_tokens, longest: as `RowReader` takes them.
        streams: rows without labels by name, for a strategy that reads them; no frozen work is kept then.
        packing: run padded texts end to end, which spares the work on padding; off while the cache is replayed.
        The rest is the base class's.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        *others: Any,
        strategy: Strategy | None = None,
        anatomy: Anatomy | None = None,
        fresh: Collection[str] | None = None,
        forward: Callable[[nn.Module, dict[str, Any]], Any] | None = None,
        item_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        cache: Cache | None = None,
        streams: Mapping[str, Stream] | None = None,
        packing: bool = False,
        max_tokens: int | None = None,
        longest: int | None = None,
        **named: Any,
    ) -> None:
        named |= dict(zip([*inspect.signature(transformers.Trainer.__init__).parameters][3:], others, strict=False))
        args = args or transformers.TrainingArguments("tmp_trainer")
        self.strategy = strategy or Strategy()
        self.forward = forward or (lambda model, inputs: model(**inputs))
        self.item_losses, self.beside = item_losses, None
        self._told = anatomy, fresh
        if model is not None:
            model = self._prepared(model)
            if self.strategy.streams:
                self.beside = Beside(model, self.strategy, streams or {}, args, packing)
                self.groups = rate_groups(model, self.anatomy, self.strategy)
        if packing and args.torch_compile:
            raise UserError("--packing and --torch_compile do not go together. Leave out one of them.")
        if packing and self.strategy.across_rows:
            raise UserError("--packing has no rows, and the --strategy mixes those of a batch. Leave out one of them.")
        if model is None and (packing or self.strategy.streams):
            raise UserError("Packing and a strategy that reads unlabelled rows need a model, not a model_init.")
        self.packing = Packing(model, self.anatomy) if packing and model is not None else None
        super().__init__(cache, max_tokens, longest, model=model, args=args, **named)
        if self.is_fsdp_enabled:
            shard_by_block(self.accelerator.state.fsdp_plugin, self._blocks)
        self._pack()

    def _prepared(self, model: nn.Module) -> nn.Module:
        """The model as the strategy makes it, its anatomy read and its parameters grouped by rate."""
        anatomy, fresh = self._told
        self.anatomy = anatomy or anatomy_of(model, came_fresh(model) if fresh is None else fresh)
        if anatomy is None and fresh is None and not says_what_came(model):
            refuse_unknown(self.strategy, self.anatomy, model)
        self._blocks = {type(model.get_submodule(name)).__name__ for name in self.anatomy.stack}
        model = self.strategy.prepare(model, self.anatomy)
        self.groups = rate_groups(model, self.anatomy, self.strategy)
        return model

    def call_model_init(self, trial: Any = None) -> Any:
        return self._prepared(super().call_model_init(trial))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.beside is not None and checkpoint is not None:
            with explained("resume", checkpoint):
                self.beside.load(checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.beside is not None and self.args.should_save:
            self.beside.save(output_dir)

    def measure_plainly(self) -> None:
        """From now on the model computes in the precision of its weights, as whoever loads it has it.

        Sharded weights (FSDP, DeepSpeed) keep the precision that they train in.
        """
        if self.accelerator.mixed_precision != "no" and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.accelerator.native_amp = False  # for what is prepared from here on, and its `autocast`
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # takes autocast off its `forward`

    # --- the loss: a mean over the items of the whole update -------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self.cache is not None and self.cache.replay is not None and self.args.torch_compile:
            model = self.model  # what was compiled is the whole forward pass
        if self.packing is not None:
            self.packing.check(inputs)
        own, labels = self.compute_loss_func, inputs.get("labels")
        apart = labels is not None and (own is not None or self.label_smoother is not None)
        with self.accelerator.autocast():
            outputs = self.forward(model, {k: v for k, v in inputs.items() if k != "labels"} if apart else inputs)
        if own is not None:
            loss = own(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif self.item_losses is not None:
            loss = self.item_losses(outputs["logits"], inputs["labels"]).mean()
        elif self.label_smoother is not None and labels is not None:
            loss = self.label_smoother(outputs, labels, shift_labels=self._loss_shifts_labels)
        else:
            loss = items.own_loss(outputs, inputs).mean()  # DataParallel returns one loss per device
        if self.model.training:
            if self.loss_is_scaled_for_ga is None:
                self.loss_is_scaled_for_ga = True  # here, so that a `compute_loss` of a subclass is the base class's
            share = self._share(inputs, num_items_in_batch, loss)
            step = self._step(inputs, outputs, share)
            weight = 1.0 if own is not None or not self.loss_is_scaled_for_ga else share
            loss = self.strategy.loss(items.weighed(loss, weight), step)
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP takes the mean
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], num_items: torch.Tensor | int | None, loss: torch.Tensor) -> torch.Tensor:
        """What part of the update's items this micro-batch holds; where none are counted, one of its micro-batches."""
        count = items.count(inputs, self._loss_shifts_labels)
        if num_items is None or count is None:
            return torch.tensor(1 / self.current_gradient_accumulation_steps, device=loss.device)
        return count.to(loss.device) / torch.as_tensor(num_items, device=loss.device).clamp(min=1)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        counted = [items.marked(batch, self._loss_shifts_labels) for batch in batch_samples]
        if None in counted:
            return None
        accepts, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True  # so that it counts
        try:
            return super()._get_num_items_in_batch(counted, device)
        finally:
            self.model_accepts_loss_kwargs = accepts

    def _step(self, inputs: dict[str, Any], outputs: Any, share: torch.Tensor) -> Step:
        if self.beside is None:
            return Step(self.model, inputs, outputs, share, self.progress)
        views = self.beside.views(self.model, self.state.global_step, self.args.device)
        read, partner = self.beside.reads.last, self.beside.partner
        return Step(self.model, inputs, outputs, share, self.progress, views, read, partner)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self._enter_stage()
        loss = super().training_step(model, inputs, num_items_in_batch)
        for parameter in self._idle:
            parameter.grad = None  # under DDP an idle parameter still gets a gradient
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._stage = None
        if self.beside is not None:
            self.beside.attach(self.model)
        if self.model_init is None:
            self.groups = rate_groups(self.model, self.anatomy, self.strategy)  # as the user holds it fixed now
        try:
            with watched():
                return super().train(*args, **kwargs)
        finally:
            if self.beside is not None:
                self.beside.detach(self.model)
            if self.cache is not None:
                self.cache.leave()  # what comes after sees the whole model
