"""The command line: flags and a YAML file over a recipe, and which command `hftl` is asked for.

Knows the order recipe < --config < flags; knows nothing of what a setting does. It imports no torch, and neither do
`hftl.run.recipe` and the modules of `hftl.strategies`, so that help and a bad flag answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psutil

from hftl.cli import commands, recipes
from hftl.cli import help as pages
from hftl.cli.failures import say_errors
from hftl.cli.flags import ALIASES, asks_help, read_flags, similar
from hftl.errors import UserError, suggest
from hftl.run.settings import fitting, of_one, of_tasks
from hftl.run.steps import of_steps, strategy_of
from hftl.settings.fields import Setting, own_settings, training_settings
from hftl.settings.spec import heads
from hftl.settings.values import checked
from hftl.tasks import augment
from hftl.train.resume.stopping import Left

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.recipe import Recipe
    from hftl.studies.study import Study


def main(given: Recipe | Study, argv: Sequence[str] | None = None) -> Report | None:
    """Run a recipe, or a study of one, with what the command line asks for. A script's last line: `main(RECIPE)`.

    Args:
        given: the settings to start from; `--config file.yaml` overrides them, and flags override both.
        argv: the words of the command line; `sys.argv[1:]` where None.

    Returns:
        The report; None where the settings ask for no run (`--show_rates`).

    Raises:
        SystemExit: 0 after `--help`; 2 for bad input; as `hftl.cli.failures` has them. One sentence is on stderr.
    """
    take_the_cores()
    words = list(sys.argv[1:] if argv is None else argv)
    with say_errors():
        if asks_help(words):
            pages.say(_recipe_help(given, words))
            raise SystemExit(0)
        merged = merge(given, words)
    with say_errors(left=lambda: _left_in(recipe_of(merged).output_dir)):
        return merged.run()


def _left_in(folder: str) -> Left:
    from hftl.results.folder import OutputFolder

    return OutputFolder(folder).left


def take_the_cores() -> None:
    """Undo the one thread that `accelerate launch` gives a lone process without a GPU; done before torch is loaded."""
    lone = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("WORLD_SIZE", "1") == "1"
    if lone and os.environ.get("OMP_NUM_THREADS") == "1" and "torch" not in sys.modules and not _launcher_was_told():
        del os.environ["OMP_NUM_THREADS"]


def _launcher_was_told() -> bool:
    """Whether the launcher's own environment has a number of threads: then it is the user's, and stays."""
    try:
        return "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):
        return False


Given = TypeVar("Given", bound="Recipe | Study")


def merge(given: Given, words: Sequence[str]) -> Given:
    """A recipe, or a study of one, overridden by the `--config` file and then by the flags in `words`.

    Raises:
        UserError: a name is unknown, or a value has the wrong type or lies out of range.
    """
    recipe = recipe_of(given)
    filed = _from_file(path) if (path := _word_of("config", words)) is not None else {}
    own = _own(given, words, filed)
    elsewhere = {name: setting for name, whose in of_tasks().items() for setting in whose.values()}
    known = training_settings() | elsewhere | recipe.own(recipe.task) | own
    known.pop("hub_token")  # Trainer writes it in clear into training_args.bin, which it uploads
    chosen = read_flags(words, known | {"config": pages.CONFIG})
    chosen.pop("config", None)
    theirs = {name: getattr(given, name) for name in own_settings(type(given)) if given is not recipe}
    asked = filed | chosen
    settings: dict[str, Any] = {}
    base = fitting(recipe.settings() | theirs, own)
    if "strategy" in asked and strategy_of(asked["strategy"]).lr is not None:
        base.pop("learning_rate", None)  # a recipe's is for its own strategy; only a rate that the user gave wins
    for layer in (base, fitting(_checked(filed, known, str(path)), own), chosen):
        if "strategy" in layer and not strategy_of(layer["strategy"]).steps:  # what is below was meant for steps
            settings = {name: value for name, value in settings.items() if not of_steps(name)}
        if layer.get("tasks"):  # what is below was meant for one
            settings = {name: value for name, value in settings.items() if not of_one(known[name])}
        settings |= layer
    theirs = {name: settings.pop(name) for name in theirs}
    merged: Any = type(recipe)(**settings)
    augment.read(merged.settings().get("augment", "none"))
    return merged if given is recipe else replace(given, recipe=merged, **theirs)  # type: ignore[call-arg]


def recipe_of(given: Recipe | Study) -> Recipe:
    """A recipe itself, or what a study is of."""
    return getattr(given, "recipe", None) or cast("Recipe", given)


def _own(given: Recipe | Study, words: Sequence[str], filed: Mapping[str, Any]) -> dict[str, Setting]:
    """What can be set beside TrainingArguments' names: of the task that is asked for, and of a study."""
    recipe = recipe_of(given)
    task = _word_of("task", words) or filed.get("task") or recipe.task
    several = bool(_word_of("tasks", words) or filed.get("tasks") or recipe.several)
    return recipe.own(task, several) | (own_settings(type(given)) if given is not recipe else {})


