"""Several tasks in one run: read `--tasks`, put their models on one encoder, and take each out of it again.

How tasks take turns is in `hftl.train.several`, what they share in `hftl.models.shared`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn

from hftl.errors import UserError, suggest
from hftl.models.anatomy import anatomy
from hftl.models.shared import MultiTaskModel
from hftl.models.wrapped import PEFT, of_adapter, out_of_peft, set_aside
from hftl.paths import expanded
from hftl.results.folder import CHECKPOINTS, unwrap
from hftl.run.arguments import selection, stop_early, suit_machine
from hftl.run.part import Part, source_of
from hftl.run.settings import RecipeSettings, Together, fitting, foreign, of_each
from hftl.run.steps import strategy_of
from hftl.settings.fields import own_settings
from hftl.settings.spec import spell
from hftl.settings.values import from_words
from hftl.strategies import Strategy, per_task
from hftl.tasks.metrics.names import LOWER_IS_BETTER
from hftl.train.several import MEAN, Collate, MixedRows, MultiTaskTrainer

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def recipes(recipe: RecipeSettings) -> dict[str, RecipeSettings]:
    """The recipe that each task would have alone, by name; of one task the recipe itself, without a name.

    Raises:
        UserError: settings that do not go together, a name that stands for two, or words that do not read.
    """
    told, strategy = recipe.part(Together), strategy_of(recipe.strategy)
    if not told.tasks:
        if given := next((name for name, value in vars(Together()).items() if getattr(told, name) != value), None):
            raise UserError(f"--{given} is for several tasks. Pass --tasks name=source name=source, or leave it out.")
        return {"": recipe}
    _refuse(recipe, told, strategy)
    common = {name: value for name, value in recipe.settings().items() if name not in own_settings(Together)}
    common |= {"resume": False, "overwrite": True, "show_rates": False, "push_to_hub": False}
    if told.adapters:
        common["strategy"] = per_task.with_lora(strategy)
    made: dict[str, RecipeSettings] = {}
    for word in told.tasks:
        name, own = read_word(word, type(recipe))
        if name in made:
            raise UserError(f"--tasks has two tasks called {name!r}. Give each a name of its own.")
        shared = fitting(common, recipe.own(own.get("task", recipe.task)))
        folder = expanded(recipe.output_dir) / CHECKPOINTS / "alone" / name
        made[name] = type(recipe)(**shared | own | {"output_dir": str(folder)})
    return made


def _refuse(recipe: RecipeSettings, told: Together, strategy: Strategy) -> None:
    if strategy.streams:
        raise UserError(
            f"{spell(strategy)} reads unlabelled rows; a mixture of tasks has none. Pass another --strategy."
        )
    if recipe.training.get("label_smoothing_factor"):
        raise UserError(
            "--label_smoothing_factor fits no mixture of tasks: labels of one task are classes and those of another "
            "are numbers. Leave it out."
        )
    if told.pcgrad and recipe.gradient_accumulation_steps < 2:
        raise UserError(
            "--pcgrad compares the tasks of one update, and an update is one micro-batch of one task. "
            "Pass --gradient_accumulation_steps with the number of tasks or more, and smaller micro-batches."
        )
    if told.pcgrad and told.adapters:
        raise UserError("--pcgrad is for weights that tasks share; with --adapters they share none. Drop one.")


def read_word(word: str, kind: type[RecipeSettings]) -> tuple[str, dict[str, Any]]:
    """`name=source,setting=value,...` -> the name, and settings of a recipe.

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
    task = next((value for setting, _, value in reversed(given) if setting == "task"), kind.task)
    known, settings = kind.own(task), {"data": source}
    own = [setting for setting, declared in known.items() if of_each(declared)]
    for setting, _, value in given:
        if setting not in own:
            other = "" if setting in known else foreign(setting, task)
            told = f"after its source come {', '.join(own)}; {setting!r} came.{suggest(setting, own)}"
            raise UserError(f"Task {name}: {other or told}")
        settings[setting] = from_words([value], known[setting], f"Task {name}: {setting}")
    return name, settings


