"""Tasks, one modality a module. Importing this package imports them all, so that they are found by pipeline tag."""

import importlib
import pkgutil

from hftl.tasks.base import Task

__all__ = ["Task"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
