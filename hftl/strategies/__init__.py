"""Strategies, one idea a module. Importing this package imports them all, so the notation knows them by name."""

import importlib
import pkgutil

from hftl.strategies.base import Chain, Strategy

__all__ = ["Chain", "Strategy"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
