"""One run from settings to report: the ten hops of docs/design.md, top to bottom.

Knows the order of the hops and nothing of what happens inside them. Heavy packages are imported when a run starts.
"""

from __future__ import annotations

import functools
import gc
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hftl.run.settings import RecipeSettings
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
            from hftl.run import arguments, part, push, several, start, steps
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
            with several.about(name, recipe):
                parts[name] = part.read(recipe, strategy, args, clock, name)
        if strategy.steps and self.head != "random" and not self.several and not self.show_rates:
            parts[""] = start.solve_head(self, strategy, parts[""], args)
            clock.mark("head")
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

    def run(self, cell: bool = False) -> Report | None:
        """Train, select on valid, read test once, and write the folder.

        Args:
            cell: as one run of a study, which has the last word: nothing is printed at the end, and nothing is pushed.

        Returns:
            The report, whose `folder` holds the model; None with `show_rates`, which only prints.

        Raises:
            UserError: as `prepare`, and a loss that is not finite.
        """
        clock = Clock()
        with imports():
            from hftl.models import anatomy
            from hftl.results.folder import OutputFolder
            from hftl.run import outcome, overall
            from hftl.train import progress
        folder = OutputFolder(self.output_dir)
        with nullcontext() if self.show_rates else folder.locked():
            try:
                with progress.quiet():
                    run = self.prepare(clock)
                    if self.show_rates:
                        if run.first:
                            print(anatomy.render_rates(run.rates))
                        return None
                    run.train()
                    report = outcome.measure(run)
                    run.write(report, cell)
            finally:
                folder.tidy()
                gc.unfreeze()
        if run.first and not cell:
            overall.tell(self, report)
        return report
