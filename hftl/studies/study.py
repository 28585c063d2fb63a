"""Run several recipes and judge them together. A run that is finished in its folder is not run again.

So a study that was killed goes on: the same command finds what is done, and resumes what was cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.recipe import Recipe
    from hftl.tasks.metrics.bootstrap import Score


@dataclass(frozen=True)
class Study:
    """Several runs around the one of `recipe`. Fields of a subclass that are made by `flag` are flags of its own."""

    recipe: Recipe

    @property
    def wanted(self) -> bool:
        """Whether there is anything to run beside the recipe."""
        return True

    def cells(self, done: Mapping[str, Report]) -> Iterator[tuple[str, Recipe]]:
        """The runs in their order, each under a name; a later one may depend on the reports of those before it.

        One of them is `recipe`. The others have folders of their own, which nobody else writes to.
        """
        raise NotImplementedError

    def judge(self, done: Mapping[str, Report]) -> Report:
        """The report of `recipe`, with what the others say of it."""
        raise NotImplementedError

    def said(self, report: Report) -> str:
        """What is printed above the closing table."""
        return ""

    def run(self) -> Report | None:
        """Run what is not done yet, judge, and write the report of the recipe anew.

        Raises:
            UserError: as `Recipe.run`.
        """
        if self.recipe.show_rates or not self.wanted:
            return self.recipe.run()
        from accelerate import PartialState

        from hftl.results.folder import OutputFolder
        from hftl.results.report.write import write
        from hftl.run import overall, push

        push.check_wanted(self.recipe)
        if found(self.recipe) is None:  # what is refused is refused before the others have run
            own = self._started(self.recipe)
            OutputFolder(own.output_dir).claim(resume=own.resume, overwrite=own.overwrite)
        done: dict[str, Report] = {}
        for name, recipe in self.cells(done):
            report = found(recipe) or self._started(recipe).run(cell=True)
            if report is None:
                raise UserError(f"Expected a report of the run {name!r} of this study; it made none. Run it alone.")
            done[name] = report
        report = self.judge(done)
        if PartialState().is_main_process:
            write(report, report.folder)
            if words := self.said(report):
                print(words)
            overall.tell(self.recipe, report)
        return report

    def _started(self, recipe: Recipe) -> Recipe:
        """The recipe, told whether to go on from a checkpoint or to begin; of its own folder the user decides."""
        from hftl.results.folder import OutputFolder

        folder = OutputFolder(recipe.output_dir)
        if recipe.output_dir != self.recipe.output_dir:
            cut = folder.checkpoint is not None and not self.recipe.overwrite
            return changed(recipe, resume=cut, overwrite=True)
        begun = folder.checkpoint is not None or (folder.path / "report.json").is_file()
        return recipe if begun else changed(recipe, resume=False)


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with some settings replaced."""
    return type(recipe)(**recipe.settings() | settings)


def found(recipe: Recipe) -> Report | None:
    """The report of a finished cell that was run with these settings; None where there is none, or it is to go."""
    from hftl.paths import expanded
    from hftl.results.report.report import Report
    from hftl.run.prepare import CELL, settings_of

    mark = expanded(recipe.output_dir) / CELL
    if recipe.overwrite or not mark.is_file() or mark.read_text("utf-8") != settings_of(recipe):
        return None
    return Report.from_folder(mark.parent)


def difference(first: str | Path, second: str | Path, metric: str) -> Score:
    """A metric of the second finished cell less that of the first, with its paired 95 % interval over test's rows.

    Raises:
        UserError: they were not tested on the same rows.
    """
    import numpy as np

    from hftl.results.load import metric_of
    from hftl.tasks.metrics import bootstrap

    one, other = (metric_of(Path(folder)) for folder in (first, second))
    if not np.array_equal(one.held()["label"], other.held()["label"]):
        raise UserError(f"The rows of test differ between {first} and {second}. Pass --overwrite to run both again.")
    return bootstrap.difference(one.paired(), other.paired(), metric)
