"""One run as an object: what settings, data and model become before training. Knows Recipe's fields and the Trainer.

Knows no modality and no file format; what is measured after training is in `hftl.outcome`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hftl import hub, memory, spec
from hftl.anatomy import anatomy, rate_table
from hftl.arguments import early_stopping, selection
from hftl.cache import Cache
from hftl.data import Check, Splits, length_check, load, render
from hftl.errors import UserError, suggest
from hftl.outcome import Scorer
from hftl.progress import FirstStep, Lines, Progress
from hftl.rows import Rows
from hftl.settings import own_settings
from hftl.startup import Clock
from hftl.strategies import Chain, Strategy
from hftl.tasks import Task
from hftl.tasks.base import Pretrained, Source
from hftl.trainer import Trainer

if TYPE_CHECKING:
    from hftl.recipe import Recipe
    from hftl.report import Report


@dataclass
class Run:
    """Everything of one run up to training; `trainer.model` is what trains."""

    recipe: Recipe
    folder: hub.OutputFolder
    task: Task
    splits: Splits
    pretrained: Pretrained
    rows: dict[str, Any]
    """The splits as model inputs, by name."""
    scorer: Scorer
    trainer: Trainer
    clock: Clock

    @property
    def rates(self) -> list[dict[str, Any]]:
        """Rows of `hftl.anatomy.rate_table` for the model as it trains."""
        return rate_table(self.trainer.anatomy, self.trainer.model, self.trainer.strategy.rate)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the numbers, with what was left to the machine as it was decided."""
        decided = ("bf16", "fp16", "per_device_train_batch_size", "gradient_accumulation_steps")
        return self.recipe.reproducible() | {name: getattr(self.trainer.args, name) for name in decided}

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.trainer.args.process_index == 0

    def train(self) -> None:
        """Train from the start or from the last checkpoint, keep the best of valid, and let the strategy finish."""
        shown = self.trainer.pop_callback(PrinterCallback if self.trainer.args.disable_tqdm else ProgressCallback)
        if shown is not None:
            self.trainer.add_callback((Lines if self.trainer.args.disable_tqdm else Progress)(self.scorer.headline))
        self.trainer.add_callback(FirstStep(self.clock))
        checkpoint = self.folder.checkpoint if self.recipe.resume else None
        if checkpoint is None and self.trainer.args.should_save:
            self.folder.forget_checkpoints()
        self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.trainer.remove_callback(transformers.EarlyStoppingCallback)  # what is evaluated from here on stops nothing
        self.trainer.model = self.trainer.strategy.finish(self.trainer.model)

    def write(self, report: Report) -> None:
        """Write the folder from the first process; the others wait."""
        weights = hub.whole_weights(self.trainer)
        if self.first:
            model = hub.unwrap(self.trainer)
            self.folder.write(model, self.pretrained.processor, report, self.settings, weights)
        self.trainer.accelerator.wait_for_everyone()


def read_data(recipe: Recipe, task: Task) -> Splits:
    """The data of a recipe, checked and split."""
    return load(
        recipe.data,
        task.roles,
        columns={role: name for role in task.roles if (name := getattr(recipe, role, None))},
        valid=recipe.valid,
        test=recipe.test,
        seed=recipe.seed,
        problem_type=task.problem or recipe.problem_type,
        on_bad_row=recipe.on_bad_row,
        max_train_samples=recipe.max_train_samples,
    )


def make_trainer(
    recipe: Recipe,
    args: transformers.TrainingArguments,
    task: Task,
    splits: Splits,
    pretrained: Pretrained,
    rows: dict[str, Any],
    scorer: Scorer,
) -> Trainer:
    """The Trainer of a recipe, its strategy applied to the model."""
    collate = task.collate(pretrained.processor)
    trainer = Trainer(
        pretrained.model,
        selection(args, scorer),
        strategy=strategy_of(recipe.strategy),
        anatomy=anatomy(pretrained.model, pretrained.fresh),
        item_losses=class_weighted(recipe.class_weights, splits),
        cache=kept(recipe, rows, collate, args),
        max_tokens=recipe.max_tokens_per_batch,
        longest=getattr(pretrained.processor, "model_max_length", None),  # encoding train has set it
        packing=recipe.packing,
        train_dataset=rows["train"],
        eval_dataset=rows["valid"],
        data_collator=collate,
        compute_metrics=scorer,
        preprocess_logits_for_metrics=logits_alone,
        callbacks=early_stopping(recipe),
    )
    if recipe.fit_batch and not recipe.show_rates:
        memory.fit_batch(trainer)
    return trainer


