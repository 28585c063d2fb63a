"""One run on several tasks: what its settings, data and models become before training. Knows a Run for each task.

How tasks take turns is in `hftl.train.several`, what they share in `hftl.models.shared`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from hftl.errors import UserError, suggest
from hftl.models.anatomy import anatomy, render_rates
from hftl.models.shared import MultiTaskModel
from hftl.paths import expanded
from hftl.results.folder import CHECKPOINTS, OutputFolder
from hftl.results.report.report import Report
from hftl.run import prepare as single
from hftl.run.arguments import early_stopping, selection, suit_machine, training_arguments
from hftl.run.prepare import Run
from hftl.run.recipe import Recipe
from hftl.run.scorer import Scorer
from hftl.run.settings import fitting, foreign, task_class
from hftl.settings.fields import own_settings
from hftl.settings.spec import spell
from hftl.settings.values import from_words
from hftl.strategies import Strategy
from hftl.strategies import per_task as task_adapters
from hftl.tasks.metrics.names import LOWER_IS_BETTER
from hftl.train.several import MEAN, Collate, MixedRows, MultiTaskTrainer, TaskRows
from hftl.train.startup import Clock

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass
class Means:
    """What `selection` asks of a scorer: the mean over tasks, and each task's headline; of all more is better."""

    tasks: dict[str, Any]
    headline = MEAN
    extra = ()
    lower = LOWER_IS_BETTER

    @property
    def names(self) -> list[str]:
        return [MEAN, *(f"{task}_{scorer.headline}" for task, scorer in self.tasks.items())]

    metric = property(lambda self: self)
    reported = names


@dataclass
class MultiRun:
    """Everything of one run on several tasks, up to training."""

    recipe: Any
    alone: dict[str, Recipe]
    """Task -> the recipe of the run that this task would have had alone."""
    parts: dict[str, Run]
    """Task -> the Run that its data, model and metrics make; all have one Trainer."""
    strategy: Strategy
    """As the user gave it; the Trainer's may have an adapter for each task."""
    trainer: MultiTaskTrainer
    reports: dict[str, Report] = field(default_factory=dict)
    """Task -> its report, once it is measured."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.trainer.args.process_index == 0

    @property
    def lead(self) -> Run:
        """The Run of the first task, for what all have in common."""
        return next(iter(self.parts.values()))

    def train(self) -> None:
        """As `Run.train`, with the mean over tasks in the lines that are printed."""
        means: Any = Means(self.trainer.scorers)
        replace(self.lead, folder=OutputFolder(self.recipe.output_dir), scorer=means).train()

    def print_rates(self) -> None:
        """Print each module's rate, from the first process."""
        if self.first:
            print(render_rates(self.lead.rates))


def prepare(recipe: Any, clock: Clock) -> MultiRun:
    """Read the data of every task, load a model for each, join them and apply the strategy.

    Raises:
        UserError: as `Recipe.prepare`; what is wrong with one task names it.
    """
    clock.mark("imports")
    alone = recipes(recipe)
    folder = OutputFolder(recipe.output_dir)
    folder.claim(resume=recipe.resume, overwrite=recipe.overwrite, dry=recipe.show_rates)
    strategy = single.strategy_of(recipe.strategy)
    if strategy.streams:
        raise UserError(
            f"{spell(strategy)} reads unlabelled rows; a mixture of tasks has none. Pass another --strategy."
        )
    if recipe.adapters:
        strategy = task_adapters.with_lora(strategy)
    scratch = Path(tempfile.gettempdir()) if recipe.show_rates else folder.checkpoints
    args = training_arguments(recipe, strategy, scratch)
    if args.world_size > 1:  # at any time the heads of the other tasks are idle
        args.ddp_find_unused_parameters = True
        settings: Any = args.accelerator_config
        settings.gradient_accumulation_kwargs = {"sync_each_batch": True}  # else what idles last is not averaged
    pieces = {}
    for name, one in alone.items():
        with about(name, recipe.settable):
            pieces[name] = _piece(name, one, args, clock)
    models = {name: piece["pretrained"].model for name, piece in pieces.items()}
    fresh = {name: piece["pretrained"].fresh for name, piece in pieces.items()}
    uncertain = recipe.weighting == "uncertainty"
    model = MultiTaskModel(models, fresh, uncertain)
    suit_machine(recipe, args, model, any(piece["task"].decoded for piece in pieces.values()))
    trainer = _trainer(recipe, args, model, pieces, strategy)
    clock.mark("trainer")
    parts = {
        name: Run(recipe, OutputFolder(folder.path / name), **piece, trainer=trainer, clock=clock)
        for name, piece in pieces.items()
    }
    return MultiRun(recipe, alone, parts, strategy, trainer)


