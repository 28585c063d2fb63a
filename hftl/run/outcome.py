"""What a run has come to: metrics while it trains, the report after it. Knows a Run, no modality, no file format."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import platform
import resource
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hftl.data.types import Target
from hftl.results.report.report import Report
from hftl.run.adaptation import told
from hftl.run.overall import overall
from hftl.settings import spec
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.sections import Gallery, Section
from hftl.train.trainer import Trainer

if TYPE_CHECKING:
    from hftl.run.part import Part
    from hftl.run.prepare import Run
    from hftl.run.scorer import Scorer
    from hftl.run.settings import RecipeSettings

PACKAGES = ("hftl", "torch", "transformers", "datasets", "peft", "accelerate", "timm", "scikit-learn")


def measure(run: Run) -> Report:
    """Measure the chosen model on valid, then on test, once, and write everything down: of all tasks, and of each."""
    run.reports = {name: measure_part(run, part) for name, part in run.parts.items()}
    return overall(run) if run.recipe.several else run.reports[""]


def measure_part(run: Run, part: Part) -> Report:
    """The report on one task of the run."""
    cost = effort(run.trainer, len(part.splits.train)) if run.look is None else run.look.effort()
    about = described(run, part) | cost
    valid = measured(run, part, "valid")
    target = measured(run, part, "target") if "target" in part.rows else {}
    apart = by_domain(run, part) if run.recipe.part(Target).domain is not None else {}
    test = measured(run, part, "test")
    metric = part.scorer.metric  # holds test now
    return Report(
        **about,
        valid=valid,
        test=test,
        target=target,
        domains=apart,
        adaptation=None if run.domains is None else told(run.domains, run.trainer.state.log_history),
        headline=metric.headline,
        unit=metric.unit,
        lower=sorted(part.scorer.lower),
        classes=metric.classes,
        sections=sections(run, part, {"valid": valid, "test": test}) + part.untrained + augmented(run, part),
        peak_memory=peak_memory(run.trainer),
        processes=run.trainer.args.world_size,
        startup=run.clock.seconds,
    )


def by_domain(run: Run, part: Part) -> dict[str, dict[str, Score]]:
    """Every metric of test for each domain in it, by name."""
    where = np.asarray(part.splits.test["domain"][:]).astype(str)
    found = {}
    for name in sorted(set(where.tolist())):
        rows = part.rows["test"].part(np.flatnonzero(where == name))
        got = run.trainer.evaluate(rows, metric_key_prefix="test")
        found[name] = scored(part.scorer, {own: got[f"test_{own}"] for own in part.scorer.own_names})
    return found


def measured(run: Run, part: Part, split: str) -> dict[str, Score]:
    """Every metric of one split with its interval; metrics of the user's own have none."""
    if run.look is not None:
        return scored(part.scorer, run.look.evaluate(run.look.head, split))
    found = run.trainer.evaluate(part.rows[split], metric_key_prefix=split)
    return scored(part.scorer, {name: found[f"{split}_{name}"] for name in part.scorer.own_names})


def scored(scorer: Scorer, found: dict[str, float]) -> dict[str, Score]:
    """What the scorer holds, with intervals; `found` has the metrics of the user's own."""
    scores = scorer.metric.compute()
    n = scores[scorer.headline].n
    own = {name: found[name] for name in scorer.own_names}
    return scores | {name: Score(value, math.nan, math.nan, n) for name, value in own.items()}


def augmented(run: Run, part: Part) -> list[Section]:
    """Some training rows before and after augmentation; [] where there is none."""
    examples = part.task.before_after(part.rows["train"].encoded)
    how = run.settings.get("augment")
    note = f"{how}: another draw each time that a row is read. Valid and test stay as they are."
    heading = "Training rows before and after augmentation"
    return [Gallery(heading=heading, examples=examples, note=note)] if examples else []


def sections(run: Run, part: Part, scores: dict[str, dict[str, Score]]) -> list[Section]:
    """What the task draws of test beside its numbers; the metric holds test."""
    order = run.trainer.eval_order

    def read(position: int) -> tuple[dict[str, Any], Callable[[], Any]]:
        number = position if order is None else int(order[position])
        return part.splits.test[number], functools.partial(answer, run, part, number)

    return part.task.sections(part.scorer.metric, scores, read)


def answer(run: Run, part: Part, number: int) -> Any:
    """What the model says of one row of test, as the task's `unbatch` gives it."""
    trainer = run.trainer
    batch = trainer.data_collator(part.rows["test"].__getitems__([number]))
    inputs = {
        n: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for n, v in batch.items() if n != "row"
    }
    trainer.model.eval()
    with torch.inference_mode():
        logits = trainer.model(**inputs)["logits"]
    return next(iter(part.task.unbatch(logits.float().cpu().numpy(), batch)))


