"""Print what a run has come to: the closing table of a terminal, and the commands worth typing next."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence

from hftl.results.report import verdict, wording
from hftl.results.report.report import Report
from hftl.settings.visible import visible
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.sections import FAULTS, Baseline, Words

CHANGED = {"--output_dir", "--overwrite", "--resume", "--source_only"}


def own_commands(report: Report) -> list[str]:
    """Commands worth typing now: predict with this folder, and train the other way to compare."""
    if "next" in report.usage:
        return [f"accelerate launch {report.usage['next']} --model {shlex.quote(report.folder)} --data DATA"]
    new = report.usage.get("new", "new.csv")
    predict = f"hftl predict {shlex.quote(report.folder)} --data {new} --output predictions.csv"
    script = report.usage.get("script", "recipe.py")
    if cured := cure(report):
        return [f"{_relaunch(report.command, script, {cured.split(' ')[0]})} {cured} --output_dir runs/again", predict]
    strategy, output = ("LinearProbe", "runs/probe") if report.adapter else ("LoRA(r=16)", "runs/lora")
    return [
        predict,
        f'{_relaunch(report.command, script, {"--strategy"})} --strategy "{strategy}" --output_dir {output}',
    ]


def cure(report: Report) -> str:
    """The flag to try where a model has collapsed: a lower rate where it is surer than chance and wrong, or longer."""
    rate, epochs = report.settings.get("learning_rate"), report.settings.get("num_train_epochs")
    if not any("collapsed" in sentence for sentence in faults(report)):
        return ""
    loss = report.test.get("log_loss")
    chance = math.log(max(len(report.labels), 2))
    if rate and (rate > 1e-3 or (loss is not None and loss.value > 1.05 * chance)):
        return f"--learning_rate {rate / 10 if rate < 1e-2 else 5e-5:g}"
    return f"--num_train_epochs {4 * epochs:g}" if epochs else ""


def render(report: Report, next_commands: Sequence[str] | None = None) -> str:
    """The closing table for the terminal, without a final newline. `next_commands` replaces its own."""
    lines = _wrapped("  ".join(map(visible, (report.task, report.model, report.strategy))))
    lines += _scores(report)
    for trivial in report.of(Baseline) if report.test else []:
        name = f"{visible(trivial.metric or report.headline)} {wording.number(trivial.value)}"
        lines += _wrapped(f"{trivial.title} would give {name} on test.")
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
    lines += [f"unsafe       {visible(sentence)}" for sentence in report.unsafe]
    lines.append(f"folder       {visible(report.folder)}   (report.html, model card, recipe.yaml)")
    commands = own_commands(report) if next_commands is None else next_commands
    for head, command in zip(["try next", *[""] * len(commands)], commands, strict=False):
        lines.append(f"{head.ljust(13)}{visible(command)}")
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
    lines = [" " * first + "".join(top.ljust(wide) for top in tops)] if names else []
    return lines + [
        head.ljust(first) + "".join(cell.ljust(wide) for cell in row) for head, row in zip(heads, cells, strict=True)
    ]


def _cell(score: Score | None, rows: int) -> str:
    return wording.score(score) + (f" n={score.n:,}" if score is not None and score.n != rows else "")


def faults(report: Report) -> list[str]:
    """What a result that looks like one may hide, in sentences."""
    return [one for words in report.of(Words) if words.heading == FAULTS for one in words.sentences]


def _wrapped(sentence: str) -> list[str]:
    """A sentence in lines of 80 columns; no word is broken."""
    return textwrap.wrap(sentence, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]


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
