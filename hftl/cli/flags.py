"""The words of a command line -> settings: `--name value`, `--name=value`, switches, lists, and what a name resembles.

Knows the syntax of flags; knows no recipe, no command and nothing of what a setting does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from hftl.errors import UserError, suggest
from hftl.settings.fields import GONE, Setting
from hftl.settings.spec import heads
from hftl.settings.values import asked, from_words

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
    raise UserError(f"There is no flag --{written}.{similar(name, known, '--')} See --help.")


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


def similar(name: str, known: Mapping[str, Setting], dashes: str) -> str:
    """The suggestion for an unknown name: what to write instead, what it abbreviates, or what it resembles."""
    if name in GONE:
        return f" {GONE[name]}"
    starts = [other for other in known if name and other.startswith(name)]
    if ELSEWHERE.get(name) in known:
        return f" Did you mean '{dashes}{ELSEWHERE[name]}'?"
    if starts and name not in known:
        return f" Did you mean '{dashes}{starts[0]}'? Names are not abbreviated."
    return suggest(dashes + name, [dashes + other for other in (*known, *ALIASES)])


def asks_help(words: Sequence[str]) -> bool:
    """Whether help is asked for anywhere in the words."""
    return any(word in ("-h", "--help") or word.startswith("--help=") for word in words)
