"""Print what a run has come to: the closing table of a terminal, and the commands worth typing next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hftl.results.report import verdict, wording
from hftl.results.report.report import Report
from hftl.settings.visible import visible

CHANGED = {"--strategy", "--output_dir", "--overwrite", "--resume", "--source_only"}


def own_commands(report: Report) -> list[str]:
    """Commands worth typing now: predict with this folder, and train the other way to compare."""
    if "next" in report.usage:
        return [f"accelerate launch {report.usage['next']} --model {shlex.quote(report.folder)} --data DATA"]
    new = report.usage.get("new", "new.csv")
    predict = f"hftl predict {shlex.quote(report.folder)} --data {new} --output predictions.csv"
    strategy, output = ("LinearProbe", "runs/probe") if report.adapter else ("LoRA(r=16)", "runs/lora")
    start = _relaunch(report.command, report.usage.get("script", "recipe.py"))
    return [predict, f'{start} --strategy "{strategy}" --output_dir {output}']


def render(report: Report, next_commands: Sequence[str] | None = None) -> str:
    """The closing table for the terminal, without a final newline. `next_commands` replaces its own."""
    names = report.metrics()
    splits = {"valid": report.valid, "test": report.test} | ({"target": report.target} if report.target else {})
    cells = [[wording.score(split.get(name)) for split in splits.values()] for name in names]
    heads = [visible(name) for name in names]
    first = max([12, *map(len, heads)]) + 1
    wide = max([21, *(len(cell) for row in cells for cell in row)]) + 3
    lines = ["  ".join(map(visible, (report.task, report.model, report.strategy)))]
    if names:
        lines.append(" " * first + "".join(split.ljust(wide) for split in splits))
    for name, head, row in zip(names, heads, cells, strict=True):
        n = ", ".join(f"{split[name].n}" for split in (report.test, report.target) if name in split)
        n = n or f"{report.valid[name].n}"
        lines.append(f"{head.ljust(first)}{''.join(cell.ljust(wide) for cell in row)}n={n}")
    lines += [visible(sentence) for sentence in verdict.adapted(report)]
    speed, total, trained = map(wording.count, (report.examples_per_second, report.total, report.trainable))
    lines.append(
        f"trained in {wording.duration(report.seconds)}, {speed} examples/s, {total} "
        f"parameters of which {trained} trained ({wording.share(report.trainable, report.total)}), "
        f"peak memory {wording.size(report.peak_memory)}{' a process' if report.processes > 1 else ''}"
    )
    if report.startup:
        whole = wording.duration(sum(report.startup.values()))
        lines.append(f"started in {whole}: {visible(wording.stages(report.startup))}")
    lines += [f"unsafe       {visible(sentence)}" for sentence in report.unsafe]
    lines.append(f"folder       {visible(report.folder)}   (report.html, model card, recipe.yaml)")
    commands = own_commands(report) if next_commands is None else next_commands
    for head, command in zip(["try next", *[""] * len(commands)], commands, strict=False):
        lines.append(f"{head.ljust(13)}{visible(command)}")
    return "\n".join(line.rstrip() for line in lines)


def _relaunch(command: str, script: str) -> str:
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
            dropping = word.split("=")[0] in CHANGED
        if not dropping:
            kept.append(word)
        elif "=" in word:
            dropping = False
    return shlex.join(kept)