def described(run: Run, part: Part) -> dict[str, Any]:
    """What was run on what: the part of a report that is known before training."""
    recipe, trainer, splits = run.recipe, run.trainer, part.splits
    parameters = {id(p): p for p in trainer.model.parameters()}.values()
    return {
        "task": part.task.name,
        "usage": part.task.usage_of(part.pretrained.model),
        "model": recipe.model,
        "revision": part.pretrained.revision,
        "strategy": spec.spell(trainer.strategy),
        "labels": splits.labels.names,
        "data": {
            "source": splits.source,
            "rows": {name: len(getattr(splits, name)) for name in ("train", "valid", "test")},
            "fingerprints": splits.fingerprints,
            "columns": splits.columns,
            **({"values": splits.labels.values} if splits.labels.values else {}),
            **({"threshold": part.task.threshold} if part.task.threshold else {}),
            "notes": [*splits.notes, *(trainer.cache.notes if trainer.cache is not None else [])],
        },
        "checks": splits.checks,
        "trainable": trainer.trained,
        "total": sum(p.numel() for p in parameters),
        "seed": recipe.seed,
        "versions": versions(),
        "command": command(),
        "settings": run.settings | ({"learning_rate": trainer.args.learning_rate} if run.look is None else {}),
        "rates": run.rates,
        "unsafe": unsafe(recipe),
        "reproduce": reproduce(run),
        "folder": recipe.output_dir,
        "adapter": hasattr(trainer.model, "peft_config"),
    }


def effort(trainer: Trainer, rows: int) -> dict[str, Any]:
    """What the run cost. Examples per second leave evaluation out; a resumed run counts from its last start."""
    history = trainer.state.log_history
    seconds = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), 0.0)
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in history)
    seen = rows * (trainer.state.epoch or 0.0)
    return {
        "seconds": seconds,
        "examples_per_second": seen / max(seconds - evaluating, 1e-9),
        "forward_passes": trainer.forward_passes,
        "history": history,
    }


def command() -> str:
    """The command line that started this run, without folders of this machine; empty for a run from Python."""
    if sys.argv[0].startswith("hftl train "):
        return " ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and module.name.startswith("hftl.recipes."):
        return " ".join(["accelerate", "launch", "-m", module.name, *map(shlex.quote, sys.argv[1:])])
    script = Path(sys.argv[0])
    if script.suffix != ".py" or script.stem == "__main__":
        return ""
    words = ["accelerate", "launch", script.name if script.is_absolute() else str(script), *sys.argv[1:]]
    return " ".join(map(shlex.quote, words))


def peak_memory(trainer: Trainer) -> int:
    """Bytes: the most that one process held so far, of its GPU where it trains on one, else resident."""
    device = trainer.args.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    if trainer.args.world_size == 1:
        return peak
    return int(trainer.accelerator.gather(torch.tensor([peak], device=device)).max())


def resident_peak() -> int:
    """Bytes of this process's memory at its peak; `getrusage` alone would count what its parent held, too (Linux)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def unsafe(recipe: RecipeSettings) -> list[str]:
    """What the user allowed that could have run foreign code."""
    said = {
        "weights may have been read from a pickle file (--allow_pickle)": recipe.allow_pickle,
        "code that came with the model was run (--trust_remote_code)": recipe.trust_remote_code,
    }
    return [sentence for sentence, true in said.items() if true]


def reproduce(run: Run) -> list[str]:
    """How to get these numbers again, and what could change them although the seed is the same, in sentences."""
    args, recipe = run.trainer.args, run.recipe
    if args.device.type == "cpu":
        same = f"processor and number of threads ({torch.get_num_threads()} here) give the same bytes"
    elif args.full_determinism:
        same = "device and versions give the same bytes: --full_determinism chose kernels that add in a fixed order"
    else:
        same = "device gives the same numbers but for last digits: its atomic sums have no order (--full_determinism)"
    found = [f"Every draw is seeded. The same versions, {same}."]
    if args.world_size > 1:
        found.append(f"Gradients were summed over {args.world_size} processes; another number rounds otherwise.")
    if recipe.fit_batch:
        found.append("--fit_batch chose the micro-batch by the memory that was free; recipe.yaml holds what it chose.")
    if not isinstance(recipe.settings().get("data", ""), str):
        found.append("The data was made in Python, so recipe.yaml cannot name it, but for its sha256.")
    return found
