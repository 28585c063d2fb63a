"""The report on all tasks of a run, made from the reports on each. Knows a Run whose parts are measured."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftl.paths import expanded
from hftl.results.report.report import Report, TaskRow
from hftl.results.report.table import render
from hftl.run.push import push_wanted
from hftl.run.steps import strategy_of
from hftl.settings import spec
from hftl.tasks.metrics.bootstrap import Score
from hftl.train.several import MEAN

if TYPE_CHECKING:
    from hftl.run.prepare import Run
    from hftl.run.settings import RecipeSettings


def overall(run: Run) -> Report:
    """What the tasks have come to together: the mean of their headline metrics, and a row for each."""
    trainer: Any = run.trainer
    plan, reports, first = trainer.plan, run.reports, run.reports[next(iter(run.parts))]
    counts, args, state = plan.counts(), trainer.args, trainer.state
    by_steps = args.eval_strategy == "steps"
    evaluations = state.max_steps / state.eval_steps if by_steps else math.ceil(plan.steps / plan.epoch)
    evaluations = 0 if args.eval_strategy == "no" else evaluations
    rows = [
        TaskRow(
            task=name,
            metric=report.headline,
            steps=int(counts[i]),
            share=float(counts[i] / plan.steps),
            folder=name,
            multi=report.test[report.headline],
            evaluations=evaluations,
        )
        for i, (name, report) in enumerate(reports.items())
    ]
    seen = trainer.state.global_step * trainer.args.gradient_accumulation_steps * plan.micro
    return replace(
        first,
        task="multi-task",
        usage={},
        labels=[],
        headline=MEAN,
        valid=_means({name: report.valid[report.headline] for name, report in reports.items()}, reports),
        test=_means({name: report.test[report.headline] for name, report in reports.items()}, reports),
        data=_data(run),
        checks=[replace(c, sentence=f"{n}: {c.sentence}") for n, r in reports.items() for c in r.checks],
        strategy=spec.spell(strategy_of(run.part.recipe.strategy)),
        examples_per_second=seen / max(first.seconds, 1e-9),
        unit="row",
        classes={},
        sections=[],
        adapter=False,
        tasks=rows,
    )


def _means(scores: dict[str, Score], reports: dict[str, Report]) -> dict[str, Score]:
    mean = sum(score.value for score in scores.values()) / len(scores)
    whole = Score(mean, math.nan, math.nan, sum(score.n for score in scores.values()))
    return {MEAN: whole} | {f"{name}_{reports[name].headline}": score for name, score in scores.items()}


def _data(run: Run) -> dict[str, Any]:
    notes = [f"{name}: {note}" for name, part in run.parts.items() for note in part.splits.notes]
    learnt = [m.log_variances.tolist() for m in run.trainer.model.modules() if hasattr(m, "log_variances")]
    if learnt:
        told = zip(run.parts, learnt[-1], strict=True)
        notes += [f"{name}: learnt log-variance {value:.3f}" for name, value in told]
    splits = ("train", "valid", "test")
    return {
        "source": ", ".join(f"{name} = {part.splits.source}" for name, part in run.parts.items()),
        "rows": {split: sum(len(part.rows[split]) for part in run.parts.values()) for split in splits},
        "fingerprints": {},
        "columns": {},
        "notes": notes,
    }


def tell(recipe: RecipeSettings, report: Report) -> None:
    """Print the closing table of a finished run, and push its folder where that is asked for."""
    print(render(report, next_commands(report)))
    push_wanted(recipe, expanded(recipe.output_dir))


def next_commands(report: Report) -> list[str] | None:
    """What is worth typing now: predict with the folders of the first two tasks. None where there is one task."""
    if not report.tasks:
        return None
    told = []
    for row in report.tasks[:2]:
        folder = Path(report.folder) / row.folder
        new = Report.from_folder(folder).usage.get("new", "new.csv")
        told.append(f"hftl predict {shlex.quote(str(folder))} --data {new} --output {row.task}.csv")
    return told
