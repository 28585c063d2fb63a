"""Train each of several tasks alone as well, and say what the others did for it. Knows a finished run on several tasks.

Alone a task has the same model, seed, data, settings and number of micro-batches, and is evaluated as often. The
difference is taken over the same test rows, with a paired bootstrap interval.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError
from hftl.settings.fields import OUT, flag

if TYPE_CHECKING:
    import transformers

    from hftl.results.report.report import Report, TaskRow
    from hftl.run.prepare import Run
    from hftl.run.recipe import Recipe
    from hftl.run.settings import RecipeSettings
    from hftl.tasks.metrics.accumulator import Accumulator
    from hftl.tasks.metrics.bootstrap import Score

GAINED, LOST, SAME = "gained", "lost", "no difference"


@dataclass(frozen=True)
class EachAlone:
    """A recipe for several tasks, and each of them alone beside it.

    Example:
        EachAlone(Recipe(tasks=["sst2=sst2/", "stsb=stsb/"])).run()
    """

    recipe: Recipe
    compare: bool = flag(True, "then train each task alone, as long as here, and say what it gained or lost", OUT)

    def run(self) -> Report | None:
        """Run the recipe, then each task alone, whose scores stand in the rows of the report.

        Raises:
            UserError: as `Recipe.run`, and there are no tasks.
        """
        if not self.recipe.several:
            raise UserError("Expected the tasks to learn. Pass --tasks name=source name=source, such as sst2=data/.")
        return self.recipe.run(judge if self.compare else None)


def judge(run: Run, report: Report) -> None:
    """Give each row of the report on all tasks `single`, `difference` (of the test metric) and `verdict`."""
    from hftl.tasks.metrics import bootstrap

    for i, row in enumerate(report.tasks):
        if run.first:
            print(f"{row.task} alone, {row.steps:,} micro-batches")
        alone, score = _alone(run, row.task, row.steps)
        together = run.parts[row.task].scorer.metric  # holds test
        found = bootstrap.difference(alone.paired(), together.paired(), row.metric)
        report.tasks[i] = replace(row, single=score, difference=found, verdict=verdict(found))
    if run.first:
        print(table(report.tasks))


def verdict(difference: Score) -> str:
    """Whether the interval of multi less single, of a metric that is better the higher, leaves out zero."""
    return GAINED if difference.low > 0 else LOST if difference.high < 0 else SAME


def _alone(run: Run, name: str, batches: int) -> tuple[Accumulator, Score]:
    """Train one task alone for as many micro-batches; its metric, holding the test rows, and the headline score."""
    import transformers

    from hftl.results.folder import OutputFolder
    from hftl.run import outcome, prepare
    from hftl.run.part import source_of
    from hftl.run.scorer import Scorer
    from hftl.run.steps import strategy_of

    part, recipe = run.parts[name], run.parts[name].recipe
    strategy = strategy_of(recipe.strategy)
    args = _arguments(run, recipe, batches)
    transformers.set_seed(recipe.seed)
    alone = replace(
        part,
        pretrained=part.task.build(source_of(recipe), part.splits.labels),
        rows={split: given.rows for split, given in part.rows.items()},
        scorer=Scorer(part.task.metric(part.splits.labels)),
    )
    trainer = prepare.make_trainer(recipe, args, strategy, alone)
    own = prepare.Run(recipe, OutputFolder(recipe.output_dir), {"": alone}, trainer, run.clock)
    own.train()
    scores = outcome.measured(own, alone, "test")
    if run.first:
        shutil.rmtree(recipe.output_dir, ignore_errors=True)
    return alone.scorer.metric, scores[alone.scorer.headline]


def _arguments(run: Run, recipe: RecipeSettings, batches: int) -> transformers.TrainingArguments:
    """As many micro-batches as the task had, and as many evaluations as the whole run was to have."""
    from transformers import IntervalStrategy

    from hftl.run.arguments import training_arguments
    from hftl.run.steps import strategy_of

    args = training_arguments(recipe, strategy_of(recipe.strategy), Path(recipe.output_dir))
    args.max_steps = max(1, round(batches / args.gradient_accumulation_steps))
    if args.eval_strategy != "no":
        trainer: Any = run.trainer
        by_steps = trainer.args.eval_strategy == IntervalStrategy.STEPS
        state, plan = trainer.state, trainer.plan
        times = state.max_steps / state.eval_steps if by_steps else math.ceil(plan.steps / plan.epoch)
        args.eval_strategy = IntervalStrategy.STEPS
        args.eval_steps = max(1, round(args.max_steps / max(times, 1)))
    return args


def table(rows: list[TaskRow]) -> str:
    """What each task came to, for the terminal: one line a task."""
    from hftl.results.report import wording
    from hftl.settings.visible import visible

    cells = [["task", "metric", "alone", "together", "difference", ""]]
    for row in rows:
        scores = map(wording.score, (row.single, row.multi, row.difference))
        cells.append([visible(row.task), row.metric, *scores, row.verdict])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, "Brackets hold 95 % intervals; that of the difference is paired over the test rows."])
