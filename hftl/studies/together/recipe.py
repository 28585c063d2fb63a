"""A recipe that trains one encoder on several tasks at once, and says of each whether the others helped it.

Knows which settings that takes and the order of what is done; what happens inside is in
`hftl.studies.together.prepare`.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.paths import expanded
from hftl.run.recipe import Recipe
from hftl.settings.fields import HOW, IN, OUT, flag
from hftl.train.startup import Clock, imports

if TYPE_CHECKING:
    from hftl.results.report.report import Report

REFUSED = {"label_smoothing_factor": "labels of one task are classes and those of another are numbers"}
"""TrainingArguments that fit no mixture of tasks, and why."""


@dataclass(init=False, repr=False, eq=False)
class MultiTaskRecipe(Recipe):
    """A `Recipe` for several tasks: one shared encoder, a head for each task, micro-batches of one task each.

    The checkpoint is chosen by the mean over tasks of each task's headline metric on valid. Each task's folder,
    `OUTPUT_DIR/TASK`, loads on its own.

    Example:
        MultiTaskRecipe(tasks=["sst2=sst2/", "stsb=stsb/"], mixing="temperature").run()
    """

    hidden: ClassVar[tuple[str, ...]] = (
        *("task", "weights", "data", "data_revision", "data_sha256", "valid", "test", "text", "text_pair", "tokens"),
        *("image", "label"),
        *("problem_type", "class_weights", "augment", "max_tokens_per_batch", "fit_batch", "packing", "metrics"),
        *("cache_gb", "cache_dtype"),
        *("unlabelled", "target_test", "domain", "target", "source", "select", "source_only"),
    )

    settable: ClassVar[tuple[str, ...]] = (
        *("task", "text", "text_pair", "tokens", "image", "label", "problem_type", "valid", "test"),
        *("max_train_samples", "classes", "ignored", "image_size", "data_sha256"),
    )
    """What can be set for one task, after its source."""

    tasks: list[str] = flag(
        None,
        "the tasks: name=source, where a source is what --data takes; its own settings after commas, such as "
        "stsb=stsb/,label=score (task, text, text_pair, tokens, image, label, problem_type, valid, test, "
        "max_train_samples, classes, ignored, image_size, data_sha256)",
        IN,
        factory=list,
    )
    mixing: str = flag(
        "proportional",
        "how often a task comes: by its rows; uniform, temperature, or annealed",
        HOW,
        choices=("proportional", "uniform", "temperature", "annealed"),
    )
    temperature: float = flag(2.0, "with --mixing temperature: by the T-th root of its rows", HOW, range="(0, inf)")
    weighting: str = flag(
        "none",
        "of the losses: none, or uncertainty (learnt; Kendall et al. 2018)",
        HOW,
        choices=("none", "uncertainty"),
    )
    pcgrad: bool = flag(False, "project conflicts between tasks of one update away (Yu et al. 2020)", HOW)
    adapters: bool = flag(False, "a LoRA adapter for each task over a frozen shared encoder", HOW)
    compare: bool = flag(True, "then train each task alone, as long as here, and say what it gained or lost", OUT)

    def run(self) -> Report | None:
        """Train on all tasks, select on the mean over valid, read each test once, compare, and write the folders.

        Raises:
            UserError: as `Recipe.run`, a setting of one task alone, and tasks that do not read.
        """
        self._refuse()
        clock = Clock()
        with imports():
            from hftl.results.folder import OutputFolder
            from hftl.results.report.table import render
            from hftl.run import push
            from hftl.studies.together import alone as comparison
            from hftl.studies.together import outcome as multitask_outcome
            from hftl.studies.together import prepare as multitask_run
            from hftl.train import progress
        push.check_wanted(self)
        try:
            with progress.quiet():
                run = multitask_run.prepare(self, clock)
                if self.show_rates:
                    run.print_rates()
                    return None
                run.train()
                report, scores = multitask_outcome.measure(run)
                if self.compare:
                    report.tasks = comparison.compare(run, report.tasks, scores)
                multitask_outcome.write(run, report)
        finally:
            OutputFolder(self.output_dir).tidy()
            gc.unfreeze()
        if run.first:
            print(render(report, multitask_outcome.next_commands(run)))
            print(comparison.table(report.tasks))
            push.push_wanted(self, expanded(self.output_dir))
        return report

    def reproducible(self) -> dict[str, Any]:
        """As `Recipe.reproducible`, without what means nothing here."""
        return {name: value for name, value in super().reproducible().items() if name not in self.hidden}

    def _refuse(self) -> None:
        own = self.own(self.task)
        for name in self.hidden:
            if name in own and getattr(self, name) != own[name].default:
                cure = (
                    f"Write it after a task's source: --tasks NAME=SOURCE,{name}=VALUE" if name in self.settable else ""
                )
                raise UserError(f"--{name} is for one task; here there are several. {cure or 'Leave it out'}.")
        for name, why in REFUSED.items():
            if self.training.get(name):
                raise UserError(f"--{name} fits no mixture of tasks: {why}. Leave it out.")
        if self.pcgrad and self.gradient_accumulation_steps < 2:
            raise UserError(
                "--pcgrad compares the tasks of one update, and an update is one micro-batch of one task. "
                "Pass --gradient_accumulation_steps with the number of tasks or more, and smaller micro-batches."
            )
        if self.pcgrad and self.adapters:
            raise UserError("--pcgrad is for weights that tasks share; with --adapters they share none. Drop one.")
