"""The laws of strategies and tasks, for their authors to run: `check_strategy(MyStrategy())`, `check_task(settings)`.

Each law is a function of an `Outcome` that raises AssertionError with a sentence. `check_strategy` runs them all on a
text and on an image classification task, `check_task` under the strategies that it is given. Needs no network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hftl.errors import UserError
from hftl.results import load as hub
from hftl.results.report.report import Report
from hftl.run import outcome
from hftl.run.prepare import Run
from hftl.run.recipe import Recipe
from hftl.run.settings import task_class
from hftl.run.steps import strategy_of
from hftl.settings import spec
from hftl.strategies import Strategy
from hftl.tasks.tiny import (  # noqa: F401
    BAD,
    GOOD,
    PLAIN,
    TINY,
    TRAINING,
    colour_images,
    reviews_csv,
    sentences,
    tiny_bert,
    tiny_choice,
    tiny_cnn,
)


@dataclass
class Outcome:
    """What one strategy has come to on one task: the finished run, its report, and the weights that it began with."""

    run: Run
    report: Report
    before: dict[str, torch.Tensor]
    """Every parameter and buffer of the prepared model before the first step, by name."""
    after: dict[str, torch.Tensor]
    """The same after the last step; the report and the folder are of the best checkpoint."""
    probe: dict[str, torch.Tensor]
    """One batch of inputs, and `logits` of the trained model for it."""


def train_tiny(strategy: Strategy | str, settings: dict[str, Any], folder: Path) -> Outcome:
    """Run one strategy on one tiny task into a folder; a target's rows are the task's own, without labels."""
    target = {"unlabelled": settings["data"]} if strategy_of(strategy).streams else {}
    recipe = Recipe(
        **{"head": "random"}
        | target
        | settings
        | {"strategy": strategy, "output_dir": str(folder), "disable_tqdm": True}
    )
    run = recipe.prepare()
    run.trainer.args.learning_rate /= run.trainer.groups[0].peak  # whatever the strategy, nothing trains faster
    before, last = _state(run.trainer.model), _Last()
    run.trainer.add_callback(last)
    run.train()
    report = outcome.measure(run)
    rows = run.part.rows["test"].plain([0, 1, 2, 3])
    probe = run.part.task.collate(run.part.pretrained.processor)(rows)
    probe.pop("labels")
    with torch.inference_mode():
        probe["logits"] = run.trainer.model.eval()(**probe).logits.clone()
    run.write(report)
    torch.save(probe, folder.parent / f"{folder.name}.probe.pt")
    return Outcome(run, report, before, last.state, probe)


# --- laws ---


def it_learns(made: Outcome) -> None:
    """The training loss over the last epoch is lower than over the first, which saw the same rows."""
    losses = {entry["epoch"]: entry["loss"] for entry in made.report.history if "loss" in entry}
    start, end = (np.mean([x for at, x in losses.items() if e - 1 < at <= e]) for e in (1, np.ceil(max(losses))))
    assert end < start, f"the loss went from {start:.4f} to {end:.4f}: nothing was learned"


def frozen_is_bit_identical(made: Outcome) -> None:
    """What has rate 0 throughout is untouched, the BatchNorm statistics of frozen modules included."""
    trainer = made.run.trainer
    trains = {name for group in trainer.groups for name in group.parameters}
    owners = {name.rpartition(".")[0] for name in trains}
    for name, value in made.before.items():
        free = name in trains or (name not in _parameters(trainer.model) and name.rpartition(".")[0] in owners)
        same = torch.equal(value, made.after[name])
        assert free or same, f"{name} is frozen, and it changed"


def something_trains(made: Outcome) -> None:
    """Every parameter group has moved."""
    for group in made.run.trainer.groups:
        moved = any(not torch.equal(made.before[name], made.after[name]) for name in group.parameters)
        assert moved, f"the group of {next(iter(group.parameters))} did not move"


def the_notation_round_trips(made: Outcome) -> None:
    """Written down and read back, a strategy is the same."""
    strategy = made.run.trainer.strategy
    assert strategy_of(spec.spell(strategy)) == strategy, f"{spec.spell(strategy)} reads back as something else"


def the_folder_gives_the_same_logits(made: Outcome) -> None:
    """Loaded under another seed, the saved folder computes what the trained model did, to 1e-5."""
    transformers.set_seed(987)
    loaded = hub.load_folder(made.report.folder)
    assert loaded.labels == made.run.part.splits.labels, f"the labels came back as {loaded.labels}"
    with torch.inference_mode():
        found = loaded.model(**{name: value for name, value in made.probe.items() if name != "logits"}).logits
    far = (found - made.probe["logits"]).abs().max().item()
    assert far < 1e-5, f"the reloaded model's logits are {far:.2g} off"


def the_report_counts_what_trains(made: Outcome) -> None:
    """`trainable` and `total` are the numbers of elements in the optimizer and in the model, partners left out."""
    beside = made.run.trainer.beside
    theirs = {id(p) for p in beside.partner.parameters()} if beside is not None else set()
    held = [p for group in made.run.trainer.optimizer.param_groups for p in group["params"]]
    trained = sum(p.numel() for p in held if id(p) not in theirs)
    said, state = made.report.trainable, made.run.trainer.state
    early = state.best_global_step not in (None, state.max_steps)  # layers that join later are not in what is kept
    if early and not all(group.constant for group in made.run.trainer.groups):
        assert 0 < said <= trained, f"the report says {said}, the optimizer holds {trained}"
    else:
        assert said == trained, f"the report says {said}, the optimizer holds {trained}"
    assert said <= made.report.total


LAWS: tuple[Callable[[Outcome], None], ...] = (
    it_learns,
    frozen_is_bit_identical,
    something_trains,
    the_notation_round_trips,
    the_folder_gives_the_same_logits,
    the_report_counts_what_trains,
)


def the_same_seed_gives_the_same_numbers(first: Outcome, again: Outcome) -> None:
    """Two runs with one seed end in the same weights and the same scores."""
    for name, value in first.after.items():
        assert torch.equal(value, again.after[name]), f"{name} differs between two runs with one seed"
    assert first.report.test == again.report.test


def a_fresh_process_gives_the_same_logits(folders: Sequence[Path], modules: Iterable[str] = ()) -> None:
    """One new process with another seed loads each folder and meets the logits that were noted beside it.

    Args:
        modules: what the process imports first: where the tasks are defined.
    """
    found = subprocess.run(
        [sys.executable, "-c", _FRESH, ",".join(modules), *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    for folder, far in json.loads(found.stdout.splitlines()[-1]).items():
        assert far < 1e-5, f"{folder}: the logits of a fresh process are {far:.2g} off"


_FRESH = """
import importlib, json, sys, torch
from hftl.results.load import load_folder
torch.set_num_threads(1); torch.manual_seed(4711); far = {}
for module in filter(None, sys.argv[1].split(",")):
    importlib.import_module(module)
