"""Transfer learning for text and images, with a report that says whether the transfer helped.

The public names are imported when they are first used: `import hftl` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hftl.errors import suggest

if TYPE_CHECKING:
    from hftl.cli.main import main as main
    from hftl.data.roles import Role as Role
    from hftl.results.adapters import load_adapters as load_adapters
    from hftl.results.predict import load as load
    from hftl.results.report.report import Report as Report
    from hftl.run.recipe import Recipe as Recipe
    from hftl.strategies.base import Strategy as Strategy
    from hftl.studies.alone import EachAlone as EachAlone
    from hftl.studies.source_only import Adapting as Adapting
    from hftl.tasks.base import Task as Task
    from hftl.train.trainer import Trainer as Trainer

_HOMES = {
    "Adapting": "hftl.studies.source_only",
    "EachAlone": "hftl.studies.alone",
    "Recipe": "hftl.run.recipe",
    "Report": "hftl.results.report.report",
    "Role": "hftl.data.roles",
    "Strategy": "hftl.strategies.base",
    "Task": "hftl.tasks.base",
    "Trainer": "hftl.train.trainer",
    "load": "hftl.results.predict",
    "load_adapters": "hftl.results.adapters",
    "main": "hftl.cli.main",
}
__all__ = [*_HOMES]
_GONE = {
    "FeatureRecipe": "Write hftl.Recipe(strategy=\"Features(classifier='svm')\").",
    "MultiTaskRecipe": "Write hftl.Recipe(tasks=[...]), and hftl.EachAlone(hftl.Recipe(tasks=[...])) to compare.",
    "PretrainRecipe": "Write hftl.Recipe(task='fill-mask'), or task='image-feature-extraction' for images.",
}
"""Names of earlier versions -> what to write instead."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _GONE:
        raise AttributeError(f"hftl.{name} is gone. {_GONE[name]}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("hftl")
    if name[:1].isupper():  # a strategy; a submodule that is asked for by name needs no look at them
        known = _strategies()
        if name in known:
            return known[name]
        raise AttributeError(f"module 'hftl' has no attribute {name!r}.{suggest(name, [*_HOMES, *known])}")
    raise AttributeError(f"module 'hftl' has no attribute {name!r}.{suggest(name, _HOMES)}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_strategies(), *(name for name in globals() if name.startswith("__"))])


def _strategies() -> dict[str, type]:
    return importlib.import_module("hftl.strategies.base").Strategy.known()
