"""The pages that `--help` and `hftl strategies` print, 100 columns wide.

Knows how settings and strategies are shown; knows no values of a run and imports no torch.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable

from hftl.errors import UserError, suggest
from hftl.settings import Setting
from hftl.spec import heads, signature
from hftl.strategies.base import Strategy
from hftl.values import choices_of

WIDTH, COLUMN = 100, 34

CONFIG = Setting("config", "str", None, "settings from a YAML file, such as a run's recipe.yaml; flags win", "More")
FOOT = """\
More
  --config FILE.yaml              settings from a file, such as a run's recipe.yaml; flags win
  --help all                      every flag of transformers.TrainingArguments, too
  --help strategies               every strategy, with its arguments

A switch that is on goes off with --no_NAME, or --NAME false. Names of transformers' example scripts
work: --model_name_or_path, --dataset_name, --train_file, --validation_file, --test_file.

Exit codes: 0 done, 2 bad input (one sentence says which), 130 Ctrl-C. `accelerate launch` makes any
failure 1 and adds a traceback of its own, which `accelerate launch -q` leaves out.
"""

HFTL = """\
hftl: fine-tuned models put to use. Training is started by a recipe: accelerate launch recipes/text_cls.py

  hftl predict FOLDER --data new.csv --output predictions.csv
                                  class probabilities and names for new rows
  hftl strategies [NAME]          every strategy, or all about one
  hftl --version                  versions, for a report of a defect
  hftl predict --help             the flags of predict
"""

PREDICT = """\
hftl predict FOLDER --data FILE --output FILE: predictions for new rows, by a folder that a run wrote

  hftl predict runs/last --data new.csv --output predictions.csv
  cat texts.txt | hftl predict runs/last --data - --output predictions.csv

"""


def recipe_page(settings: Iterable[Setting], about: str, program: str) -> str:
    """The short page: the recipe's own words, commands to copy, its settings in groups."""
    launch, settings = f"accelerate launch {program}", list(settings)
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


def strategies_page(name: str | None = None) -> str:
    """Every strategy in one line each, or the whole docstring of one.

    Raises:
        UserError: no strategy has that name.
    """
    known = Strategy.known()
    if name is None:
        head = 'Strategies are joined by |, in quotes: --strategy "LoRA(r=16) | LayerDecay(0.9)"'
        return "\n".join([head, "", *(_about(kind) for kind in known.values()), ""])
    if name not in known:
        raise UserError(f"There is no strategy {name!r}.{suggest(name, known)} `hftl strategies` lists them all.")
    return f"{signature(known[name])}\n\n{textwrap.indent(inspect.cleandoc(known[name].__doc__ or ''), '  ')}\n"


def _about(kind: type[Strategy]) -> str:
    """A strategy's signature and the first paragraph line of its docstring."""
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
