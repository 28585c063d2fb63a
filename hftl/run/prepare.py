"""One run as an object: what settings, data and model become before training. Knows Recipe's fields and the Trainer.

Knows no modality and no file format; what is measured after training is in `hftl.run.outcome`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hftl.data.check import length_check, render
from hftl.data.load import load
from hftl.data.roles import Role
from hftl.data.types import Check, Splits, Target
from hftl.errors import UserError
from hftl.models.anatomy import anatomy, rate_table
from hftl.results.folder import OutputFolder, unwrap, whole_weights
from hftl.run.adaptation import Domains
from hftl.run.arguments import early_stopping, selection
from hftl.run.look import Look
from hftl.run.scorer import Scorer
from hftl.run.settings import Adaptation
from hftl.run.steps import of_steps, strategy_of
from hftl.settings import spec
from hftl.strategies import Strategy
from hftl.tasks.base import Pretrained, Source, Task
from hftl.tasks.sections import Gallery, Section
from hftl.train import memory
from hftl.train.cache.cache import Cache
from hftl.train.progress import FirstStep, Lines, Progress
from hftl.train.resume.checkpoints import sound_checkpoint
from hftl.train.rows import Rows
from hftl.train.startup import Clock
from hftl.train.streams import Stream
from hftl.train.trainer import Trainer

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.settings import RecipeSettings


@dataclass
class Run:
    """Everything of one run up to training; `trainer.model` is what trains."""

    recipe: RecipeSettings
    folder: OutputFolder
    task: Task
    splits: Splits
    pretrained: Pretrained
    rows: dict[str, Any]
    """The splits as model inputs, by name."""
    scorer: Scorer
    trainer: Trainer
    clock: Clock
    domains: Domains | None = None
    look: Look | None = None
    """Where no step trains: the features that a head was fitted on."""

    @property
    def rates(self) -> list[dict[str, Any]]:
        """Rows of `hftl.models.anatomy.rate_table` for the model as it trains."""
        return rate_table(self.trainer.anatomy, self.trainer.model, self.trainer.strategy.rate)

    @property
    def augmented(self) -> list[Section]:
        """Some training rows before and after augmentation, as the report shows them; [] where there is none."""
        examples = self.task.before_after(self.rows["train"].encoded)
        how = self.settings.get("augment")
        note = f"{how}: another draw each time that a row is read. Valid and test stay as they are."
        heading = "Training rows before and after augmentation"
        return [Gallery(heading=heading, examples=examples, note=note)] if examples else []

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the numbers, with what was left to the machine as it was decided."""
        decided = ("bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps")
        chosen = {name: getattr(self.trainer.args, name) for name in decided}
        told = self.recipe.reproducible() | chosen | {"data_sha256": self.splits.origin}
        return told if self.trainer.strategy.steps else {n: v for n, v in told.items() if not of_steps(n)}

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.trainer.args.process_index == 0

    def train(self) -> None:
        """Train from the start or from the last checkpoint, keep the best of valid, and let the strategy finish.

        Where no step is needed, the strategy fits a head instead.
        """
        if not self.trainer.strategy.steps:
            fresh, notes = self.pretrained.fresh, self.splits.notes
            self.look = Look(self.trainer, self.rows, len(self.splits.labels.names), fresh, self.scorer, notes)
            return self.look.fit()
        shown = self.trainer.pop_callback(PrinterCallback if self.trainer.args.disable_tqdm else ProgressCallback)
        if shown is not None:
            self.trainer.add_callback((Lines if self.trainer.args.disable_tqdm else Progress)(self.scorer.headline))
        self.trainer.add_callback(FirstStep(self.clock))
        checkpoint = self._checkpoint() if self.recipe.resume else None
        if checkpoint is None and self.trainer.args.should_save:
            self.folder.forget_checkpoints()
        if self.domains is not None:
            self.domains.note(self.trainer, "before")
        self.trainer.train(resume_from_checkpoint=checkpoint)
        if self.domains is not None:
            self.domains.note(self.trainer, "after")
        self.trainer.remove_callback(transformers.EarlyStoppingCallback)  # what is evaluated from here on stops nothing
        self.trainer.model = self.trainer.strategy.finish(self.trainer.model)

    def _checkpoint(self) -> str:
        """The checkpoint to go on from: the first process looks, and all take what it found."""
        found: list[Any] = [None]
        try:
            if self.first:
                found = [str(sound_checkpoint(self.folder.checkpoints))]
        except UserError as failure:
            found = [failure]
        told = broadcast_object_list(found)[0]
        if isinstance(told, UserError):
            raise told
        return told

    def write(self, report: Report) -> None:
        """Write the folder from the first process; the others wait."""
        weights = whole_weights(self.trainer)
        if self.first:
            model, weights = self.task.written(unwrap(self.trainer), weights)
            report.adapter = hasattr(model, "peft_config")
            self.folder.write(model, self.pretrained.processor, report, self.settings, weights)
        self.trainer.accelerator.wait_for_everyone()


