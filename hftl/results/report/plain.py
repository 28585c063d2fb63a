"""Any value as strict JSON can hold it, with secrets left out. Knows nothing of what the values mean."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from hftl.results import privacy
from hftl.settings.visible import cut


def plain(value: Any, name: str = "") -> Any:
    """`value` as JSON can hold it; `name` is the key it stands under, so that secrets are recognised."""
    if isinstance(value, str) and value and privacy.names_secret(name):
        return privacy.HIDDEN
    if isinstance(value, enum.Enum):
        return plain(value.value, name)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), name)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return privacy.without_secrets(value).encode("utf-8", "replace").decode()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
    if isinstance(value, SimpleNamespace):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, name) for item in value]
    return cut(value, 300) if not isinstance(value, os.PathLike) else os.fspath(value)