@contextmanager
def about(name: str, recipe: RecipeSettings) -> Iterator[None]:
    """Name the task in what goes wrong with it, and say where a flag of one task is written."""
    try:
        yield
    except UserError as failure:
        if not name:
            raise
        own = [setting for setting, declared in recipe.own(recipe.task).items() if of_each(declared)]
        flags = [setting for setting in own if f"--{setting} " in str(failure)]
        hint = f" In --tasks it is written ',{flags[0]}=...' after the source." if flags else ""
        raise UserError(f"Task {name}: {failure}{hint}") from failure


def _let_heads_idle(args: transformers.TrainingArguments) -> None:
    """Have DDP bear that at any time the heads of the other tasks give no gradient."""
    if args.world_size > 1:
        args.ddp_find_unused_parameters = True
        settings: Any = args.accelerator_config
        settings.gradient_accumulation_kwargs = {"sync_each_batch": True}  # else what idles last is not averaged


def make_trainer(
    recipe: RecipeSettings, args: transformers.TrainingArguments, strategy: Strategy, parts: dict[str, Part]
) -> MultiTaskTrainer:
    """The Trainer of all tasks, on one model of theirs."""
    _let_heads_idle(args)
    told = recipe.part(Together)
    models = {name: part.pretrained.model for name, part in parts.items()}
    fresh = {name: part.pretrained.fresh for name, part in parts.items()}
    model = MultiTaskModel(models, fresh, told.weighting == "uncertainty")
    suit_machine(recipe, args, model, any(part.task.decoded for part in parts.values()))
    scorers = {name: part.scorer for name, part in parts.items()}
    names = [MEAN, *(f"{name}_{scorer.headline}" for name, scorer in scorers.items())]
    trainer = MultiTaskTrainer(
        model,
        selection(args, names, LOWER_IS_BETTER),
        scorers=scorers,
        mixing=told.mixing,
        temperature=told.temperature,
        pcgrad=told.pcgrad,
        strategy=per_task.per_task(strategy) if told.adapters else strategy,
        anatomy=anatomy(model, model.fresh),
        train_dataset=MixedRows([part.rows["train"] for part in parts.values()]),
        eval_dataset={name: part.rows["valid"] for name, part in parts.items()},
        data_collator=Collate({name: part.task.collate(part.pretrained.processor) for name, part in parts.items()}),
        outputs={name: part.task.outputs for name, part in parts.items()},
    )
    stop_early(recipe, trainer)
    return trainer


def standalone(trainer: MultiTaskTrainer, name: str, part: Part, adapters: bool) -> tuple[Any, int]:
    """The model of one task alone, with or without adapters, and how many of its parameters were trained.

    It is built anew and given the trained weights.
    """
    peft = hasattr(trainer.model, "peft_config")
    pretrained = part.task.build(source_of(part.recipe), part.splits.labels)
    model: Any = pretrained.model
    if adapters or peft:
        model = strategy_of(part.recipe.strategy).prepare(model, anatomy(model, pretrained.fresh))

    def place(own: str) -> str:
        """The name in the model of all tasks."""
        plain = out_of_peft(own)
        return trainer.whole.where(name, of_adapter(plain, name) if adapters else plain)

    source, outer = unwrap(trainer).state_dict(), PEFT if peft else ""
    given = {}
    for own, value in model.state_dict().items():
        aside = set_aside(own) and outer + place(own) not in source  # what the trained copy stands in for
        given[own] = value if aside else source[outer + place(own)]
    model.load_state_dict(given)
    trained = {out_of_peft(n) for group in trainer.groups for n in group.parameters}
    return model.eval(), sum(p.numel() for own, p in model.named_parameters() if place(own) in trained)


def with_digests(words: list[str], parts: dict[str, Part]) -> list[str]:
    """Tasks as they were given, each with the sha256 of its data, so that a run from the file says what has changed."""
    bare = [re.sub(r",data_sha256=\w*", "", word) for word in words]
    return [f"{word},data_sha256={p.splits.origin}" for word, p in zip(bare, parts.values(), strict=True)]
