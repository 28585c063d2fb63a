"""Runs recipes one after the other in the processes of one launch, and notes what each process knows of each run.

    torchrun --nproc_per_node 2 tests/in_turn.py WORK.json

The work is a list of settings of `hftl.Recipe`; WORK.json.RANK is a list of what came out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hftl import Recipe, Trainer
from hftl.run import outcome
from hftl.train.resume import manifest
from hftl.train.resume.stopping import REQUEST, Stopped


class Stop(BaseException):
    """A run was broken off in all processes at once."""


@contextlib.contextmanager
def broken_off(at: int | None, asked: int | None) -> Iterator[None]:
    """Leave a run before a step of it, in every process, or ask the second process alone to stop there."""
    step = Trainer.training_step

    def stepping(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == at:
            raise Stop
        if self.state.global_step == asked and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    Trainer.training_step = stepping
    try:
        with contextlib.suppress(Stop, Stopped), REQUEST.listening():
            yield
    finally:
        Trainer.training_step = step


def left(folder: Path) -> dict[str, Any]:
    """The checkpoints of a run that was broken off: their files, and what is wrong with them."""
    found = sorted((folder / "checkpoints").glob("checkpoint-*"))
    return {one.name: [sorted(file.name for file in one.iterdir()), manifest.fault(one)] for one in found}


def noted(settings: dict[str, Any]) -> dict[str, Any]:
    """What this process knows of a run once it is over."""
    kept = []
    stops = broken_off(settings.pop("stop", None), settings.pop("asked", None))
    measure = outcome.measure
    outcome.measure = lambda run: kept.append(run) or measure(run)
    report = None
    try:
        with stops:
            report = Recipe(**settings).run()
    finally:
        outcome.measure = measure
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first process may still be sealing a checkpoint that the next run looks for
    if report is None:
        return {"left": left(Path(settings["output_dir"]))}
    trainer = kept[0].trainer
    parameters = list(trainer.model.parameters())
    return {
        "kind": str(trainer.accelerator.distributed_type),
        "processes": report.processes,
        "history": report.history,
        "best": [str(trainer.state.best_model_checkpoint), trainer.state.best_metric, trainer.state.global_step],
        "scores": {s: {n: [v.value, v.n] for n, v in getattr(report, s).items()} for s in ("valid", "test")},
        "here": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters),
        "all": sum(p.numel() for p in parameters),
        "split": sum(isinstance(p, DTensor) for p in parameters),
        "computed": trainer.cache.computed,
        "resting": sorted(type(m).__name__ for m in trainer._eval_modules),
        "notes": report.data["notes"],
    }


if __name__ == "__main__":
    work = Path(sys.argv[1])
    found = [noted(settings) for settings in json.loads(work.read_text("utf-8"))]
    work.with_name(f"{work.name}.{os.environ.get('RANK', '0')}").write_text(json.dumps(found), "utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
