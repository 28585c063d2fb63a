"""One run as an object: what settings, data and models become before training. Knows parts, and the Trainer they share.

Knows no modality and no file format; what is measured after training is in `hftl.run.outcome`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hftl.errors import UserError
from hftl.models.anatomy import anatomy, rate_table
from hftl.results.folder import TEST_ROWS, OutputFolder, unwrap, whole_weights
from hftl.run import several
from hftl.run.adaptation import Domains
from hftl.run.arguments import selection, stop_early, suit_machine
from hftl.run.calibrating import calibrate
from hftl.run.look import Look
from hftl.run.part import Part
from hftl.run.settings import Adaptation, Together
from hftl.run.steps import of_steps, strategy_of
from hftl.settings import spec
from hftl.strategies import Strategy
from hftl.tasks.loading import ABOUT_LABELS
from hftl.train.cache.cache import Cache
from hftl.train.progress import Finite, FirstStep, Lines, Progress
from hftl.train.resume.checkpoints import sound_checkpoint
from hftl.train.several import MEAN
from hftl.train.startup import Clock
from hftl.train.streams import Stream
from hftl.train.trainer import Trainer
from hftl.train.trial import try_batch

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.settings import RecipeSettings


CELL = "cell.json"
"""Of a run that belongs to a study: what it was told, by which it is found again."""


@dataclass
class Run:
    """Everything of one run up to training; `trainer.model` is what trains."""

    recipe: RecipeSettings
    folder: OutputFolder
    parts: dict[str, Part]
    """What is learned, by name: one part without a name, or one for each of several tasks."""
    trainer: Trainer
    clock: Clock
    domains: Domains | None = None
    look: Look | None = None
    """Where no step trains: the features that a head was fitted on."""
    reports: dict[str, Report] = field(default_factory=dict)
    """Of each part, once it is measured."""

    @property
    def part(self) -> Part:
        """All there is to learn, or the first of several tasks."""
        return next(iter(self.parts.values()))

    @property
    def rates(self) -> list[dict[str, Any]]:
        """Rows of `hftl.models.anatomy.rate_table` for the model as it trains."""
        return rate_table(self.trainer.anatomy, self.trainer.model, self.trainer.strategy.rate)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the numbers, with what was left to the machine as it was decided."""
        decided = ("bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps")
        chosen = {name: getattr(self.trainer.args, name) for name in decided}
        told = self.recipe.reproducible() | chosen
        if self.recipe.several:
            told["tasks"] = several.with_digests(told["tasks"], self.parts)
        else:
            told["data_sha256"] = self.part.splits.origin
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
            part, splits = self.part, self.part.splits
            classes, fresh = len(splits.labels.names), part.pretrained.fresh
            self.look = Look(self.trainer, part.rows, classes, fresh, part.scorer, splits.notes)
            if self.recipe.bf16:
                self.look.note("--bf16 has no say: features are computed in float32, as loaded folders do.", aloud=True)
            return self.look.fit()
        shown = self.trainer.pop_callback(PrinterCallback if self.trainer.args.disable_tqdm else ProgressCallback)
        if shown is not None:
            headline = MEAN if self.recipe.several else self.part.scorer.headline
            self.trainer.add_callback((Lines if self.trainer.args.disable_tqdm else Progress)(headline))
        self.trainer.add_callback(FirstStep(self.clock))
        self.trainer.add_callback(Finite())
        self.trainer.keeps_arguments, self.trainer.breaks_ties = False, True
        for note in try_batch(self.trainer):
            self.part.splits.notes.append(note)
            if self.first:
                print(note)
        self.trainer.starts_solved = bool(self.trainer.args.eval_on_start)
        checkpoint = self._checkpoint() if self.recipe.resume else None
        if checkpoint is None and self.trainer.args.should_save:
            self.folder.forget_checkpoints()
        if self.domains is not None:
            self.domains.note(self.trainer, "before")
        self.trainer.train(resume_from_checkpoint=checkpoint)
        if self.domains is not None:
            self.domains.note(self.trainer, "after")
        self.trainer.remove_callback(transformers.EarlyStoppingCallback)  # what is evaluated from here on stops nothing
        self.trainer.measure_plainly()
        if self.trainer.starts_solved:
            calibrate(self.trainer, self.part)
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

    def write(self, report: Report, cell: bool = False) -> None:
        """Write the folder from the first process, with one in it for each of several tasks; the others wait.

        Args:
            cell: of a study: the rows of test as the metric holds them go along, and what the run was told.
        """
        weights = whole_weights(self.trainer)
        if self.first and self.recipe.several:
            for name, part in self.parts.items():
                self._write_task(name, part, self.reports[name])
            self.folder.write_report(report, self.settings)
        elif self.first:
            model, weights = self.part.task.written(unwrap(self.trainer), weights)
            report.adapter = hasattr(model, "peft_config")
            self.folder.write(model, self.part.pretrained.processor, report, self.settings, weights)
        if self.first and cell:
            for name, part in self.parts.items():
                held: Any = part.scorer.metric.held()
                np.savez_compressed(self.folder.path / name / TEST_ROWS, **held)
            (self.folder.path / CELL).write_text(settings_of(self.recipe), "utf-8")  # last: now the cell is done
        self.trainer.accelerator.wait_for_everyone()

    def _write_task(self, name: str, part: Part, report: Report) -> None:
        """The folder of one of several tasks, as a run on it alone leaves one."""
        trainer: Any = self.trainer
        folder = OutputFolder(self.folder.path / name)
        model, trained = several.standalone(trainer, name, part, self.recipe.part(Together).adapters)
        others = ", ".join(other for other in self.parts if other != name) or "no other task"
        report = replace(
            report,
            folder=str(Path(self.recipe.output_dir) / name),
            strategy=spec.spell(strategy_of(part.recipe.strategy)),
            adapter=hasattr(model, "peft_config"),
            total=sum(p.numel() for p in model.parameters()),
            trainable=trained,
            history=[],
            data=report.data | {"notes": [*report.data["notes"], f"trained together with {others}"]},
        )
        folder.write(model, part.pretrained.processor, report, self.settings)


