"""Say whether adapting to a target domain helped: the same recipe without what reads the target's rows, beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hftl.errors import UserError
from hftl.settings.fields import HOW, flag
from hftl.studies.study import Study, changed

if TYPE_CHECKING:
    from hftl.results.report.report import Report, SourceOnly
    from hftl.run.recipe import Recipe


@dataclass(frozen=True)
class Adapting(Study):
    """A recipe that adapts to a target domain, and what it would be without.

    Example:
        Adapting(Recipe(data="books.csv", unlabelled="films.csv", strategy="DANN"), source_only=True).run()
    """

    source_only: bool = flag(
        False, "also train without what reads the target, first, and say whether adapting helped", HOW
    )

    @property
    def wanted(self) -> bool:
        return self.source_only

    def cells(self, done: Mapping[str, Report]) -> Iterator[tuple[str, Recipe]]:
        from hftl.run.steps import strategy_of
        from hftl.strategies import Chain

        parts = strategy_of(self.recipe.strategy).parts
        kept = tuple(part for part in parts if not part.streams)
        if len(kept) == len(parts):
            raise UserError("--source_only compares with training without the target, and --strategy reads none of it.")
        plain = {"strategy": Chain(kept) if kept else "Full", "push_to_hub": False}
        folder = f"{self.recipe.output_dir.rstrip('/')}-source-only"
        yield "source only", changed(self.recipe, output_dir=folder, **plain)
        yield "adapted", self.recipe

    def judge(self, done: Mapping[str, Report]) -> Report:
        report, plain = done["adapted"], done["source only"]
        if report.adaptation is not None:
            report.adaptation.source_only = compared(report, plain)
        return report


def compared(report: Report, plain: Report) -> SourceOnly:
    """A run that was adapted beside one that was not: the headline metric of both on target and test, and what it says.

    "helped" and "hurt" mean that the target's value lies outside the other's 95 % interval; else "no clear difference".
    """
    from hftl.results.report.report import SourceOnly

    where = "target" if report.target else "test"
    own, theirs = getattr(report, where)[report.headline], getattr(plain, where)[report.headline]
    better, worse = own.value > theirs.high, own.value < theirs.low
    if report.headline in report.lower:
        better, worse = worse, better
    verdict = "helped" if better else "hurt" if worse else "no clear difference"
    scores = {name: getattr(plain, name)[report.headline] for name in ("target", "test") if getattr(plain, name)}
    return SourceOnly(plain.strategy, plain.folder, where, verdict, scores)
