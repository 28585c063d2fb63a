"""A Trainer whose parameters each train at the rate that a strategy gives them; what is at 0 rests.

Knows strategies by their rates, and what frozen layers spare; nothing of the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_optimizer import is_optimizer_factory

from hftl.errors import UserError
from hftl.models.anatomy import Anatomy
from hftl.models.frozen import frozen_modules
from hftl.models.packing import Packing
from hftl.strategies.base import Strategy
from hftl.train.rates import POINTS, RateGroup, follow, optimizer_groups, scheduled, stage_share
from hftl.train.reading import RowReader
from hftl.train.resume.stopping import REQUEST
from hftl.train.selecting import breaks_tie
from hftl.train.streams import PARTNER, Beside


class RatedTrainer(RowReader):
    """`transformers.Trainer` whose optimizer, schedule and frozen modules follow `strategy.rate`.

    Attributes:
        groups: the parameters that train at any time of the run, by rate.
        starts_solved: whether the model is worth keeping before its first step, which `eval_on_start` measures.
        breaks_ties: whether of checkpoints that are equal in the metric the one with the lowest loss is the best.
    """

    model: Any  # never None here, unlike in the base class
    optimizer: Any
    lr_scheduler: Any
    strategy: Strategy
    anatomy: Anatomy
    groups: list[RateGroup]
    breaks_ties = False
    starts_solved = False
    packing: Packing | None
    beside: Beside | None

    def __init__(self, *args: Any, **others: Any) -> None:
        self._rates: list[RateGroup] = []  # of the optimizer's parameter groups, where it was made here
        self._idle: list[nn.Parameter] = []
        self._eval_modules: list[nn.Module] = []
        self._stage: tuple[bool, ...] | None = None
        self._shares: dict[tuple[bool, ...], float] = {}  # of a forward pass, what the cache spares in each stage
        super().__init__(*args, **others)

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return self.state.global_step / self.state.max_steps if self.state.max_steps > 0 else 0.0

    def _running(self, losses: torch.Tensor) -> dict[str, Any]:
        return super()._running(losses) | {"shares": [[list(stage), share] for stage, share in self._shares.items()]}

    def _take_up(self, told: dict[str, Any]) -> None:
        super()._take_up(told)
        self._shares = {tuple(stage): share for stage, share in told["shares"]}

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with self.frozen():
            return super()._inner_training_loop(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As the base class does; where a run `starts_solved`, the model before the first step may be the best."""
        if self.starts_solved and skip_scheduler and self.state.global_step > 0:
            return {}  # a run that goes on has measured its start
        found = super()._evaluate(trial, ignore_keys, skip_scheduler)
        if self.starts_solved and self.state.global_step == 0 and self._determine_best_metric(found, trial):
            self.state.best_global_step = 0
            self._save_checkpoint(self.model, trial)
            self.state.best_model_checkpoint = str(Path(self._get_output_dir(trial)) / "checkpoint-0")
        return found

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the base class does; a run that `breaks_ties` takes of equals the one with the lower loss."""
        better = super()._determine_best_metric(metrics, trial)
        if better or not self.breaks_ties or self.args.metric_for_best_model is None:
            return better
        if breaks_tie(metrics, self.args.metric_for_best_model, self.state):
            self.state.best_global_step = self.state.global_step
            return True
        return False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """What never trains asks for no gradient, and rests while the model is in training mode; afterwards no more."""
        trained = {id(p) for group in self.groups for p in group.parameters.values()}
        held = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in held:
            parameter.requires_grad_(id(parameter) in trained)
        hook = self.model.register_forward_pre_hook(self._rest_frozen_modules)
        try:
            yield
        finally:
            hook.remove()
            for module in self._eval_modules:
                module.training = self.model.training
            for parameter in held:
                parameter.requires_grad_(True)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.args.world_size > 1:
            return super()._clip_grad_norm(model)
        trained = [parameter for group in self.groups for parameter in group.parameters.values()]
        return self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)  # walking a frozen model takes long

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        one_rate = all(group.signature == self.groups[0].signature for group in self.groups)
        if self.optimizer is not None:
            if not one_rate and not self._rates:
                raise UserError("An optimizer of your own has its own rates. Pass its class: optimizer_cls_and_kwargs.")
            return self.optimizer
        target: Any = self.model if model is None else model
        asked = self.optimizer_cls_and_kwargs
        cls, settings = asked or self.get_optimizer_cls_and_kwargs(self.args, target)
        own_groups = {"params", "model", "optimizer_dict"} & set(settings)
        if is_optimizer_factory(cls) or own_groups:
            if not one_rate:
                raise UserError(f"--optim {self.args.optim} has one rate for all layers. Use adamw_torch.")
            return super().create_optimizer(model)
        follow(self.groups, target)
        decayed = set(self.get_decay_parameter_names(target))
        lr = settings.get("lr", self.args.learning_rate)
        made = optimizer_groups(self.groups, lr, self.args.weight_decay, decayed)
        self.optimizer_cls_and_kwargs = (cls, {**settings, "params": made})
        try:
            made_by_base = super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = asked
        self._rates = [group.pop("rate_group") for group in made_by_base.param_groups]  # kept out of checkpoints
        return made_by_base

    def _prepare_for_training(self, *args: Any) -> Any:
        prepared = super()._prepare_for_training(*args)
        follow(self.groups, self.model)  # FSDP has replaced the parameters
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            base = super().create_scheduler(num_training_steps, optimizer)
            if self._rates:
                self.lr_scheduler = scheduled(base, self.strategy, self._rates, num_training_steps)
        return self.lr_scheduler

    def _enter_stage(self) -> None:
        """Follow the rates: what is at 0 now needs no gradient, and its modules rest in eval mode."""
        stage = self._stage_at(self.progress)
        if stage == self._stage:
            return
        self._stage = stage
        moved = [(p, on) for group, on in zip(self.groups, stage, strict=True) for p in group.parameters.values()]
        active = {id(parameter) for parameter, on in moved if on}
        self._idle = [parameter for parameter, on in moved if not on]
        if self.accelerator.num_processes == 1:  # DDP has hooked every gradient by now
            for parameter, on in moved:
                parameter.requires_grad_(on)
        self._eval_modules = frozen_modules(self.model, active)
        if self.cache is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.cache.refuse("the weights are split over processes (FSDP or DeepSpeed)")
        elif self.cache is not None and self.beside is None:
            if self.packing is not None:
                self.packing.stop()
            if self.strategy.across_rows:  # then no features are a row's own, to be kept
                active = {id(parameter) for parameter in self.model.parameters()}
            with REQUEST.patient(False):  # computing what is kept may take hours, and goes on where it was
                self.cache.enter(self.model, active, self._passes_of(stage), self.accelerator)
            self._shares[stage] = self.cache.share
            self._pack()

    def _pack(self) -> None:
        """Pack, unless what frozen layers gave is replayed: that was kept from padded batches."""
        if self.packing is not None and (self.cache is None or self.cache.replay is None):
            self.packing.start()

    def _passes_of(self, stage: tuple[bool, ...]) -> float:
        """Passes over the training rows from the start to the end of the stage that is entered now."""
        epochs = self.args.num_train_epochs
        if self.args.max_steps > 0:
            batches: Any = self.callback_handler.train_dataloader
            updates = len(batches) / self.args.gradient_accumulation_steps
            epochs = self.args.max_steps / max(updates, 1)
        return stage_share(self.groups, stage, self.progress) * epochs

    def _rest_frozen_modules(self, model: nn.Module, args: Any) -> None:
        # In a forward hook because the base class calls model.train() at the start of every step.
        if model.training:
            for module in self._eval_modules:
                module.training = False

    def _stage_at(self, progress: float) -> tuple[bool, ...]:
        return tuple(group.constant or self.strategy.rate(group.place, progress) > 0 for group in self.groups)

    @property
    def forward_passes(self) -> float:
        """The work of the run so far in forward passes over the training set.

        A backward pass counts as two forward passes over the blocks that it walks through.
        """
        steps = self.state.global_step
        if not steps:
            return 0.0
        stages = Counter(self._stage_at(step / self.state.max_steps) for step in range(steps))
        cost = sum(
            count * (1 - self._shares.get(stage, 0.0) + 2 * self._backward_share(stage))
            for stage, count in stages.items()
        )
        kept = self.cache.computed / self._size if self.cache is not None else 0.0
        return cost / steps * (self.state.epoch or 0.0) + kept

    @property
    def trained(self) -> int:
        """Numbers of the model that have trained by the step whose weights are kept; without those of a partner."""
        kept, steps = self.state.best_global_step, self.state.max_steps
        if kept == 0 and self.starts_solved:  # the output layer was solved, and no step has made it better
            parameters = self.model.named_parameters()
            return sum(p.numel() for name, p in parameters if self.anatomy.place(name).fresh)
        until = kept / steps if kept and steps > 0 else 1.0
        seen = sum(at < until for at in POINTS)
        moved = (group.parameters for group in self.groups if max(group.signature[:seen]) > 0)
        return sum(p.numel() for part in moved for name, p in part.items() if not name.startswith(f"{PARTNER}."))

    def _backward_share(self, stage: tuple[bool, ...]) -> float:
        if not self.anatomy.stack:
            return 1.0
        on = [group for group, trains in zip(self.groups, stage, strict=True) if trains]
        places = [self.anatomy.place(name) for group in on for name in group.parameters]
        return max((place.top - place.depth) / place.top for place in places)