def kept(recipe: Recipe, rows: dict[str, Any], collate: Any, args: transformers.TrainingArguments) -> Cache:
    """The cache of what frozen layers and image decoding give for the rows that are read again and again."""
    batch, bar = args.per_device_eval_batch_size, not args.disable_tqdm and args.process_index == 0
    return Cache([rows["train"], rows["valid"]], collate, recipe.cache_gb, recipe.cache_dtype, batch, bar)


def print_checks(splits: Splits, rows: dict[str, Any], processor: Any) -> None:
    """Add what only the encoded rows tell, and print the check page."""
    splits.checks += length_checks(rows["train"], processor)
    print(render(splits.checks))


def strategy_of(value: Any) -> Strategy:
    """A strategy from its notation, or as it is."""
    if isinstance(value, Strategy):
        return value
    parts = spec.build(value, Strategy.known())
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def task_of(name: str) -> Task:
    """A task from its pipeline tag."""
    known = Task.known()
    if name not in known:
        raise UserError(f"There is no task {name!r}; hftl has {', '.join(sorted(known))}.{suggest(name, known)}")
    return known[name]()


def source_of(recipe: Recipe) -> Source:
    """Where the model comes from."""
    return Source(recipe.model, recipe.weights, recipe.revision, recipe.allow_pickle, recipe.trust_remote_code)


def encode(task: Task, splits: Splits, processor: Any, recipe: Recipe) -> dict[str, Rows]:
    """The three splits as model inputs; only train is augmented.

    Raises:
        UserError: a setting was given that belongs to another task.
    """
    for name in sorted({name for other in Task.known().values() for name in other.options} - set(task.options)):
        if getattr(recipe, name) != own_settings(type(recipe))[name].default:
            raise UserError(f"--{name} means nothing to {task.name}. Leave it out.")
    options = {name: getattr(recipe, name) for name in task.options}

    def made(name: str) -> Rows:
        split = getattr(splits, name)
        encoded = task.encode(split, processor, train=name == "train", **options)
        changed = task.changed(options) if name == "train" else ""
        identify = functools.partial(task.identify, encoded, processor)
        labels = (encoded["labels"] if "labels" in encoded.column_names else split["label"])[:]
        return Rows(encoded, labels, identify, changed, recipe.cache_views, task.decoded)

    return {name: made(name) for name in ("train", "valid", "test")}


def length_checks(rows: Rows, processor: Any) -> list[Check]:
    """How many training rows are longer than the model reads; nothing where rows have no length."""
    if rows.lengths is None:
        return []
    return [length_check(rows.lengths, processor.model_max_length)]  # encoding train has set it


def class_weighted(choice: str | None, splits: Splits) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Cross-entropy in which each class counts the same (King & Zeng 2001), or None for the model's own loss.

    The weights have mean 1 over train, so that the learning rate keeps its meaning.
    """
    if choice is None:
        return None
    if splits.labels.problem_type != "single_label_classification":
        raise UserError(
            f"--class_weights {choice} needs one label a row; here the labels are a {splits.labels.problem_type}."
        )
    counts = np.bincount(np.asarray(splits.train["label"][:]), minlength=len(splits.labels.names))
    weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return each * weights.to(logits.device)[labels]

    return losses


def logits_alone(logits: Any, labels: Any) -> torch.Tensor:
    """What metrics need of a model's outputs; encoder-decoders also return hidden states."""
    return logits[0] if isinstance(logits, tuple) else logits