def _piece(name: str, recipe: Recipe, args: transformers.TrainingArguments, clock: Clock) -> dict[str, Any]:
    """Data, model and metrics of one task, as a run on it alone would have them."""
    task = recipe.part(task_class(recipe.task))
    with args.main_process_first(desc="reading the data"):
        splits = single.read_data(recipe, task)
        task.settle(splits)
    clock.mark("data")
    transformers.set_seed(recipe.seed)  # the head starts as it would alone
    pretrained = task.build(single.source_of(recipe), splits.labels)
    clock.mark("model")
    with args.main_process_first(desc="encoding the data"):
        rows = single.encode(task, splits, pretrained.processor, recipe)
    clock.mark("data")
    if args.process_index == 0:
        print(f"{name}: {splits.source}")
        single.print_checks(splits, rows, pretrained.processor)
    given = {split: TaskRows(part, name) for split, part in rows.items()}
    scorer = Scorer(task.metric(splits.labels))
    return {"task": task, "splits": splits, "pretrained": pretrained, "rows": given, "scorer": scorer}


def _trainer(
    recipe: Any,
    args: transformers.TrainingArguments,
    model: MultiTaskModel,
    pieces: dict[str, dict[str, Any]],
    strategy: Strategy,
) -> MultiTaskTrainer:
    scorers = {name: piece["scorer"] for name, piece in pieces.items()}
    collates = {name: piece["task"].collate(piece["pretrained"].processor) for name, piece in pieces.items()}
    return MultiTaskTrainer(
        model,
        selection(args, Means(scorers)),  # type: ignore[arg-type]
        scorers=scorers,
        mixing=recipe.mixing,
        temperature=recipe.temperature,
        pcgrad=recipe.pcgrad,
        strategy=task_adapters.per_task(strategy) if recipe.adapters else strategy,
        anatomy=anatomy(model, model.fresh),
        train_dataset=MixedRows([piece["rows"]["train"] for piece in pieces.values()]),
        eval_dataset={name: piece["rows"]["valid"] for name, piece in pieces.items()},
        data_collator=Collate(collates),
        outputs={name: piece["task"].outputs for name, piece in pieces.items()},
        callbacks=early_stopping(recipe, strategy),
    )


# --- tasks, as they are written ---


def recipes(recipe: Any) -> dict[str, Recipe]:
    """The recipe that each task would have alone, by name.

    Raises:
        UserError: no tasks, a name that stands for two, or words that do not read.
    """
    read: dict[str, dict[str, Any]] = {}
    for word in recipe.tasks:
        name, settings = task_of(word, recipe.settable)
        if name in read:
            raise UserError(f"--tasks has two tasks called {name!r}. Give each a name of its own.")
        read[name] = settings
    if not read:
        raise UserError("Expected the tasks to learn. Pass --tasks name=source name=source, such as sst2=data/sst2.")
    theirs = set(own_settings(type(recipe))) - set(own_settings(Recipe))
    common = {n: v for n, v in recipe.settings().items() if n not in theirs and n not in recipe.hidden}
    if recipe.adapters:
        common["strategy"] = task_adapters.with_lora(single.strategy_of(recipe.strategy))
    folder = expanded(recipe.output_dir) / CHECKPOINTS / "alone"
    told = {"resume": False, "overwrite": True, "show_rates": False, "push_to_hub": False}
    made = {}
    for name, own in read.items():
        shared = fitting(common, Recipe.own(own.get("task", recipe.task)))
        made[name] = Recipe(**shared | {"output_dir": str(folder / name)} | told | own)
    return made


def task_of(word: str, settable: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """`name=source,setting=value,...` -> the name, and settings of a Recipe.

    Raises:
        UserError: it does not read, or the name would not do as one of a folder and a module.
    """
    parts = re.split(r",(?=[A-Za-z_]\w*=)", word)
    name, equals, source = parts[0].partition("=")
    if not equals or not source or not NAME.fullmatch(name):
        raise UserError(f"--tasks expected name=source, such as sst2=data/sst2; {word!r} came.")
    if name == CHECKPOINTS or hasattr(nn.ModuleDict, name):
        raise UserError(f"--tasks has a task called {name!r}, a name that is taken here. Give it another.")
    given = [part.partition("=") for part in parts[1:]]
    task = next((value for setting, _, value in reversed(given) if setting == "task"), Recipe.task)
    known, settings = Recipe.own(task), {"data": source}
    for setting, _, value in given:
        if setting not in settable:
            raise UserError(
                f"Task {name}: after its source come {', '.join(settable)}; {setting!r} came."
                f"{suggest(setting, settable)}"
            )
        if setting not in known:
            raise UserError(f"Task {name}: {foreign(setting, task)}")
        settings[setting] = from_words([value], known[setting], f"Task {name}: {setting}")
    return name, settings


@contextmanager
def about(name: str, settable: tuple[str, ...]) -> Iterator[None]:
    """Name the task in what goes wrong with it, and say where a flag of one task is written."""
    try:
        yield
    except UserError as failure:
        flags = [setting for setting in settable if f"--{setting} " in str(failure)]
        hint = f" In --tasks it is written ',{flags[0]}=...' after the source." if flags else ""
        raise UserError(f"Task {name}: {failure}{hint}") from failure