def _word_of(name: str, words: Sequence[str]) -> str | None:
    """The value of a flag that decides how the others read; None where it has none."""
    found = None
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        written, equals, value = word.partition("=")
        if written == f"--{name}" and (equals or not following.startswith("--")):
            found = value if equals else following
    return found


def _from_file(path: str) -> dict[str, Any]:
    from hftl.settings.recipe_file import read_yaml

    return {ALIASES.get(name, name): value for name, value in read_yaml(path).items()}


def _checked(settings: Mapping[str, Any], known: Mapping[str, Setting], path: str) -> dict[str, Any]:
    """The settings of a file as the types that they have."""
    made = {}
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"{path} names an unknown setting {name!r}.{similar(name, known, '')}")
        if value is None and "None" not in heads(known[name].type):
            value = known[name].default
        made[name] = checked(value, known[name], f"{name!r} in {path}") if value is not None else None
    return made


def _recipe_help(given: Recipe | Study, words: Sequence[str]) -> str:
    at = next(i for i, word in enumerate(words) if word.startswith(("-h", "--help")))
    topic = words[at].partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
    if page := pages.topic_page(topic):
        return page
    own, values = _own(given, words, {}), recipe_of(given).settings()
    known = own | {name: setting for name, setting in training_settings().items() if name not in own}
    shown = [s for name, s in known.items() if name in own or (topic == "all" and name != "hub_token")]
    settings = [replace(setting, default=values.get(setting.name, setting.default)) for setting in shown]
    script = sys.modules["__main__"]
    return pages.recipe_page(settings, script.__doc__ or "", sys.argv[0])


def hftl(argv: Sequence[str] | None = None) -> None:
    """The `hftl` command.

    Raises:
        SystemExit: 2 for bad input, with one sentence on stderr; 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with say_errors(memory="lower --batch_size"):
        command = words[0] if words else "--help"
        if command in ("--help", "-h"):
            pages.say(pages.HFTL)
        elif command == "--version":
            pages.say(_versions())
        elif command in pages.LISTED:
            pages.say(pages.listing(command, *[word for word in words[1:2] if word not in ("--help", "-h")]))
        elif command == "recipes":
            recipes.show(words[1:])
        elif command == "train":
            if (recipe := recipes.named(words[1:])) is not None:
                main(recipe)
        elif command in commands.RUN:
            commands.run(command, words[1:])
        else:
            known = ("train", "recipes", *commands.RUN, *pages.LISTED, "--help", "--version")
            raise UserError(f"hftl has no command {command!r}.{suggest(command, known)} See hftl --help.")


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    lines = []
    for package in ("hftl", "transformers", "torch", "peft", "accelerate", "datasets", "timm"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} (not installed)")
    return "\n".join([*lines, f"python {sys.version.split()[0]}"])
