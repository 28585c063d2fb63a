"""What a report's numbers say and what they do not, in sentences. Knows the report's fields and no file format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hftl.results.report import wording

if TYPE_CHECKING:
    from hftl.results.report.report import Report


UNITS = {"masked_tokens": "masked token", "image_segmentation": "image"}
"""What n counts, where it is no row."""
SAYS = {"helped": "helped", "hurt": "hurt", "no clear difference": "made no clear difference"}


def majority(report: Report) -> float | None:
    """Accuracy on test of always answering the most frequent class there; None where there is no confusion."""
    rows = [sum(row) for row in report.confusion]
    return max(rows) / sum(rows) if sum(rows) else None


def trivial_score(report: Report) -> float | None:
    """The headline metric on test of always answering the most frequent class there; None where it is not known.

    Of masks its IoU is its share of the pixels, and that of every other class 0.
    """
    share, classes = majority(report), sum(any(row) for row in report.confusion)
    if share is None or report.headline not in ("accuracy", "mean_iou"):
        return None
    return share if report.headline == "accuracy" else share / classes


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
    sentence = f"{wording.metric_name(report.headline)} {'; '.join(said)}"
    chose = valid is not None and test is not None and report.adaptation.get("select", "source") == "source"
    sentence += ", which chose the checkpoint." if chose else "."
    trivial = trivial_score(report)
    if test is not None and trivial is not None:
        where = "" if target is None else " on test"
        sentence += f" Always answering the most frequent class would give {trivial:.3f}{where}"
        reached = wording.known(test.low) and test.low <= trivial
        sentence += ", which the interval does not exclude." if reached else "."
    return sentence + _together(report)


def _together(report: Report) -> str:
    """Which tasks were better, and which worse, than when each was trained alone; nothing where that was not tried."""
    if not report.tasks or "verdict" not in report.tasks[0]:
        return ""
    said = []
    for word in ("gained", "lost"):
        names = [wording.visible(row["task"]) for row in report.tasks if row["verdict"] == word]
        said.append(f"{', '.join(names) or 'none'} {word}")
    return f" Beside each task trained alone, {' and '.join(said)}."


def adapted(report: Report) -> list[str]:
    """What a run with a target domain shows of it, in sentences; [] without one."""
    about, name = report.adaptation, wording.metric_name(report.headline)
    if not about:
        return []
    how = {"source": "valid, of the source", "oracle": "labels of the target"}.get(about["select"], about["select"])
    said = [f"The checkpoint was chosen by {how}."]
    far = about["distance"]
    if wording.known(far.get("after")) and wording.known(far.get("before")):
        said.append(f"Proxy A-distance of the domains: {far['before']:.2f} before, {far['after']:.2f} after.")
    chosen, oracle = about.get("chosen"), about.get("oracle")
    if oracle and chosen and about["select"] != "oracle":
        value = wording.number(oracle["oracle"])
        said.append(f"Target labels would have chosen step {oracle['step']} ({name} {value} on target; not used).")
    if plain := about.get("source_only"):
        score = plain["scores"][plain["on"]]
        said.append(
            f"Adapting {SAYS[plain['verdict']]}: without the target's rows {name} on {plain['on']} is "
            f"{wording.number(_of(score, 'value'))} {wording.interval(_of(score, 'low'), _of(score, 'high'))}."
        )
        if plain["verdict"] == "hurt":
            said.append(f"Use {plain['folder']}, or another strategy.")
    return said


def _of(score: Any, name: str) -> float:
    return score[name] if isinstance(score, dict) else getattr(score, name)


def limits(report: Report) -> list[str]:
    """What these numbers do not show, in sentences."""
    score = report.test.get(report.headline) or report.valid.get(report.headline)
    said = []
    if score is not None:
        unit = UNITS.get(report.problem_type, "row")
        rows = f"{score.n:,} {unit}{'' if score.n == 1 else 's'}"
        said.append(
            f"The numbers come from one run (seed {report.seed}). The intervals are bootstrap 95 % intervals over "
            f"{rows}: they show how much the choice of rows matters, not how much another seed would change."
        )
    if not report.test:
        said.append("There is no test result; the valid result chose the checkpoint and is therefore too high.")
    said.append("The result holds for rows like those it was tested on. Other sources, times or languages were not.")
    if report.problem_type == "single_label_classification":
        said.append("Every input gets one of the labels above, also one that fits none of them.")
    weak = _weakest(report)
    return [*said, weak] if weak else said


def _weakest(report: Report) -> str:
    """One sentence on the class with the lowest recall on test."""
    rows = [(row[i] / sum(row), sum(row), i) for i, row in enumerate(report.confusion) if sum(row)]
    if len(rows) < 2 or len(report.labels) != len(report.confusion):
        return ""
    recall, n, i = min(rows)
    return (
        f"The class found least often on test is “{wording.cut(report.labels[i], 80)}”: recall {recall:.3f}, n = {n:,}."
    )
