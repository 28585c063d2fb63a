"""Print what a run has come to: the closing table of a terminal, and the commands worth typing next."""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Sequence

from hftl.results.report import verdict, wording
from hftl.results.report.report import Report
from hftl.settings.visible import visible
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.sections import FAULTS, Baseline, Words

COLUMNS = 80
CHANGED = {"--output_dir", "--overwrite", "--resume", "--source_only"}


def own_commands(report: Report) -> list[str]:
    """Commands worth typing now: predict with this folder, and train the other way to compare."""
    if "next" in report.usage:
        return [f"accelerate launch {report.usage['next']} --model {shlex.quote(report.folder)} --data DATA"]
    new = report.usage.get("new", "new.csv")
    predict = f"hftl predict {shlex.quote(report.folder)} --data {new} --output predictions.csv"
    script = report.usage.get("script", "recipe.py")
    if found := cure(report):
        without, flags = found
        again = f"{_relaunch(report.command, script, without)} {flags}".rstrip()
        return [f"{again} --output_dir runs/again", predict]
    strategy, output = ("LinearProbe", "runs/probe") if report.adapter else ("LoRA(r=16)", "runs/lora")
    start = _relaunch(report.command, script, {"--strategy"})
    return [predict, f'{start} --strategy "{strategy}" --output_dir {output}']


def cure(report: Report) -> tuple[set[str], str] | None:
    """Flags to leave out and to add where a model has learned little: a rate, weights of classes, or more epochs.

    A rate is too high where the model is surer than chance, and wrong; one that was given makes room for the
    strategy's own. None where nothing is wrong.
    """
    said, settings = faults(report), report.settings
    little = any("collapsed" in one for one in said) or not all(
        verdict.beats(report, one) for one in report.of(Baseline)
    )
    if not (said or little):
        return None
    if not report.history:
        return {"--strategy"}, "--strategy Full"
    rate, epochs = settings.get("learning_rate"), settings.get("num_train_epochs")
    given, chance = "--learning_rate" in report.command, math.log(max(len(report.labels), 2))
    last = next((row["eval_loss"] for row in reversed(report.history) if "eval_loss" in row), None)
    loss = report.test["log_loss"].value if "log_loss" in report.test else last if report.labels else None
    if little and rate and ((wording.known(loss) and loss > 1.05 * chance) or (given and not 1e-6 < rate < 5e-4)):
        return {"--learning_rate"}, "" if given else f"--learning_rate {rate / 10 if rate < 0.1 else 5e-5:g}"
    if not little and "class_weights" in settings and not settings["class_weights"]:
        return {"--class_weights"}, "--class_weights balanced"
    steps = settings.get("max_steps") or 0
    if steps > 0:
        return {"--max_steps"}, f"--max_steps {4 * steps}"
    return ({"--num_train_epochs"}, f"--num_train_epochs {4 * epochs:g}") if epochs else None


def render(report: Report, next_commands: Sequence[str] | None = None) -> str:
    """The closing table for the terminal, without a final newline. `next_commands` replaces its own."""
    lines = _wrapped("  ".join(map(visible, (report.task, report.model, report.strategy))))
    lines += _scores(report)
    for trivial in report.of(Baseline) if report.test else []:
        name = f"{visible(trivial.metric or report.headline)} {wording.number(trivial.value)}"
        end = "." if verdict.beats(report, trivial) else ": this model does not beat it."
        lines += _wrapped(f"{visible(trivial.title)} would give {name} on test{end}")
    lines += [line for sentence in faults(report) for line in _wrapped(f"warning: {visible(sentence)}")]
    lines += [line for sentence in verdict.adapted(report) for line in _wrapped(visible(sentence))]
    speed, total, trained = map(wording.count, (report.examples_per_second, report.total, report.trainable))
    lines += _wrapped(
        f"trained in {wording.duration(report.seconds)}, {speed} examples/s, {total} "
        f"parameters of which {trained} trained ({wording.share(report.trainable, report.total)}), "
        f"peak memory {wording.size(report.peak_memory)}{' a process' if report.processes > 1 else ''}"
    )
    if report.startup:
        whole = wording.duration(sum(report.startup.values()))
        lines += _wrapped(f"started in {whole}: {visible(wording.stages(report.startup))}")
    lines += [line for sentence in report.unsafe for line in _wrapped(f"unsafe       {visible(sentence)}")]
    lines += _wrapped(f"folder       {visible(report.folder)}   (report.html, model card, recipe.yaml)", 13)
    commands = own_commands(report) if next_commands is None else next_commands
    for head, command in zip(["try next", *[""] * len(commands)], commands, strict=False):
        first, *more = _broken(visible(command))
        lines += [f"{head.ljust(13)}{first}", *(" " * 15 + part for part in more)]
    return "\n".join(line.rstrip() for line in lines)


def _scores(report: Report) -> list[str]:
    """A line for each metric, a column for each split, whose n stands in its head; a metric of fewer rows says so."""
    names = report.metrics()
    splits = {"valid": report.valid, "test": report.test} | ({"target": report.target} if report.target else {})
    heads = [visible(name) for name in names]
    sizes = {split: max((score.n for score in of.values()), default=0) for split, of in splits.items()}
    cells = [[_cell(of.get(name), sizes[split]) for split, of in splits.items()] for name in names]
    first = max([12, *map(len, heads)]) + 1
    wide = max([21, *(len(cell) for row in cells for cell in row)]) + 2
    tops = [f"{split} (n={sizes[split]:,})" if sizes[split] else split for split in splits]
    fit = max((COLUMNS - first) // wide, 1)  # a third split stands below where there is no room beside
    lines = []
    for start in range(0, len(tops) if names else 0, fit):
        rows = zip(["", *heads], [row[start : start + fit] for row in [tops, *cells]], strict=True)
        lines += [head.ljust(first) + "".join(cell.ljust(wide) for cell in row) for head, row in rows]
    return lines


def _cell(score: Score | None, rows: int) -> str:
    return wording.score(score) + (f" n={score.n:,}" if score is not None and score.n != rows else "")


def faults(report: Report) -> list[str]:
    """What a result that looks like one may hide, in sentences."""
    return [one for words in report.of(Words) if words.heading == FAULTS for one in words.sentences]


def _wrapped(sentence: str, indent: int = 2) -> list[str]:
    """A sentence in lines of 80 columns; no word is broken."""
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    lines = textwrap.wrap(sentence.replace(" %", "\0%"), COLUMNS, **options)  # type: ignore[arg-type]
    return [line.replace("\0", " ") for line in lines] or [""]


def _broken(command: str) -> list[str]:
    """A command in lines that a shell reads as one, broken between flags alone."""
    lines = [""]
    for flag in re.split(r" (?=--)", command):
        longer = f"{lines[-1]} {flag}".lstrip()
        quoted = any(lines[-1].count(mark) % 2 for mark in "'\"")
        if quoted or not lines[-1] or len(longer) <= COLUMNS - 17:
            lines[-1] = longer
        else:
            lines.append(flag)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _relaunch(command: str, script: str, changed: set[str]) -> str:
    """The command to start from for another run like this one: less the flags that would be changed.

    A command that no shell could run again (a Python session's, a test's) gives the plain launch of the script.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[:1] == [script.split("/")[-1]]:
        words[:1] = ["accelerate", "launch", script]
    if words[:1] not in (["accelerate"], ["torchrun"], ["python"], ["hftl"]):
        return f"accelerate launch {script}"
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.split("=")[0] in CHANGED | changed
        if not dropping:
            kept.append(word)
        elif "=" in word:
            dropping = False
    return shlex.join(kept)
