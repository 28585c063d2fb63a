"""One run from settings to report: the ten hops of docs/design.md, top to bottom.

Knows the order of the hops and nothing of what happens inside them. Heavy packages are imported when a run starts.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hftl.errors import UserError
from hftl.run.settings import Adaptation, RecipeSettings, task_class
from hftl.train.startup import Clock, imports

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.prepare import Run


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
            import transformers

            from hftl.results.folder import OutputFolder
            from hftl.run import arguments, push, steps
            from hftl.run import prepare as run
        clock.mark("imports")
        push.check_wanted(self)
        strategy = run.strategy_of(self.strategy)
        if not strategy.steps:
            steps.refuse(self, strategy)
        folder = OutputFolder(self.output_dir)
        folder.claim(resume=self.resume, overwrite=self.overwrite, dry=self.show_rates)
        task = self.part(task_class(self.task))
        if not (strategy.steps or task.pooled):
            raise UserError(f"Features are one vector a row, and {task.name} has more. Pass another --strategy.")
        run.check_labels(self, task, strategy)
        scratch = Path(tempfile.gettempdir()) if self.show_rates else folder.checkpoints  # Trainer makes the folder
        args = arguments.training_arguments(self, strategy, scratch)
        with args.main_process_first(desc="reading the data"):
            splits = run.read_data(self, task)
            task.settle(splits)
        clock.mark("data")
        transformers.set_seed(self.seed)
        pretrained = task.build(run.source_of(self), splits.labels)
        splits.checks += pretrained.checks
        clock.mark("model")
        with args.main_process_first(desc="encoding the data"):
            rows = run.encode(task, splits, pretrained.processor, self)
        clock.mark("data")
        if args.process_index == 0:
            run.print_checks(splits, rows, pretrained.processor)
        arguments.suit_machine(self, args, pretrained.model, task.decoded)
        scorer = run.Scorer(task.metric(splits.labels), task.metrics)
        streams = run.streams_of(strategy, task, splits, pretrained.processor)
        domains = run.domains_of(self, task, splits, pretrained.processor, rows, streams.get("unlabelled"))
        trainer = run.make_trainer(self, args, task, splits, pretrained, rows, scorer, streams, domains)
        clock.mark("trainer")
        return run.Run(self, folder, task, splits, pretrained, rows, scorer, trainer, clock, domains)

    def run(self) -> Report | None:
        """Train, select on valid, read test once, and write the folder.

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
            from hftl.run import outcome, push
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
                run.write(report)
        finally:
            OutputFolder(self.output_dir).tidy()
            gc.unfreeze()
        if run.first:
            print(render(report))
            push.push_wanted(self, run.folder.path)
        return report

    def _without_target(self) -> Report | None:
        """The same recipe with the strategy's parts that read no target rows, run into a folder beside."""
        from hftl.results.folder import OutputFolder
        from hftl.run import prepare as run
        from hftl.strategies import Chain

        parts = run.strategy_of(self.strategy).parts
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
