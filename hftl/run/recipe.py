"""One run from settings to report: the ten hops of docs/design.md, top to bottom.

Knows the order of the hops and nothing of what happens inside them. Heavy packages are imported when a run starts.
"""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hftl.errors import UserError
from hftl.run.settings import Adaptation, RecipeSettings
from hftl.train.startup import Clock, imports

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.prepare import Run
    from hftl.train.trainer import Trainer


class Recipe(RecipeSettings):
    """Everything one run needs, as flat data: the run's and the task's settings, and any TrainingArguments by name.

    Example:
        Recipe(data="reviews.csv", model="bert-base-uncased", strategy="LoRA(r=16)", learning_rate=2e-4).run()

    Raises:
        UserError: a setting of another task, or a name that nobody has.
    """

    def prepare(self, clock: Clock | None = None) -> Run:
        """Read the data, load the model and apply the strategy: everything up to training.

        Args:
            clock: to be marked at each stage, where the start began before this call.

        Raises:
            UserError: anything about the settings, the data or the model that a person has to change.
        """
        clock = clock or Clock()
        with imports():
            from hftl.results.folder import OutputFolder
            from hftl.run import arguments, part, push, several, steps
            from hftl.run import prepare as run
            from hftl.train import memory
        clock.mark("imports")
        push.check_wanted(self)
        alone = several.recipes(self)
        strategy = steps.strategy_of(next(iter(alone.values())).strategy)
        if not strategy.steps:
            steps.refuse(self, strategy)
        folder = OutputFolder(self.output_dir)
        folder.claim(resume=self.resume, overwrite=self.overwrite, dry=self.show_rates)
        scratch = Path(tempfile.gettempdir()) if self.show_rates else folder.checkpoints  # Trainer makes the folder
        args = arguments.training_arguments(self, strategy, scratch)
        parts = {}
        for name, recipe in alone.items():
            with several.about(name) if name else nullcontext():
                parts[name] = part.read(recipe, strategy, args, clock, name)
        if self.several:
            trainer: Trainer = several.make_trainer(self, args, strategy, parts)
            clock.mark("trainer")
            return run.Run(self, folder, parts, trainer, clock)
        streams = run.streams_of(strategy, parts[""])
        trainer = run.make_trainer(self, args, strategy, parts[""], streams)
        domains = run.domains_of(self, parts[""], streams.get("unlabelled"))
        if domains is not None:
            trainer.further = functools.partial(domains.criteria, trainer)
        if self.fit_batch and not self.show_rates:
            memory.fit_batch(trainer)
        clock.mark("trainer")
        return run.Run(self, folder, parts, trainer, clock, domains)

    def run(self, judge: Callable[[Run, Report], None] | None = None) -> Report | None:
        """Train, select on valid, read test once, and write the folder.

        Args:
            judge: adds to the report of the finished run what other runs say of it, before it is written.

        Returns:
            The report, whose `folder` holds the model; None with `show_rates`, which only prints.

        Raises:
            UserError: as `prepare`, and a loss that is not finite.
        """
        clock = Clock()
        with imports():
            from hftl.models import anatomy
            from hftl.results.folder import OutputFolder
            from hftl.results.report.table import render
            from hftl.run import outcome, overall, push
            from hftl.train import progress
        beside = self._without_target() if self.part(Adaptation).source_only and not self.show_rates else None
        try:
            with progress.quiet():
                run = self.prepare(clock)
                if self.show_rates:
                    if run.first:
                        print(anatomy.render_rates(run.rates))
                    return None
                run.train()
                report = outcome.measure(run)
                if beside is not None and report.adaptation is not None:
                    report.adaptation.source_only = outcome.compared(report, beside)
                if judge is not None:
                    judge(run, report)
                run.write(report)
        finally:
            OutputFolder(self.output_dir).tidy()
            gc.unfreeze()
        if run.first:
            print(render(report, overall.next_commands(run)))
            push.push_wanted(self, run.folder.path)
        return report

    def _without_target(self) -> Report | None:
        """The same recipe with the strategy's parts that read no target rows, run into a folder beside."""
        from hftl.results.folder import OutputFolder
        from hftl.run import steps
        from hftl.strategies import Chain

        parts = steps.strategy_of(self.strategy).parts
        kept = tuple(part for part in parts if not part.streams)
        if len(kept) == len(parts):
            raise UserError("--source_only compares with training without the target, and --strategy reads none of it.")
        OutputFolder(self.output_dir).claim(resume=self.resume, overwrite=self.overwrite)
        folder = f"{self.output_dir.rstrip('/')}-source-only"
        changed = {
            "strategy": Chain(kept) if kept else "Full",
            "output_dir": folder,
            "source_only": False,
            "push_to_hub": False,
        }
        return type(self)(**self.settings() | changed | {"overwrite": True, "resume": False}).run()
