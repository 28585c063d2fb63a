"""Cut runs short in the middle of a step, and tell whether they ended like one that was not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hftl.cli.main import main
from hftl.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import kills  # noqa: E402


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is tidied up."""


def kill() -> None:
    raise Killed


def send(number: int) -> Callable[[], None]:
    """Send this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Do something once, in the middle of the step after this many."""
    plain, done = Trainer.training_step, []

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, *args, **kwargs)
        if self.state.global_step == step and not done:
            done.append(step)  # an update of several micro-batches comes by more than once
            act()
        return found

    patch.setattr(Trainer, "training_step", training_step)


def stopped(recipe: Any, *flags: str) -> int:
    """The exit code of a recipe's command, which does not come to its end."""
    with pytest.raises(SystemExit) as left:
        main(recipe, list(flags))
    return left.value.code


def same(one: Path, other: Path) -> None:
    """Weights and reports are alike to the byte, but for seconds and where they lie."""
    for path in one.rglob("*.safetensors"):
        if "checkpoints" not in path.parts:
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path.name
    for path in one.rglob("report.json"):
        first, second = (
            kills._steady(json.loads((it / path.relative_to(one)).read_text("utf-8"))) for it in (one, other)
        )
        assert first == second