def read_data(recipe: RecipeSettings, task: Task) -> Splits:
    """The data of a recipe, checked and split."""
    target = recipe.part(Target)
    roles = task.roles if target.domain is None else task.roles | {"domain": Role("domain", ("domain",))}
    named = {role: getattr(task, role, None) for role in task.roles} | {"domain": target.domain}
    splits = load(
        recipe.data,
        roles,
        columns={role: name for role, name in named.items() if name},
        valid=recipe.valid,
        test=recipe.test,
        seed=recipe.seed,
        read_as=task.read_as,
        on_bad_row=recipe.on_bad_row,
        max_train_samples=recipe.max_train_samples,
        revision=recipe.data_revision,
        target=target,
    )
    if recipe.data_sha256 not in (None, splits.origin):
        sentence = "the data has changed since the recipe was written (data_sha256): the numbers will not be the same"
        splits.checks.insert(0, Check("changed", "warn", sentence))
    return splits


def check_labels(recipe: RecipeSettings, task: Task, strategy: Strategy) -> None:
    """Raise `UserError` where a task without labels is given what is for labels."""
    if "label" in task.roles:
        return
    if strategy.streams:
        raise UserError(
            f"{spec.spell(strategy)} adapts what labels taught, and there are none. Use it in the next recipe."
        )
    if recipe.training.get("label_smoothing_factor"):
        raise UserError(f"--label_smoothing_factor is for labels, and {task.name} reads none. Leave it out.")


def check_whole(trainer: Trainer) -> None:
    """Raise `UserError` where what training leaves cannot be written as one whole model, as `Task.whole` asks."""
    if hasattr(trainer.model, "peft_config") and not hasattr(trainer.model, "merge_and_unload"):
        raise UserError("What this strategy adds cannot be merged into the model. Use LoRA or DoRA, or Full.")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError("Pre-training does not split weights over processes yet. Launch it with a DDP config.")


def make_trainer(
    recipe: RecipeSettings,
    args: transformers.TrainingArguments,
    task: Task,
    splits: Splits,
    pretrained: Pretrained,
    rows: dict[str, Any],
    scorer: Scorer,
    streams: Mapping[str, Stream] | None = None,
    domains: Domains | None = None,
) -> Trainer:
    """The Trainer of a recipe, its strategy applied to the model."""
    collate, strategy = task.collate(pretrained.processor), strategy_of(recipe.strategy)
    model: Any = pretrained.model
    if args.neftune_noise_alpha and not isinstance(model.get_input_embeddings(), torch.nn.Embedding):
        raise UserError("--neftune_noise_alpha is noise on token embeddings, and this model has none. Leave it out.")
    if recipe.fit_batch and strategy.streams:
        raise UserError("--fit_batch sizes labelled rows alone, and the --strategy reads others beside. Leave it out.")
    trainer = Trainer(
        pretrained.model,
        selection(args, scorer, recipe.part(Adaptation).select),
        strategy=strategy,
        streams=streams,
        anatomy=anatomy(pretrained.model, pretrained.fresh),
        forward=task.forward,
        item_losses=task.item_losses(splits.labels, splits.train),
        cache=kept(recipe, rows, collate, args),
        max_tokens=task.max_tokens_per_batch,
        longest=getattr(pretrained.processor, "model_max_length", None),  # encoding train has set it
        packing=task.packing,
        train_dataset=rows["train"],
        eval_dataset=rows["valid"],
        data_collator=collate,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=task.outputs,
        callbacks=early_stopping(recipe, strategy),
    )
    if task.whole:
        check_whole(trainer)
    if domains is not None:
        trainer.further = functools.partial(domains.criteria, trainer)
    if recipe.fit_batch and not recipe.show_rates:
        memory.fit_batch(trainer)
    return trainer


