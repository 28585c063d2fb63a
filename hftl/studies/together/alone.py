"""Each task trained alone beside the run on all of them: what it gained or lost. Knows a finished run on several tasks.

Alone a task has the same model, seed, data, settings and number of micro-batches, and is evaluated as often. The
difference is taken over the same test rows, with a paired bootstrap interval.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from hftl.results.report import wording
from hftl.results.report.report import TaskRow
from hftl.run import outcome
from hftl.run import prepare as single
from hftl.run.arguments import suit_machine, training_arguments
from hftl.run.scorer import Scorer
from hftl.settings.visible import visible
from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.bootstrap import Score

if TYPE_CHECKING:
    from hftl.run.recipe import Recipe
    from hftl.studies.together.prepare import MultiRun
    from hftl.tasks.metrics.accumulator import Accumulator

GAINED, LOST, SAME = "gained", "lost", "no difference"


def compare(run: MultiRun, rows: list[TaskRow], metrics: dict[str, Accumulator]) -> list[TaskRow]:
    """The rows of the report with `single`, `difference` (of the test metric) and `verdict` for each task.

    Args:
        metrics: task -> its metric, holding the test rows as the shared model sees them.
    """
    made = []
    for row in rows:
        if run.first:
            print(f"{row.task} alone, {row.steps:,} micro-batches")
        alone, score = _alone(run, row.task, row.steps)
        found = bootstrap.difference(alone.paired(), metrics[row.task].paired(), row.metric)
        made.append(replace(row, single=score, difference=found, verdict=verdict(found)))
    return made


def verdict(difference: Score) -> str:
    """Whether the interval of multi less single, of a metric that is better the higher, leaves out zero."""
    return GAINED if difference.low > 0 else LOST if difference.high < 0 else SAME


def _alone(run: MultiRun, name: str, batches: int) -> tuple[Accumulator, Score]:
    """Train one task alone for as many micro-batches; its metric, holding the test rows, and the headline score."""
    part, recipe = run.parts[name], run.alone[name]
    args = _arguments(run, recipe, batches)
    rows = {split: given.rows for split, given in part.rows.items()}
    transformers.set_seed(recipe.seed)
    pretrained = part.task.build(single.source_of(recipe), part.splits.labels)
    suit_machine(recipe, args, pretrained.model, part.task.decoded)
    scorer = Scorer(part.task.metric(part.splits.labels))
    trainer = single.make_trainer(recipe, args, part.task, part.splits, pretrained, rows, scorer)
    own = single.Run(recipe, part.folder, part.task, part.splits, pretrained, rows, scorer, trainer, part.clock)
    own.train()
    scores = outcome.measured(own, "test")
    if run.first:
        shutil.rmtree(recipe.output_dir, ignore_errors=True)
    return scorer.metric, scores[scorer.headline]


def _arguments(run: MultiRun, recipe: Recipe, batches: int) -> transformers.TrainingArguments:
    """As many micro-batches as the task had, and as many evaluations as the whole run was to have."""
    args = training_arguments(recipe, single.strategy_of(recipe.strategy), Path(recipe.output_dir))
    args.max_steps = max(1, round(batches / args.gradient_accumulation_steps))
    if args.eval_strategy != "no":
        plan, state = run.trainer.plan, run.trainer.state
        by_steps = run.trainer.args.eval_strategy == transformers.IntervalStrategy.STEPS
        times = state.max_steps / state.eval_steps if by_steps else math.ceil(plan.steps / plan.epoch)
        args.eval_strategy = transformers.IntervalStrategy.STEPS
        args.eval_steps = max(1, round(args.max_steps / max(times, 1)))
    return args


def table(rows: list[TaskRow]) -> str:
    """What each task came to, for the terminal: one line a task."""
    if not any(row.single for row in rows):
        return ""
    cells = [["task", "metric", "alone", "together", "difference", ""]]
    for row in rows:
        scores = map(wording.score, (row.single, row.multi, row.difference))
        cells.append([visible(row.task), row.metric, *scores, row.verdict])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, "Brackets hold 95 % intervals; that of the difference is paired over the test rows."])
