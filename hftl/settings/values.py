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
    """`checked` for each setting of a run, named as in Python; functions in a list, such as metrics, pass."""
    found = {}
    for name, value in settings.items():
        functions = [one for one in value if callable(one)] if isinstance(value, list) else []
        plain = [one for one in value if not callable(one)] if functions else value
        found[name] = checked(plain, known[name], name)
        found[name] = [*found[name], *functions] if functions else found[name]
    return found


def choices_of(setting: Setting) -> tuple[str, ...]:
    """The words that a setting admits; empty where any will do."""
    if setting.choices:
        return setting.choices
    theirs = training_settings().get(setting.name, setting)  # a recipe's own `str` may be an enum of transformers
    kinds = sorted(heads(theirs.type)) if "list" not in heads(theirs.type) else []
    return next((choices for kind in kinds if (choices := named_choices(kind))), ())


def _within(value: Any, setting: Setting, what: str) -> Any:
    """Hold a value of the right type against the setting's range and choices."""
    choices = choices_of(setting)
    if choices and isinstance(value, str) and value not in choices:
        raise UserError(f"{what} expected {asked(setting)}; {clip(value)} came.{suggest(value, choices)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if setting.range and number and not _inside(value, setting.range):
        raise UserError(f"{what} expected {asked(setting)}; {value} came.")
    return value


def asked(setting: Setting) -> str:
    """What the setting takes, in words: "a number above 0"."""
    choices = choices_of(setting)
    if choices:
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    words = expected(setting.type).removesuffix(" or None")
    if not setting.range:
        return words
    low, high = _ends(setting.range)
    above, below = setting.range[0] == "(", "below " if setting.range[-1] == ")" else ""
    if math.isinf(high):
        return words + (f" above {low:g}" if above else f" of {low:g} or more")
    return f"{words} {f'above {low:g} and' if above else f'from {low:g} to'} {below}{high:.0f}"


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
