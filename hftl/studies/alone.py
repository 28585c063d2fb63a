"""Train each of several tasks alone as well, and say what the others did for it.

Alone a task has the same model, seed, data, settings and number of micro-batches, and is evaluated as often. The
difference is taken over the same test rows, with a paired bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError
from hftl.settings.fields import OUT, flag
from hftl.studies.study import Study, changed, difference

if TYPE_CHECKING:
    from hftl.results.report.report import Report, TaskRow
    from hftl.run.recipe import Recipe
    from hftl.run.settings import RecipeSettings
    from hftl.tasks.metrics.bootstrap import Score

GAINED, LOST, SAME = "gained", "lost", "no difference"


@dataclass(frozen=True)
class EachAlone(Study):
    """A recipe for several tasks, and each of them alone beside it, in OUTPUT_DIR-alone/TASK.

    Example:
        EachAlone(Recipe(tasks=["sst2=sst2/", "stsb=stsb/"])).run()
    """

    compare: bool = flag(True, "then train each task alone, as long as here, and say what it gained or lost", OUT)

    @property
    def wanted(self) -> bool:
        if not self.recipe.several:
            raise UserError("Expected the tasks to learn. Pass --tasks name=source name=source, such as sst2=data/.")
        return self.compare

    def cells(self, done: Mapping[str, Report]) -> Iterator[tuple[str, Recipe]]:
        from hftl.run import several

        yield "together", self.recipe
        alone: Mapping[str, Any] = several.recipes(self.recipe)
        for row in done["together"].tasks:
            where: dict[str, Any] = {"output_dir": f"{self.recipe.output_dir.rstrip('/')}-alone/{row.task}"}
            where["overwrite"] = self.recipe.overwrite
            yield f"{row.task} alone", changed(alone[row.task], **where | length(alone[row.task], row))

    def judge(self, done: Mapping[str, Report]) -> Report:
        """The report on all tasks, each row with `single`, `difference` (of the test metric) and `verdict`."""
        report = done["together"]
        for i, row in enumerate(report.tasks):
            alone = done[f"{row.task} alone"]
            found = difference(alone.folder, Path(report.folder) / row.folder, row.metric)
            said = verdict(found)
            report.tasks[i] = replace(row, single=alone.test[row.metric], difference=found, verdict=said)
        return report

    def said(self, report: Report) -> str:
        return table(report.tasks)


def length(recipe: RecipeSettings, row: TaskRow) -> dict[str, Any]:
    """As many micro-batches as the task had, and as many evaluations as the whole run was to have."""
    steps = max(1, round(row.steps / recipe.gradient_accumulation_steps))
    if not row.evaluations:
        return {"max_steps": steps}
    return {"max_steps": steps, "eval_strategy": "steps", "eval_steps": max(1, round(steps / row.evaluations))}


def verdict(difference: Score) -> str:
    """Whether the interval of multi less single, of a metric that is better the higher, leaves out zero."""
    return GAINED if difference.low > 0 else LOST if difference.high < 0 else SAME


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