def settings_of(recipe: RecipeSettings) -> str:
    """The settings that decide the numbers of a run, as `CELL` holds them; rows made in Python are like no others."""
    own = recipe.reproducible()
    rows = recipe.settings().get("data", "")  # several tasks have theirs in --tasks
    if not isinstance(rows, str):
        own["data"] = f"made in Python, {id(rows)}"
    return json.dumps(own, default=str, indent=1, ensure_ascii=False)


def check_whole(trainer: Trainer) -> None:
    """Raise `UserError` where what training leaves cannot be written as one whole model, as `Task.whole` asks."""
    if hasattr(trainer.model, "peft_config") and not hasattr(trainer.model, "merge_and_unload"):
        raise UserError("What this strategy adds cannot be merged into the model. Use LoRA or DoRA, or Full.")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError("Pre-training does not split weights over processes yet. Launch it with a DDP config.")


def make_trainer(
    recipe: RecipeSettings,
    args: transformers.TrainingArguments,
    strategy: Strategy,
    part: Part,
    streams: Mapping[str, Stream] | None = None,
) -> Trainer:
    """The Trainer of one task, with the strategy applied to its model."""
    task, pretrained, rows, scorer = part.task, part.pretrained, part.rows, part.scorer
    suit_machine(recipe, args, pretrained.model, task.decoded, strategy.steps)
    collate, model = task.collate(pretrained.processor), cast(Any, pretrained.model)
    if args.neftune_noise_alpha and not isinstance(model.get_input_embeddings(), torch.nn.Embedding):
        raise UserError("--neftune_noise_alpha is noise on token embeddings, and this model has none. Leave it out.")
    whole = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(rows["train"]) < whole:
        raise UserError(
            f"--dataloader_drop_last leaves out what fills no batch, and the {len(rows['train'])} rows of train do not "
            f"fill one of {whole}. Leave it out, or pass a smaller --per_device_train_batch_size."
        )
    if recipe.fit_batch and strategy.streams:
        raise UserError("--fit_batch sizes labelled rows alone, and the --strategy reads others beside. Leave it out.")
    trainer = Trainer(
        pretrained.model,
        selection(args, scorer.names, scorer.lower, scorer.further(recipe.training), recipe.part(Adaptation).select),
        strategy=strategy,
        streams=streams,
        anatomy=anatomy(pretrained.model, pretrained.fresh),
        forward=task.forward,
        item_losses=task.item_losses(part.splits.labels, part.splits.train, args.label_smoothing_factor),
        cache=kept(recipe, rows, collate, args),
        max_tokens=task.max_tokens_per_batch,
        longest=getattr(pretrained.processor, "model_max_length", None),  # encoding train has set it
        packing=task.packing,
        train_dataset=rows["train"],
        eval_dataset=rows["valid"],
        data_collator=collate,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=task.outputs,
    )
    stop_early(recipe, trainer)
    if task.whole:
        check_whole(trainer)
    return trainer


def domains_of(recipe: RecipeSettings, part: Part, target: Stream | None) -> Domains | None:
    """What is watched of source and target, or None without unlabelled rows.

    Raises:
        UserError: a choice that needs rows of the target, which are not there.
    """
    select = recipe.part(Adaptation).select
    if target is None:
        if select != "source":
            raise UserError(f"--select {select} looks at the target. Pass --unlabelled with rows of it.")
        return None
    task, rows = part.task, part.rows
    valid = Stream(rows["valid"], task.collate(part.pretrained.processor))
    batch = recipe.training.get("per_device_eval_batch_size", 64)
    labels, metric = np.asarray(rows["valid"].labels), task.metric(part.splits.labels)
    return Domains(valid, labels, target, rows.get("target"), metric, select, batch, recipe.seed)


def streams_of(strategy: Strategy, part: Part) -> dict[str, Stream]:
    """The unlabelled rows of the target as they are, and in each form that the strategy reads.

    Raises:
        UserError: the strategy reads class probabilities, and the labels are not one class each.
    """
    labels = part.splits.labels
    guessing = [type(member).__name__ for member in strategy.parts if member.guesses]
    if guessing and (not labels.names or part.task.roles["label"].reads[labels.read_as].listed):
        raise UserError(f"{guessing[0]} reads one label a row; the labels are a {labels.read_as}. Try DANN.")
    rows, processor = part.splits.unlabelled, part.pretrained.processor
    if rows is None:
        return {}
    views = dict.fromkeys(("unlabelled", *strategy.streams))
    return {view: Stream(*part.task.stream(view, rows, processor)) for view in views}


def kept(recipe: RecipeSettings, rows: dict[str, Any], collate: Any, args: transformers.TrainingArguments) -> Cache:
    """The cache of what frozen layers and image decoding give for the rows that are read again and again."""
    batch, bar = args.per_device_eval_batch_size, not args.disable_tqdm and args.process_index == 0
    parts = [rows["train"], rows["valid"]]
    return Cache(parts, collate, recipe.cache_gb, recipe.cache_dtype, batch, bar, ABOUT_LABELS)
