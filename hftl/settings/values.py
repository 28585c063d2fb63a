"""How what a person wrote becomes a setting's value: words of the command line, YAML values, Python values.

Knows types, ranges and choices; knows no flag syntax and no file.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hftl.errors import UserError, suggest
from hftl.settings.fields import Setting, named_choices, training_settings
from hftl.settings.spec import clip, conform, expected, heads

RANGES = {
    "learning_rate": "(0, inf)",
    "num_train_epochs": "(0, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "eval_accumulation_steps": "[1, inf)",
    "weight_decay": "[0, inf)",
    "warmup_steps": "[0, inf)",
    "max_length": "[1, inf)",
    "max_train_samples": "[1, inf)",
    "max_steps": "[-1, inf)",
    "early_stopping_patience": "[0, inf)",
    "seed": "[0, 4294967295]",  # numpy's generator takes 32 bits
    "data_seed": "[0, 4294967295]",
    "max_grad_norm": "[0, inf]",
    "label_smoothing_factor": "[0, 1)",
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "neftune_noise_alpha": "[0, inf)",
    "logging_steps": "(0, inf)",
    "eval_steps": "(0, inf)",
    "save_steps": "(0, inf)",
    "eval_delay": "[0, inf)",
    "save_total_limit": "[1, inf)",
    "dataloader_num_workers": "[0, inf)",
    "dataloader_prefetch_factor": "[1, inf)",
    "batch_size": "[1, inf)",
    "max_tokens_per_batch": "[1, inf)",
    "cache_gb": "[0, inf)",
    "temperature": "(0, inf)",
}
"""Intervals in the notation of mathematics: a round bracket leaves its end out."""

CHOICES = {
    "on_bad_row": ("error", "skip"),
    "problem_type": ("single_label_classification", "multi_label_classification", "regression"),
    "class_weights": ("balanced",),
    "select": ("source", "entropy", "snd", "iwv", "dev", "oracle"),
    "cache_dtype": ("auto", "float32", "bfloat16"),
    "mixing": ("proportional", "uniform", "temperature", "annealed"),
    "weighting": ("none", "uncertainty"),
}


def from_words(words: list[str], setting: Setting, what: str) -> Any:
    """Read what stands after a flag: one word, or several where the setting is a list.

    Args:
        what: how an error names the setting, such as `--seed`.

    Raises:
        UserError: the words do not read as the setting's type, or lie outside its range or choices.
    """
    kinds = heads(setting.type)
    if "Any" in kinds:
        return words[0]
    candidates = list(_readings(words[0])) if len(words) == 1 else []
    if "dict" in kinds and words[0].lstrip().startswith("{") and not isinstance(candidates[0], dict):
        raise UserError(f'{what} expected JSON such as {{"num_cycles": 2}}; {clip(words[0])} came.')
    if "list" in kinds:
        candidates += [words, *_all_numbers(words)]
    for candidate in candidates:
        try:
            value = conform(candidate, setting.type)
        except ValueError:
            continue
        return _within(value, setting, what)
    raise UserError(f"{what} expected {asked(setting)}; {clip(' '.join(words))} came.")


def checked(value: Any, setting: Setting, what: str) -> Any:
    """Return a YAML or Python value as the setting's type, or say what is wrong with it.

    Text is read as a flag's word where the setting is not text: YAML 1.1 takes `1e-4` for text.

    Raises:
        UserError: as `from_words`.
    """
    try:
        return _within(conform(value, setting.type), setting, what)
    except ValueError:
        if isinstance(value, str):
            return from_words([value], setting, what)
        quotes = " Text needs quotes there." if "str" in heads(setting.type) else ""
        raise UserError(f"{what} expected {asked(setting)}; {clip(value)} came.{quotes}") from None


def checked_all(settings: Mapping[str, Any], known: Mapping[str, Setting]) -> dict[str, Any]:
    """`checked` for each setting of a run, named as in Python."""
    return {name: checked(value, known[name], name) for name, value in settings.items()}


def choices_of(setting: Setting) -> tuple[str, ...]:
    """The words that a setting admits; empty where any will do."""
    if setting.name in CHOICES:
        return CHOICES[setting.name]
    theirs = training_settings().get(setting.name, setting)  # a recipe's own `str` may be an enum of transformers
    kinds = sorted(heads(theirs.type)) if "list" not in heads(theirs.type) else []
    return next((choices for kind in kinds if (choices := named_choices(kind))), ())


def _within(value: Any, setting: Setting, what: str) -> Any:
    """Hold a value of the right type against the setting's range and choices."""
    choices = choices_of(setting)
    if choices and isinstance(value, str) and value not in choices:
        raise UserError(f"{what} expected {asked(setting)}; {clip(value)} came.{suggest(value, choices)}")
    interval = RANGES.get(setting.name)
    if interval and isinstance(value, int | float) and not isinstance(value, bool) and not _inside(value, interval):
        raise UserError(f"{what} expected {asked(setting)}; {value} came.")
    return value


def asked(setting: Setting) -> str:
    """What the setting takes, in words: "a number above 0"."""
    choices = choices_of(setting)
    if choices:
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    low, high = _ends(interval) if (interval := RANGES.get(setting.name)) else (-math.inf, math.inf)
    words = expected(setting.type).removesuffix(" or None")
    if interval is None:
        return words
    words += f" above {low:g}" if interval[0] == "(" else f" of {low:g} or more" if math.isinf(high) else ""
    if not math.isinf(high):
        words += f" from {low:g} to {'below ' if interval[-1] == ')' else ''}{int(high)}"
    return words


def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _inside(value: float, interval: str) -> bool:
    low, high = _ends(interval)
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def _readings(word: str) -> Iterator[Any]:
    """Every value that a word may stand for, the narrowest type first. `none` is text before it is None."""
    folded = word.strip().lower()
    if not folded:
        yield None
    if folded in ("true", "false"):
        yield folded == "true"
    for number in (int, float):
        try:
            yield number(folded)
        except ValueError:
            continue
    if folded.startswith(("{", "[")):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            yield json.loads(word)
    yield word
    if folded in ("yes", "on", "1", "no", "off", "0"):
        yield folded in ("yes", "on", "1")
    if folded in ("none", "null"):
        yield None


def _all_numbers(words: list[str]) -> Iterator[list[float]]:
    for number in (int, float):
        try:
            yield [number(word) for word in words]
        except ValueError:
            continue
