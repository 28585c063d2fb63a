"""The pages that `--help` and `hftl strategies` print, 100 columns wide.

Knows how settings and strategies are shown; knows no values of a run and imports no torch.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping

from hftl.errors import UserError, suggest
from hftl.settings.fields import Setting
from hftl.settings.spec import heads, signature
from hftl.settings.values import choices_of
from hftl.strategies.base import Strategy
from hftl.tasks.augment import Augmentation

WIDTH, COLUMN = 100, 34

LISTED: dict[str, Callable[[], Mapping[str, type]]] = {
    "strategies": Strategy.known,
    "augmentations": Augmentation.known,
}
HEADS = {
    "strategies": 'Strategies are joined by |, in quotes: --strategy "LoRA(r=16) | LayerDecay(0.9)"',
    "augmentations": 'Augmentations are joined by |, in quotes: --augment "Sketch(p=0.5) | FDA(beta=0.01)"',
}

CONFIG = Setting("config", "str", None, "settings from a YAML file, such as a run's recipe.yaml; flags win", "More")
FOOT = """\
More
  --config FILE.yaml              settings from a file, such as a run's recipe.yaml; flags win
  --push_to_hub                   send the finished folder to the Hub: with --hub_model_id you/name
  --help all                      every flag of transformers.TrainingArguments, too
  --help strategies               every strategy, with its arguments
  --help augmentations            every augmentation, with its arguments

A switch that is on goes off with --no_NAME, or --NAME false. Names of transformers' example scripts
work: --model_name_or_path, --dataset_name, --train_file, --validation_file, --test_file.

Exit codes: 0 done, 2 bad input (one sentence says which), 130 Ctrl-C. `accelerate launch` makes any
failure 1 and adds a traceback of its own, which `accelerate launch -q` leaves out.
"""

HFTL = """\
hftl: pre-trained models fine-tuned, and put to use

  hftl train text_cls --data reviews.csv
                                  a recipe by its name, on this device; on several it is
                                  accelerate launch -m hftl.recipes.text_cls
  hftl recipes                    every recipe; hftl recipes text_cls mine.py copies one out
  hftl predict FOLDER --data new.csv --output predictions.csv
                                  class probabilities and names for new rows
  hftl push FOLDER you/name       the folder to the Hugging Face Hub, in one commit
  hftl merge FOLDER OUT           an adapter folded into its base model
  hftl export FOLDER OUT.onnx     the model as ONNX
  hftl strategies [NAME]          every strategy, or all about one
  hftl augmentations [NAME]       every random change of training rows, or all about one
  hftl --version                  versions, for a report of a defect
  hftl COMMAND --help             the flags of a command
"""

COMMANDS = {
    "predict": """\
hftl predict FOLDER --data FILE --output FILE: predictions for new rows, by a folder that a run wrote

  hftl predict runs/last --data new.csv --output predictions.csv
  cat texts.txt | hftl predict runs/last --data - --output predictions.csv

""",
    "push": """\
hftl push FOLDER you/name: a finished folder to the Hugging Face Hub, in one commit

  hftl push runs/last you/reviews --private
  hftl push runs/last you/reviews --dry_run

It shows what would be sent, with sizes, and looks for tokens, keys and paths of this machine first.
Log in once with: hf auth login

""",
    "merge": """\
hftl merge FOLDER OUT: an adapter folded into its base model, as a folder that needs no PEFT

  hftl merge runs/lora runs/lora-merged

The logits of both are compared before it is called done.

""",
    "export": """\
hftl export FOLDER OUT.onnx: the model as ONNX, for batches of any size and texts of any length

  hftl export runs/last model.onnx

Needs: pip install "hftl[export]". The outputs of both are compared before it is called done.

""",
}


def say(page: str) -> None:
    """Print a page. A reader that closed early (`| head`) is no failure."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def recipe_page(settings: Iterable[Setting], about: str, program: str) -> str:
    """The short page: the recipe's own words, commands to copy, its settings in groups."""
    launch = program if program.startswith("hftl ") else f"accelerate launch {program}"
    settings = list(settings)
    examples = [f"  {launch} --data my_data.csv --output_dir runs/mine"]
    if any(setting.name == "strategy" for setting in settings):
        examples.append(f'  {launch} --strategy "LoRA(r=16) | LayerDecay(0.9)"')
    return "\n\n".join([about.strip(), "\n".join(examples), flags(settings), FOOT]).lstrip()


def flags(settings: Iterable[Setting]) -> str:
    """Settings under the headings of their groups, in the order in which they come."""
    groups: dict[str, list[str]] = {}
    for setting in settings:
        groups.setdefault(setting.group, []).append(_entry(setting))
    return "\n\n".join(f"{group}\n" + "\n".join(entries) for group, entries in groups.items())


def listing(command: str, name: str | None = None) -> str:
    """All that can be named in the notation in one line each, or the whole docstring of one.

    Args:
        command: "strategies" or "augmentations".

    Raises:
        UserError: there is none of that name.
    """
    known = LISTED[command]()
    if name is None:
        return "\n".join([HEADS[command], "", *(_about(kind) for kind in known.values()), ""])
    if name not in known:
        noun = command.replace("ies", "y").removesuffix("s")
        raise UserError(f"There is no {noun} {name!r}.{suggest(name, known)} `hftl {command}` lists them all.")
    return f"{signature(known[name])}\n\n{textwrap.indent(inspect.cleandoc(known[name].__doc__ or ''), '  ')}\n"


def topic_page(topic: str) -> str:
    """What `--help TOPIC` prints: a listing, or all about one name; "" for `all` and for what is a flag or nothing.

    Raises:
        UserError: there is no such topic.
    """
    if topic in LISTED:
        return listing(topic)
    for command, known in LISTED.items():
        if topic in known():
            return listing(command, topic)
    if topic and topic != "all" and not topic.startswith("-"):
        there = ("all", *LISTED, *(name for known in LISTED.values() for name in known()))
        raise UserError(f"--help takes all, {', '.join(LISTED)} or a name; {topic!r} came.{suggest(topic, there)}")
    return ""


def _about(kind: type) -> str:
    """A class's signature and the first paragraph line of its docstring."""
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    return _columns(signature(kind), first)


def _entry(setting: Setting) -> str:
    kinds = heads(setting.type)
    word = "TEXT" if {"int", "str"} <= kinds else "N" if "int" in kinds else "X" if "float" in kinds else "TEXT"
    if "list" in kinds:
        word = "TEXT ..."
    elif "bool" in kinds and "str" not in kinds:
        word = ""
    elif "dict" in kinds:
        word = "JSON"
    elif len(choices := "|".join(choices_of(setting))) in range(1, 24):
        word = choices
    shown = setting.default
    known = "" if shown is None or shown is False or shown == [] or shown == "" else f" (default: {shown})"
    return _columns(f"--{setting.name} {word}".rstrip(), " ".join(setting.help.replace("%%", "%").split()) + known)


def _columns(left: str, right: str) -> str:
    """Two columns; a left part that is too long stands on a line of its own."""
    body = textwrap.wrap(right, WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False) or [""]
    first = f"  {left}".ljust(COLUMN)
    if len(first) > COLUMN or first[-1] != " ":
        return "\n".join([first.rstrip(), *(" " * COLUMN + line for line in body)]).rstrip()
    return "\n".join([first + body[0], *(" " * COLUMN + line for line in body[1:])]).rstrip()