for folder in sys.argv[2:]:
    probe = torch.load(folder + ".probe.pt", weights_only=True)
    logits = probe.pop("logits")
    with torch.inference_mode():
        far[folder] = (load_folder(folder).model(**probe).logits - logits).abs().max().item()
print(json.dumps(far))
"""


def check_strategy(strategy: Strategy | str, tasks: Sequence[str] = ("text", "image")) -> None:
    """Run every law for a strategy on the tiny tasks.

    Raises:
        AssertionError: a law is broken; the message says which, on what, and how.
        UserError: the strategy refuses the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _check([(strategy, TINY[task](Path(scratch) / task)) for task in tasks])


def check_task(settings: dict[str, Any], strategies: Sequence[Strategy | str] = ("Full", "LoRA(r=4)")) -> None:
    """Run every law for a task, which a fresh process finds by importing its module.

    Args:
        settings: of a `Recipe`: the task, data that it can learn, a small model; what trains a tiny one is the default.

    Raises:
        AssertionError: a law is broken; the message says which, under which strategy, and how.
        UserError: the task is no module's, or refuses the settings.
    """
    _check([(strategy, TRAINING | settings) for strategy in strategies])


def _check(cases: Sequence[tuple[Strategy | str, dict[str, Any]]]) -> None:
    modules = {task_class(settings["task"]).__module__ for _, settings in cases}
    if "__main__" in modules:
        raise UserError("A fresh process cannot import a task of __main__. Save it as a module, and import it here.")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"run-{i}" for i in range(len(cases))]
        for (strategy, settings), folder in zip(cases, folders, strict=True):
            made = train_tiny(strategy, settings, folder)
            for law in LAWS:
                try:
                    law(made)
                except AssertionError as broken:
                    where = f"{strategy} on {settings['task']}"
                    raise AssertionError(f"{law.__name__}, {where}: {broken}") from None
            again = train_tiny(strategy, settings, folder.with_name(f"{folder.name}-again"))
            the_same_seed_gives_the_same_numbers(made, again)
        a_fresh_process_gives_the_same_logits(folders, modules)


class _Last(transformers.TrainerCallback):
    """Keeps the weights after the last step, before the best checkpoint takes their place."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.state = _state(model)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in named.items()}


def _parameters(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}