def domains_of(
    recipe: RecipeSettings, task: Task, splits: Splits, processor: Any, rows: dict[str, Rows], target: Stream | None
) -> Domains | None:
    """What is watched of source and target, or None without unlabelled rows.

    Raises:
        UserError: a choice that needs rows of the target, which are not there.
    """
    select = recipe.part(Adaptation).select
    if target is None:
        if select != "source":
            raise UserError(f"--select {select} looks at the target. Pass --unlabelled with rows of it.")
        return None
    valid = Stream(rows["valid"], task.collate(processor))
    batch = recipe.training.get("per_device_eval_batch_size", 64)
    labels = np.asarray(rows["valid"].labels)
    return Domains(valid, labels, target, rows.get("target"), task.metric(splits.labels), select, batch, recipe.seed)


def streams_of(strategy: Strategy, task: Task, splits: Splits, processor: Any) -> dict[str, Stream]:
    """The unlabelled rows of the target as they are, and in each form that the strategy reads."""
    if splits.unlabelled is None:
        return {}
    views = dict.fromkeys(("unlabelled", *strategy.streams))
    return {view: Stream(*task.stream(view, splits.unlabelled, processor)) for view in views}


def kept(recipe: RecipeSettings, rows: dict[str, Any], collate: Any, args: transformers.TrainingArguments) -> Cache:
    """The cache of what frozen layers and image decoding give for the rows that are read again and again."""
    batch, bar = args.per_device_eval_batch_size, not args.disable_tqdm and args.process_index == 0
    return Cache([rows["train"], rows["valid"]], collate, recipe.cache_gb, recipe.cache_dtype, batch, bar)


def print_checks(splits: Splits, rows: dict[str, Any], processor: Any) -> None:
    """Add what only the encoded rows tell, and print the check page."""
    splits.checks += length_checks(rows["train"], processor)
    print(render(splits.checks))


def source_of(recipe: RecipeSettings) -> Source:
    """Where the model comes from."""
    weights = recipe.settings().get("weights")
    return Source(recipe.model, weights, recipe.revision, recipe.allow_pickle, recipe.trust_remote_code)


def encode(task: Task, splits: Splits, processor: Any, recipe: RecipeSettings) -> dict[str, Rows]:
    """The three splits as model inputs; only train is augmented."""

    def made(name: str) -> Rows:
        split = getattr(splits, name)
        encoded = task.encode(split, processor, train=name == "train")
        changed = name == "train" and task.changed()
        identify = functools.partial(task.identify, encoded, processor)
        labels = task.labels(encoded, split, processor)
        return Rows(encoded, labels, identify, changed, task.decoded, recipe.seed)

    there = [name for name in ("train", "valid", "test", "target") if getattr(splits, name) is not None]
    return {name: made(name) for name in there}


def length_checks(rows: Rows, processor: Any) -> list[Check]:
    """How many training rows are longer than the model reads; nothing where rows have no length."""
    if rows.lengths is None:
        return []
    return [length_check(rows.lengths, processor.model_max_length)]  # encoding train has set it
