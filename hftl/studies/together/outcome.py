"""What a run on several tasks has come to: a report for each task, one on all, and their folders. Knows a MultiRun."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hftl.models.anatomy import anatomy
from hftl.models.wrapped import PEFT, out_of_peft
from hftl.results.folder import OutputFolder, unwrap
from hftl.results.report.report import Report, TaskRow
from hftl.run import outcome
from hftl.run import prepare as single
from hftl.settings import spec
from hftl.strategies import per_task as task_adapters
from hftl.tasks.metrics.bootstrap import Score
from hftl.train.several import MEAN

if TYPE_CHECKING:
    from hftl.studies.together.prepare import MultiRun


def measure(run: MultiRun) -> tuple[Report, dict[str, Any]]:
    """The report of all tasks, and the test metric of each with its examples; test is read here, once."""
    reports, metrics = {}, {}
    for name, part in run.parts.items():
        reports[name] = outcome.measure(part)
        metrics[name] = part.scorer.metric  # holds test now
    plan = run.trainer.plan
    counts = plan.counts()
    rows = [
        TaskRow(
            task=name,
            metric=report.headline,
            steps=int(counts[i]),
            share=float(counts[i] / plan.steps),
            folder=name,
            multi=report.test[report.headline],
        )
        for i, (name, report) in enumerate(reports.items())
    ]
    run.reports = reports
    first = next(iter(reports.values()))
    weights = _uncertainty(run)
    return replace(
        first,
        task="multi-task",
        usage={},
        labels=[],
        headline=MEAN,
        valid=_means({name: report.valid[report.headline] for name, report in reports.items()}, reports),
        test=_means({name: report.test[report.headline] for name, report in reports.items()}, reports),
        data=_data(run, weights),
        checks=[replace(c, sentence=f"{n}: {c.sentence}") for n, r in reports.items() for c in r.checks],
        strategy=spec.spell(run.strategy),
        examples_per_second=_rate(run, first.seconds),
        unit="row",
        classes={},
        sections=[],
        adapter=False,
        tasks=rows,
    ), metrics


def _means(scores: dict[str, Score], reports: dict[str, Report]) -> dict[str, Score]:
    mean = sum(score.value for score in scores.values()) / len(scores)
    whole = Score(mean, math.nan, math.nan, sum(score.n for score in scores.values()))
    return {MEAN: whole} | {f"{name}_{reports[name].headline}": score for name, score in scores.items()}


def _data(run: MultiRun, weights: dict[str, float]) -> dict[str, Any]:
    parts = run.parts
    splits = ("train", "valid", "test")
    notes = [f"{name}: {note}" for name, part in parts.items() for note in part.splits.notes]
    notes += [f"{name}: learnt log-variance {value:.3f}" for name, value in weights.items()]
    return {
        "source": ", ".join(f"{name} = {part.splits.source}" for name, part in parts.items()),
        "rows": {split: sum(len(part.rows[split]) for part in parts.values()) for split in splits},
        "fingerprints": {},
        "columns": {},
        "notes": notes,
    }


def _uncertainty(run: MultiRun) -> dict[str, float]:
    """The learnt log-variance of each task; empty where losses are not weighted."""
    found = [module for module in run.trainer.model.modules() if hasattr(module, "log_variances")]
    return dict(zip(run.parts, found[-1].log_variances.tolist(), strict=True)) if found else {}


def _rate(run: MultiRun, seconds: float) -> float:
    seen = run.trainer.state.global_step * run.trainer.args.gradient_accumulation_steps * run.trainer.plan.micro
    return seen / max(seconds, 1e-9)


def standalone(run: MultiRun, name: str) -> Any:
    """The model of one task alone, with or without adapters, built anew and given the trained weights."""
    part, whole = run.parts[name], run.trainer.whole
    pretrained = part.task.build(single.source_of(run.recipe), part.splits.labels)
    model: Any = pretrained.model
    if run.recipe.adapters or hasattr(run.trainer.model, "peft_config"):
        model = run.strategy.prepare(model, anatomy(model, pretrained.fresh))
    source = unwrap(run.trainer).state_dict()
    outer = PEFT if hasattr(run.trainer.model, "peft_config") else ""
    given = {}
    for own, value in model.state_dict().items():
        plain = out_of_peft(own)
        if run.recipe.adapters:
            plain = task_adapters.name_of(plain, name)
        if "original_module" in own and outer + whole.where(name, plain) not in source:
            given[own] = value  # what the trained copy stands in for
        else:
            given[own] = source[outer + whole.where(name, plain)]
    model.load_state_dict(given)
    return model.eval()


def write(run: MultiRun, report: Report) -> None:
    """Write the folder of each task, and then the report on all, from the first process; the others wait."""
    run.trainer.accelerator.wait_for_everyone()
    folder = OutputFolder(run.recipe.output_dir)
    settings = {name: value for name, value in run.lead.settings.items() if name not in run.recipe.hidden}
    settings["tasks"] = _told_data(settings["tasks"], run)
    if run.first:
        for name, own in run.reports.items():
            model = standalone(run, name)
            own = replace(
                own,
                folder=str(Path(run.recipe.output_dir) / name),
                strategy=spec.spell(run.strategy),
                adapter=hasattr(model, "peft_config"),
                total=sum(p.numel() for p in model.parameters()),
                trainable=_trained(run, name, model),
                history=[],
                data=own.data | {"notes": [*own.data["notes"], f"trained together with {_others(run, name)}"]},
            )
            run.parts[name].folder.write(model, run.parts[name].pretrained.processor, own, settings)
        shutil.rmtree(folder.checkpoints / "alone", ignore_errors=True)
        folder.write_report(report, settings)
    run.trainer.accelerator.wait_for_everyone()


def _told_data(words: list[str], run: MultiRun) -> list[str]:
    """Tasks as they were given, each with the sha256 of its data, so that a run from the file says what has changed."""
    bare = [re.sub(r",data_sha256=\w*", "", word) for word in words]
    return [f"{word},data_sha256={p.splits.origin}" for word, p in zip(bare, run.parts.values(), strict=True)]


def _others(run: MultiRun, name: str) -> str:
    return ", ".join(other for other in run.parts if other != name) or "no other task"


def _trained(run: MultiRun, name: str, model: nn.Module) -> int:
    """Parameters of a task's own model that were trained."""
    trained = {out_of_peft(n) for group in run.trainer.groups for n in group.parameters}

    def source(own: str) -> str:
        plain = out_of_peft(own)
        return run.trainer.whole.where(name, task_adapters.name_of(plain, name) if run.recipe.adapters else plain)

    return sum(p.numel() for own, p in model.named_parameters() if source(own) in trained)


def next_commands(run: MultiRun) -> list[str]:
    """What is worth typing now: predict with each of the first two folders."""
    told = []
    for name, part in list(run.parts.items())[:2]:
        folder, new = shlex.quote(str(Path(run.recipe.output_dir) / name)), part.task.usage.get("new", "new.csv")
        told.append(f"hftl predict {folder} --data {new} --output {name}.csv")
    return told
