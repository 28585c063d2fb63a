"""A path as a person types it."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """`~` and `~name` stand for homes where there are such; else they are names like others, as in a shell."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a NUL byte, which no name of a user has
        return Path(path)
