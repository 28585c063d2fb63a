"""One task of a run, ready for training: its rows, its model and what measures it. Knows no Trainer and no folder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import transformers

from hftl.data.check import length_check, render
from hftl.data.load import load
from hftl.data.roles import Role
from hftl.data.types import Check, Splits, Target
from hftl.errors import UserError
from hftl.models.fitting import fitting
from hftl.run.scorer import Scorer
from hftl.run.settings import RecipeSettings, task_class
from hftl.settings import spec
from hftl.strategies import Strategy
from hftl.tasks.base import Pretrained, Source, Task
from hftl.tasks.sections import Section
from hftl.train.rows import Rows
from hftl.train.several import TaskRows
from hftl.train.startup import Clock


@dataclass
class Part:
    """A task of a run. One that is not alone has a name, and shares its encoder with the others."""

    recipe: RecipeSettings
    """The run's; of one of several tasks that of a run on it alone."""
    task: Task
    splits: Splits
    pretrained: Pretrained
    """Of one of several tasks: as it was loaded, less its encoder."""
    rows: dict[str, Any]
    """The splits as model inputs, by name."""
    scorer: Scorer
    untrained: list[Section]
    """What test shows of the model as it came."""


def read(
    recipe: RecipeSettings, strategy: Strategy, args: transformers.TrainingArguments, clock: Clock, name: str = ""
) -> Part:
    """Read the data of a task, load its model and encode the rows; print the check page.

    Args:
        name: of the task, where it is one of several.

    Raises:
        UserError: anything about the data or the model that a person has to change.
    """
    task = recipe.part(task_class(recipe.task))
    check(recipe, task, strategy)
    with args.main_process_first(desc="reading the data"):
        splits = read_data(recipe, task)
        task.settle(splits)
    clock.mark("data")
    transformers.set_seed(recipe.seed)  # the head of one of several starts as it would alone
    pretrained = task.build(source_of(recipe), splits.labels)
    splits.checks += pretrained.checks
    clock.mark("model")
    with args.main_process_first(desc="encoding the data"):
        rows: dict[str, Any] = encode(task, splits, pretrained.processor, recipe)
    clock.mark("data")
    if rows["train"].lengths is not None:  # encoding train has set the model's limit
        limit, asked = pretrained.processor.model_max_length, getattr(task, "max_length", None)
        splits.checks.append(length_check(rows["train"].lengths, limit, asked))
    if args.process_index == 0:
        print(*([f"{name}: {splits.source}"] if name else []), render(splits.checks), sep="\n")
    with fitting(pretrained.model, {}):
        untrained = [] if name else task.untrained(pretrained, splits.test, splits.labels)
    clock.mark("model")
    if name:
        rows = {split: TaskRows(part, name) for split, part in rows.items()}
    return Part(recipe, task, splits, pretrained, rows, Scorer(task.metric(splits.labels), task.metrics), untrained)


def check(recipe: RecipeSettings, task: Task, strategy: Strategy) -> None:
    """Raise `UserError` where a task is given a strategy or a setting that it has no use for."""
    if not (strategy.steps or task.pooled):
        raise UserError(f"Features are one vector a row, and {task.name} has more. Pass another --strategy.")
    if "label" in task.roles:
        return
    if strategy.streams:
        raise UserError(
            f"{spec.spell(strategy)} adapts what labels taught, and there are none. Use it in the next recipe."
        )
    if recipe.training.get("label_smoothing_factor"):
        raise UserError(f"--label_smoothing_factor is for labels, and {task.name} reads none. Leave it out.")


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
