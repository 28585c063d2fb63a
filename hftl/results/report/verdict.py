"""What a report's numbers say and what they do not, in sentences. Knows the report's fields and no file format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hftl.results.report import wording
from hftl.settings.visible import visible
from hftl.tasks.metrics.names import metric_name
from hftl.tasks.sections import LIMITS, Baseline, Words

if TYPE_CHECKING:
    from hftl.results.report.report import Report


SAYS = {"helped": "helped", "hurt": "hurt", "no clear difference": "made no clear difference"}


def valid_chose(report: Report) -> bool:
    """Whether the checkpoint was chosen on valid, which therefore flatters it."""
    return bool(report.valid) and (report.adaptation is None or report.adaptation.select == "source")


def verdict(report: Report) -> str:
    """The result in words: headline metric on test with interval and n, valid beside it, and the trivial baseline.

    A labelled target domain comes first: it is what the run is for.
    """
    target, test, valid = (split.get(report.headline) for split in (report.target, report.test, report.valid))
    if test is None and valid is None:
        return "This run was not evaluated."
    said = []
    for split, score in (("the target", target), ("test", test), ("valid", valid)):
        if score is not None:
            between = wording.interval(score.low, score.high, "95 % interval {} to {}, ")
            said.append(f"{wording.number(score.value)} on {split} ({between}n = {score.n:,})")
    chose = valid is not None and test is not None and valid_chose(report)
    sentence = f"{metric_name(report.headline)} {'; '.join(said)}{', which chose the checkpoint' if chose else ''}."
    for trivial in report.of(Baseline):
        if test is None:
            break
        where = "" if target is None else " on test"
        end = ", which the interval does not exclude." if not beats(report, trivial, surely=True) else "."
        end = end if beats(report, trivial) else ", which this model does not beat."
        name = metric_name(trivial.metric) if trivial.metric else ""
        named = f"{name[0].lower()}{name[1:]} " if name else ""
        sentence += f" {trivial.title} would give {named}{wording.number(trivial.value)}{where}{end}"
    return sentence + _together(report)


def beats(report: Report, trivial: Baseline, surely: bool = False) -> bool:
    """Whether the model is better on test than without learning; `surely`: its whole interval is, where it has one."""
    metric = trivial.metric or report.headline
    if (score := report.test.get(metric)) is None:
        return True
    less, value = metric in report.lower, score.value
    if surely and wording.known(score.low):
        value = score.high if less else score.low
    return value < trivial.value if less else value > trivial.value


def _together(report: Report) -> str:
    """Which tasks were better, and which worse, than when each was trained alone; nothing where that was not tried."""
    if not any(row.verdict for row in report.tasks):
        return ""
    said = []
    for word in ("gained", "lost"):
        names = [visible(row.task) for row in report.tasks if row.verdict == word]
        said.append(f"{', '.join(names) or 'none'} {word}")
    return f" Beside each task trained alone, {' and '.join(said)}."


def adapted(report: Report) -> list[str]:
    """What a run with a target domain shows of it, in sentences; [] without one."""
    about, name = report.adaptation, metric_name(report.headline)
    if about is None:
        return []
    how = {"source": "valid, of the source", "oracle": "labels of the target"}.get(about.select, about.select)
    said = [f"The checkpoint was chosen by {how}."]
    before, after = about.distance.get("before"), about.distance.get("after")
    if wording.known(before) and wording.known(after):
        said.append(f"Proxy A-distance of the domains: {before:.2f} before, {after:.2f} after.")
    if about.oracle and about.chosen and about.select != "oracle":
        step, value = about.oracle["step"], wording.number(about.oracle["oracle"])
        said.append(f"Target labels would have chosen step {step} ({name} {value} on target; not used).")
    if plain := about.source_only:
        score = wording.score(plain.scores[plain.on])
        said.append(f"Adapting {SAYS[plain.verdict]}: without the target's rows {name} on {plain.on} is {score}.")
        if plain.verdict == "hurt":
            said.append(f"Use {plain.folder}, or another strategy.")
    return said


def limits(report: Report) -> list[str]:
    """What these numbers do not show, in sentences."""
    score = report.test.get(report.headline) or report.valid.get(report.headline)
    said = []
    if score is not None:
        rows = f"{score.n:,} {report.unit}{'' if score.n == 1 else 's'}"
        said.append(
            f"The numbers come from one run (seed {report.seed}). The intervals are bootstrap 95 % intervals over "
            f"{rows}: they show how much the choice of rows matters, not how much another seed would change."
        )
    if not report.test:
        said.append("There is no test result; the valid result chose the checkpoint and is therefore too high.")
    said.append("The result holds for rows like those it was tested on. Other sources, times or languages were not.")
    return said + [one for words in report.of(Words) if words.heading == LIMITS for one in words.sentences]
