"""The command line: flags and a YAML file over a recipe, and the `hftl` command.

Knows the syntax of flags and the order recipe < --config < flags; knows nothing of what a setting does. It imports no
torch, and neither do `hftl.recipe` and the modules of `hftl.strategies`, so that help and a bad flag answer at once.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftl import augment
from hftl import help as pages
from hftl.errors import UserError, suggest
from hftl.failures import say_errors
from hftl.settings import Setting, own_settings, training_settings
from hftl.spec import build, heads
from hftl.startup import imports
from hftl.stopping import Left
from hftl.strategies.base import Strategy
from hftl.values import asked, checked, checked_all, from_words

if TYPE_CHECKING:
    from hftl.recipe import Recipe
    from hftl.report import Report

ALIASES = {
    "model_name_or_path": "model",
    "dataset_name": "data",
    "train_file": "data",
    "validation_file": "valid",
    "test_file": "test",
}
"""Names of transformers' example scripts that stand for a recipe's own."""

ELSEWHERE = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "warmup_ratio": "warmup_steps",
    "group_by_length": "train_sampling_strategy",
    "evaluation_strategy": "eval_strategy",
    "overwrite_output_dir": "overwrite",
    "no_cuda": "use_cpu",
    "max_seq_length": "max_length",
    "text_column_name": "text",
    "label_column_name": "label",
    "image_column_name": "image",
    "train_dir": "data",
    "validation_dir": "valid",
}
"""Names of older versions and other tools, and what they are called here; only for the suggestion."""

PREDICT = {
    s.name: s
    for s in (
        Setting("data", "str", None, "any source of training, without labels; - reads a text or path a line", "Flags"),
        Setting("output", "str", None, "the csv file to write", "Flags"),
        Setting("batch_size", "int", 32, "rows a step", "Flags"),
        Setting("text", "str", None, "the column that holds the text, where its name differs from training", "Flags"),
        Setting("text_pair", "str", None, "the column that holds the second text of a pair", "Flags"),
        Setting("tokens", "str", None, "the column that holds the words", "Flags"),
        Setting("image", "str", None, "the column that holds the image or its file name", "Flags"),
        Setting("overwrite", "bool", False, "replace the output file", "Flags"),
    )
}


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> Report | None:
    """Run a recipe with what the command line asks for. A script's last line: `main(RECIPE)`.

    Args:
        recipe: the settings to start from; `--config file.yaml` overrides them, and flags override both.
        argv: the words of the command line; `sys.argv[1:]` where None.

    Returns:
        The report; None where the settings ask for no run (`--show_rates`).

    Raises:
        SystemExit: 0 after `--help`; 2 for bad input; as `hftl.failures` has them. One sentence is on stderr.
    """
    take_the_cores()
    words = list(sys.argv[1:] if argv is None else argv)
    with say_errors():
        if _asks_help(words):
            _say(_recipe_help(recipe, words))
            raise SystemExit(0)
        merged = merge(recipe, words)
    with say_errors(left=lambda: _left_in(merged.output_dir)):
        return merged.run()


def _left_in(folder: str) -> Left:
    from hftl.folder import OutputFolder

    return OutputFolder(folder).left


def take_the_cores() -> None:
    """Undo the one thread that `accelerate launch` gives a lone process without a GPU; done before torch is loaded."""
    lone = "ACCELERATE_USE_CPU" in os.environ and os.environ.get("WORLD_SIZE", "1") == "1"
    if lone and os.environ.get("OMP_NUM_THREADS") == "1" and "torch" not in sys.modules:
        del os.environ["OMP_NUM_THREADS"]


def merge(recipe: Recipe, words: Sequence[str]) -> Recipe:
    """The recipe with its settings overridden by the `--config` file and then by the flags in `words`.

    Raises:
        UserError: a name is unknown, or a value has the wrong type or lies out of range.
    """
    known = _known(recipe)
    chosen = read_flags(words, {**known, "config": pages.CONFIG})
    path = chosen.pop("config", None)
    settings = recipe.settings() | (_from_file(path, known) if path is not None else {}) | chosen
    for name in settings:
        if name not in known:
            raise UserError(f"The recipe names an unknown setting {name!r}.{_similar(name, known, '')}")
    merged = type(recipe)(**checked_all(settings, known))
    if isinstance(merged.strategy, str):  # a typo should not wait for torch
        build(merged.strategy, Strategy.known())
    augment.read(merged.augment)
    return merged


def read_flags(words: Sequence[str], known: Mapping[str, Setting]) -> dict[str, Any]:
    """Read `--name value`, `--name=value`, `--switch`, `--no_switch` and `--list a b` into settings; the last one wins.

    Raises:
        UserError: a word is no flag, a flag is unknown (an abbreviation is, too) or its value does not read.
    """
    chosen: dict[str, Any] = {}
    rest = deque(words)
    last = ""
    while rest:
        word = rest.popleft()
        if not word.startswith("--") or word == "--":
            quote = f" --{last} takes one value: quote it where it holds a space." if last else ""
            raise UserError(f"Expected a flag such as --data; {word!r} came.{quote}")
        written, equals, value = word[2:].partition("=")
        name, setting, negated = _resolve(written, known)
        texts = [value] if equals else ["false"] if negated else _take(rest, setting)
        read = from_words(texts, setting, f"--{name}")
        if negated and equals:
            read = not read
        if isinstance(read, list) and isinstance(chosen.get(name), list):
            read = chosen[name] + read
        chosen[name], last = read, name
    return chosen


def _resolve(written: str, known: Mapping[str, Setting]) -> tuple[str, Setting, bool]:
    """The setting that a flag names, and whether it is its denial (`--no_bf16`)."""
    name = written.replace("-", "_")
    name = name if name in known else ALIASES.get(name, name)
    if name in known:
        return name, known[name], False
    positive = name.removeprefix("no_")
    if positive in known and "bool" in heads(known[positive].type):
        return positive, known[positive], True
    if name == "hub_token":
        raise UserError("A token on the command line would be written to disk with the run; use `hf auth login`.")
    raise UserError(f"There is no flag --{written}.{_similar(name, known, '--')} See --help.")


def _take(rest: deque[str], setting: Setting) -> list[str]:
    """The words after a flag that are its value: one, none for a switch, or several for a list."""
    kinds = heads(setting.type)
    if rest and not rest[0].startswith("--"):
        taken = [rest.popleft()]
        while "list" in kinds and rest and not rest[0].startswith("--"):
            taken.append(rest.popleft())
        return taken
    if "bool" in kinds:
        return ["true"]
    raise UserError(f"--{setting.name} needs a value ({asked(setting)}); none came.")


def _similar(name: str, known: Mapping[str, Setting], dashes: str) -> str:
    """The suggestion for an unknown name: what it is called here, what it abbreviates, or what it resembles."""
    starts = [other for other in known if name and other.startswith(name)]
    if ELSEWHERE.get(name) in known:
        return f" Did you mean '{dashes}{ELSEWHERE[name]}'?"
    if starts and name not in known:
        return f" Did you mean '{dashes}{starts[0]}'? Names are not abbreviated."
    return suggest(dashes + name, [dashes + other for other in (*known, *ALIASES)])


def _known(recipe: Recipe) -> dict[str, Setting]:
    """Every setting of this recipe: its own, then those of TrainingArguments."""
    own = own_settings(type(recipe))
    others = {name: setting for name, setting in training_settings().items() if name not in own}
    others.pop("hub_token", None)  # Trainer writes it in clear into training_args.bin, which it uploads
    return own | others


def _from_file(path: str, known: Mapping[str, Setting]) -> dict[str, Any]:
    from hftl.recipe_file import read_yaml

    settings = {}
    for written, value in read_yaml(path).items():
        name = written if written in known else ALIASES.get(written, written)
        if name not in known:
            raise UserError(f"{path} names an unknown setting {written!r}.{_similar(written, known, '')}")
        if value is None and "None" not in heads(known[name].type):
            value = known[name].default
        settings[name] = checked(value, known[name], f"{name!r} in {path}") if value is not None else None
    return settings


def _asks_help(words: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") or word.startswith("--help=") for word in words)


def _recipe_help(recipe: Recipe, words: Sequence[str]) -> str:
    at = next(i for i, word in enumerate(words) if word.startswith(("-h", "--help")))
    topic = words[at].partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
    if page := pages.topic_page(topic):
        return page
    known, values = _known(recipe) if topic == "all" else own_settings(type(recipe)), recipe.settings()
    shown = {name: setting for name, setting in known.items() if name not in recipe.hidden}
    settings = [replace(setting, default=values.get(name, setting.default)) for name, setting in shown.items()]
    script = sys.modules["__main__"]
    return pages.recipe_page(settings, script.__doc__ or "", sys.argv[0])


def _say(page: str) -> None:
    """Print a page. A reader that closed early (`| head`) is no failure."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def hftl(argv: Sequence[str] | None = None) -> None:
    """The `hftl` command.

    Raises:
        SystemExit: 2 for bad input, with one sentence on stderr; 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with say_errors(memory="lower --batch_size"):
        command = words[0] if words else "--help"
        if command in ("--help", "-h"):
            _say(pages.HFTL)
        elif command == "--version":
            _say(_versions())
        elif command in pages.LISTED:
            _say(pages.listing(command, *[word for word in words[1:2] if word not in ("--help", "-h")]))
        elif command == "predict":
            _predict(words[1:])
        else:
            known = ("predict", *pages.LISTED, "--help", "--version")
            raise UserError(f"hftl has no command {command!r}.{suggest(command, known)} See hftl --help.")


def _predict(words: list[str]) -> None:
    if _asks_help(words):
        _say(pages.PREDICT + pages.flags(PREDICT.values()))
        return
    if not words or words[0].startswith("--"):
        raise UserError("hftl predict takes the folder of a run first: hftl predict FOLDER --data FILE --output FILE.")
    chosen = read_flags(words[1:], PREDICT)
    for name in ("data", "output"):
        if name not in chosen:
            raise UserError(f"hftl predict needs --{name}: hftl predict FOLDER --data FILE --output FILE.")
    overwrite, output = chosen.pop("overwrite", False), Path(chosen.pop("output"))
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else "lies in no folder that exists"
        raise UserError(f"--output {output} {what}. Pass the path of a csv file to write.")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; pass --overwrite to replace it, or another --output.")
    with imports():
        from hftl.predict import predict_file
    predict_file(words[0], chosen.pop("data"), str(output), **chosen)


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    lines = []
    for package in ("hftl", "transformers", "torch", "peft", "accelerate", "datasets", "timm"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} (not installed)")
    return "\n".join([*lines, f"python {sys.version.split()[0]}"])
