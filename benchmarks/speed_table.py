"""The tables of benchmarks/speed.py, in Markdown: medians over rounds, ratios within a round, goals."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speed_jobs import JOBS

Runs = dict[str, list[dict[str, Any]]]  # side -> its runs, in the order of the rounds


def by_job(results: list[dict[str, Any]]) -> dict[tuple[str, int], Runs]:
    """Results by job and number of training rows, then by side."""
    groups: dict[tuple[str, int], Runs] = defaultdict(lambda: defaultdict(list))
    for result in sorted(results, key=lambda result: result["round"]):
        groups[result["job"], result["rows"]["train"]][result["side"]].append(result)
    return dict(sorted(groups.items(), key=lambda group: list(JOBS).index(group[0][0])))


def over(runs: Runs, side: str, value: Callable[..., float], *others: str) -> list[float]:
    """A value of a side's run and of the other sides' runs of the same round, for each round that has them all."""
    rounds = [{run["round"]: run for run in runs.get(name, [])} for name in (side, *others)]
    return [value(*(named[turn] for named in rounds)) for turn in rounds[0] if all(turn in named for named in rounds)]


def passes(run: dict[str, Any]) -> float:
    return run["seconds"] / run["pass"]


def start(run: dict[str, Any]) -> float:
    """Seconds from the start of the process to the first step, without imports."""
    return sum(run["startup"].values()) - run["startup"]["imports"]


def slower(other: dict[str, Any], run: dict[str, Any]) -> float:
    return other["seconds"] / run["seconds"]


def fuller(run: dict[str, Any], other: dict[str, Any]) -> float:
    return run["peak_memory"] / other["peak_memory"]


def floor_share(run: dict[str, Any]) -> float:
    """Seconds over those of the floor of training: evaluation is in the first and not in the second."""
    return passes(run) / JOBS[run["job"]].floor


def probing(run: dict[str, Any], tuning: dict[str, Any]) -> float:
    """Passes that the first part of ProbeThenTune takes beyond the one that fills the cache, for each of its epochs."""
    return ((run["seconds"] - tuning["seconds"]) / run["pass"] - 1) / JOBS[run["job"]].probed


def spread(values: list[float], digits: int) -> str:
    """The median, and where there are several the least and the most."""
    shown = f"{statistics.median(values):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def floors(job: str, rows: dict[str, int]) -> str:
    """Passes that nothing spares: of training, and with the evaluations on valid (and on test where they count)."""
    evaluated = rows["validation"] * JOBS[job].floor_evaluating + rows["test"] * JOBS[job].tests
    return f"{JOBS[job].floor:.2f}, {JOBS[job].floor + evaluated / rows['train']:.2f}"


def table(results: list[dict[str, Any]]) -> str:
    """One line a side. Times are medians; accuracies are means over the rounds, which have other seeds."""
    heads = ["job, training rows, rounds", "side", "seconds", "the whole process", "hftl is faster by", "passes"]
    heads += ["floor, with evaluation", "valid", "test", "peak GB", "weights trained"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (job, rows), runs in by_job(results).items():
        for side, made in runs.items():
            mean = {split: statistics.mean(run[split] for run in made) for split in ("valid", "test")}
            cells = [f"{job}, {rows}, {len(made)}", side]
            cells += [spread([run[name] for run in made], 1) for name in ("seconds", "wall")]
            cells += ["" if side == "hftl" else spread(over(runs, side, slower, "hftl"), 2)]
            cells += [spread([passes(run) for run in made], 2), floors(job, made[0]["rows"]) if side == "hftl" else ""]
            cells += [f"{mean['valid']:.3f}", f"{mean['test']:.3f}"]
            cells += [f"{statistics.median(run['peak_memory'] for run in made) / 1e9:.2f}", f"{made[0]['trained']:,}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Goal:
    """A number by round that is wanted `at most` or `at least` so large; in median over the rounds."""

    jobs: tuple[str, ...]
    words: str
    value: Callable[[str, Runs], list[float]]
    how: str
    limit: float


def faster_than(side: str) -> Callable[[str, Runs], list[float]]:
    return lambda job, runs: over(runs, side, slower, "hftl")


def started(side: str) -> Callable[[str, Runs], list[float]]:
    return lambda job, runs: over(runs, side, start)


def points_above_plain(job: str, runs: Runs) -> list[float]:
    """One number, the mean over the rounds: a round's difference is mostly its seed's."""
    found = over(runs, "hftl", lambda run, plain: 100 * (run["test"] - plain["test"]), "plain")
    return [statistics.mean(found)] if found else []


PROBES = ("probe-sst2", "probe32-sst2", "probe-ants", "probe-pacs")
GOALS = (
    Goal(PROBES, "passes", lambda job, runs: over(runs, "hftl", passes), "at most", 1.15),
    Goal(PROBES, "faster than plain", faster_than("plain"), "at least", 20),
    Goal(("last2-sst2",), "of the floor", lambda job, runs: over(runs, "hftl", floor_share), "at most", 1.2),
    Goal(("last2-sst2",), "faster than plain", faster_than("plain"), "at least", 2.5),
    Goal(("full-sst2",), "faster than plain", faster_than("plain"), "at least", 2.2),
    Goal(("full-sst2",), "faster than padded to 128", faster_than("plain, padded to 128"), "at least", 6),
    Goal(("full-sst2",), "points of test accuracy above plain", points_above_plain, "at least", -0.3),
    Goal(("lora-sst2",), "faster than plain", faster_than("plain"), "at least", 2),
    Goal(("lora-sst2",), "of plain's peak memory", lambda job, runs: over(runs, "hftl", fuller, "plain"), "at most", 1),
    Goal(
        ("lpft-sst2",),
        "passes for each probe epoch, beyond the first pass",
        lambda job, runs: over(runs, "hftl", probing, "hftl, Full half as long"),
        "at most",
        0.2,
    ),
    Goal(("again-sst2",), "seconds to the first step, another seed", started("hftl again"), "at most", 3),
    Goal(
        ("again-sst2",), "seconds to the first step, ProbeThenTune", started("hftl again, ProbeThenTune"), "at most", 3
    ),
)
"""Those of the project; start-up times leave out imports."""


def goals(results: list[dict[str, Any]]) -> str:
    """One line a goal: what was wanted, and what was measured (medians over the rounds)."""
    lines = ["| job, training rows | goal | measured | reached |", "|---|---|---|---|"]
    for (job, rows), runs in by_job(results).items():
        for goal in GOALS:
            values = goal.value(job, runs) if job in goal.jobs else []
            if values:
                middle = statistics.median(values)
                reached = middle <= goal.limit if goal.how == "at most" else middle >= goal.limit
                wanted = f"{goal.words}: {goal.how} {goal.limit:g}"
                lines.append(f"| {job}, {rows} | {wanted} | {spread(values, 2)} | {'yes' if reached else 'no'} |")
    return "\n".join(lines)
