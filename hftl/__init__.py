"""Transfer learning for text and images, with a report that says whether the transfer helped.

The public names are imported when they are first used: `import hftl` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hftl.errors import suggest

if TYPE_CHECKING:
    from hftl.adapters import load_adapters as load_adapters
    from hftl.cli import main as main
    from hftl.features import FeatureRecipe as FeatureRecipe
    from hftl.multitask import MultiTaskRecipe as MultiTaskRecipe
    from hftl.predict import load as load
    from hftl.pretrain import PretrainRecipe as PretrainRecipe
    from hftl.recipe import Recipe as Recipe
    from hftl.report import Report as Report
    from hftl.strategies.base import Strategy as Strategy
    from hftl.trainer import Trainer as Trainer

_HOMES = {
    "FeatureRecipe": "hftl.features",
    "MultiTaskRecipe": "hftl.multitask",
    "PretrainRecipe": "hftl.pretrain",
    "Recipe": "hftl.recipe",
    "Report": "hftl.report",
    "Strategy": "hftl.strategies.base",
    "Trainer": "hftl.trainer",
    "load": "hftl.predict",
    "load_adapters": "hftl.adapters",
    "main": "hftl.cli",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hftl")
    if name[:1].isupper():  # a strategy; a submodule that is asked for by name needs no look at them
        known = _strategies()
        if name in known:
            return known[name]
        raise AttributeError(f"module 'hftl' has no attribute {name!r}.{suggest(name, [*_HOMES, *known])}")
    raise AttributeError(f"module 'hftl' has no attribute {name!r}.{suggest(name, _HOMES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_strategies()])


def _strategies() -> dict[str, type]:
    return importlib.import_module("hftl.strategies.base").Strategy.known()
