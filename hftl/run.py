"""The pieces that `Recipe.run` puts in order: from settings to objects, and from a trained model to a report.

Knows Recipe's fields and the Trainer; knows no modality and no file format.
"""

from __future__ import annotations

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
import transformers
from transformers.trainer_callback import ProgressCallback

from hftl import spec
from hftl.anatomy import rate_table
from hftl.data import Check, Labels, Splits, length_check
from hftl.errors import UserError, suggest
from hftl.metrics import extra_metric, metric_for
from hftl.progress import Progress
from hftl.report import Report
from hftl.strategies.base import Chain, Strategy
from hftl.tasks.base import Pretrained, Source, Task
from hftl.trainer import Trainer

if TYPE_CHECKING:
    from hftl.hub import OutputFolder
    from hftl.recipe import Recipe

LOWER_IS_BETTER = ("loss", "mse", "mae", "ece")
PACKAGES = ("hftl", "torch", "transformers", "datasets", "peft", "accelerate", "timm", "scikit-learn")


def silent(*_: Any) -> None:
    """What every process but the first one prints."""


# --- from settings to objects ---


def strategy_of(value: Any, known: dict[str, type[Strategy]]) -> Strategy:
    """A strategy from its notation, or as it is."""
    if isinstance(value, Strategy):
        return value
    parts = spec.build(value, known)
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def task_of(name: str, known: dict[str, type[Task]]) -> Task:
    """A task from its pipeline tag."""
    if name not in known:
        raise UserError(f"There is no task {name!r}; hftl has {', '.join(sorted(known))}.{suggest(name, known)}")
    return known[name]()


def source_of(recipe: Recipe) -> Source:
    """Where the model comes from."""
    return Source(recipe.model, recipe.weights, recipe.revision, recipe.allow_pickle, recipe.trust_remote_code)


def training_arguments(recipe: Recipe, strategy: Strategy, checkpoints: Path) -> transformers.TrainingArguments:
    """TrainingArguments with defaults fit for fine-tuning; making them starts the processes.

    Raises:
        UserError: TrainingArguments refuse a value.
    """
    chosen = {
        "per_device_eval_batch_size": 64,
        "eval_strategy": "epoch",
        "logging_steps": 0.02,
        "save_total_limit": 1,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    } | {k: v for k, v in recipe.training.items() if k not in ("push_to_hub", "hub_model_id", "hub_private_repo")}
    own = {
        name: getattr(recipe, name)
        for name in transformers.TrainingArguments.__dataclass_fields__
        if hasattr(recipe, name) and name not in ("output_dir", "learning_rate", "task")
    }
    rate = recipe.learning_rate if recipe.learning_rate is not None else strategy.lr
    try:
        return transformers.TrainingArguments(
            **own
            | {"learning_rate": 5e-5 if rate is None else rate}
            | chosen
            | {
                "output_dir": str(checkpoints),
                "remove_unused_columns": False,
                "label_names": ["labels"],
                "batch_eval_metrics": True,
                "length_column_name": "length",
                "restore_callback_states_from_checkpoint": True,
                "save_strategy": "no",
            }
        )
    except (ValueError, TypeError) as failure:
        raise UserError(f"transformers refuses these settings: {' '.join(str(failure).split())}") from failure


def selection(args: transformers.TrainingArguments, recipe: Recipe, scorer: Scorer) -> transformers.TrainingArguments:
    """Keep the checkpoint that is best on valid by the task's headline metric, and say so to the base Trainer."""
    if str(args.eval_strategy.value) == "no":
        return args
    metric = (args.metric_for_best_model or scorer.headline).removeprefix("eval_")
    if metric not in [*scorer.names, "loss"] and not scorer.extra:
        raise UserError(
            f"--metric_for_best_model {metric} is not measured here; there is loss, {', '.join(scorer.names)}."
            f"{suggest(metric, scorer.names)}"
        )
    args.metric_for_best_model = f"eval_{metric}"
    args.greater_is_better = metric not in LOWER_IS_BETTER
    args.load_best_model_at_end = True
    args.save_strategy, args.save_steps = args.eval_strategy, args.eval_steps or args.save_steps
    return args


def callbacks(recipe: Recipe) -> list[transformers.TrainerCallback]:
    """Early stopping, unless the patience is 0 or nothing is evaluated."""
    if recipe.early_stopping_patience <= 0 or recipe.training.get("eval_strategy") == "no":
        return []
    return [transformers.EarlyStoppingCallback(early_stopping_patience=recipe.early_stopping_patience)]


def quieten(trainer: Trainer, headline: str) -> None:
    """Show a bar and a line for each evaluation in place of the base class's dicts."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress(headline))


def encode(task: Task, splits: Splits, processor: Any, **options: Any) -> dict[str, Any]:
    """The three splits as model inputs; only train is augmented."""
    return {
        name: task.encode(getattr(splits, name), processor, train=name == "train", **options)
        for name in ("train", "valid", "test")
    }


def length_checks(rows: Any, processor: Any, max_length: int | None) -> list[Check]:
    """How many training rows are longer than the model reads; nothing where rows have no length."""
    if "length" not in rows.column_names:
        return []
    limit = min(max_length or 512, processor.model_max_length)
    return [length_check(rows["length"], limit)]


def class_weighted(choice: str | None, splits: Splits) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """Cross-entropy in which each class counts the same (King & Zeng 2001), or None for the model's own loss.

    The weights have mean 1 over train, so that the learning rate keeps its meaning.
    """
    if choice is None:
        return None
    if splits.labels.problem_type != "single_label_classification":
        raise UserError(
            f"--class_weights {choice} needs one label a row; here the labels are a {splits.labels.problem_type}."
        )
    counts = np.bincount(np.asarray(splits.train["label"]), minlength=len(splits.labels.names))
    weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return each * weights.to(logits.device)[labels]

    return losses


def logits_alone(logits: Any, labels: Any) -> torch.Tensor:
    """What metrics need of a model's outputs; encoder-decoders also return hidden states."""
    return logits[0] if isinstance(logits, tuple) else logits


class Scorer:
    """The base Trainer's `compute_metrics`, fed batch by batch; after an evaluation, `scores()` adds intervals."""

    def __init__(self, labels: Labels, extra: list[str]) -> None:
        self.metric = metric_for(labels.problem_type, labels.names)
        self.extra = [extra_metric(name, labels.problem_type) for name in extra]
        self.headline = self.metric.headline
        self.names = measured_names(labels)
        self._finished = True

    def __call__(self, prediction: transformers.EvalPrediction, compute_result: bool) -> dict[str, float]:
        if self._finished:
            self.metric.reset()
        logits, labels = (np.asarray(torch.as_tensor(part).float().cpu()) for part in prediction)
        labels = labels.astype(np.int64) if np.issubdtype(_dtype(prediction.label_ids), np.integer) else labels
        self.metric.update(logits, labels)
        for metric in self.extra:
            metric.update(logits, labels)
        self._finished = compute_result
        return self.metric.values() | self._extra_values() if compute_result else {}

    def _extra_values(self) -> dict[str, float]:
        return {name: value for metric in self.extra for name, value in metric.compute().items()}


def measured_names(labels: Labels) -> list[str]:
    """The names of the built-in metrics, found by measuring a made-up batch."""
    classes = len(labels.names)
    probe = metric_for(labels.problem_type, labels.names)
    eye = np.eye(max(classes, 2))
    many = labels.problem_type == "multi_label_classification"
    probe.update(eye, eye if many else np.arange(classes)) if classes else probe.update(eye[0], eye[0])
    return list(probe.values())


def train(trainer: Trainer, folder: OutputFolder, resume: bool) -> None:
    """Train from the start, or from the last checkpoint."""
    trainer.train(resume_from_checkpoint=resume and folder.has_checkpoint)


# --- from a trained model to a report ---


def rates_by_depth(trainer: Trainer) -> list[dict[str, Any]]:
    """Rows of `hftl.anatomy.rate_table` for the model as it trains."""
    return rate_table(trainer.anatomy, trainer.model, trainer.strategy.rate)


def report(
    recipe: Recipe,
    task: Task,
    trainer: Trainer,
    splits: Splits,
    pretrained: Pretrained,
    rates: list[dict[str, Any]],
    scorer: Scorer,
    rows: dict[str, Any],
) -> Report:
    """Measure the chosen model on valid, then on test, once, and write everything down."""
    scores = {}
    for name in ("valid", "test"):
        scores[name] = measured(trainer, scorer, rows[name], name)
    return Report(
        **described(recipe, task, trainer, splits, pretrained, rates),
        **effort(trainer, len(splits.train)),
        headline=scorer.headline,
        valid=scores["valid"],
        test=scores["test"],
        confusion=scorer.metric.confusion(),
        calibration=scorer.metric.calibration(),
        wrong=mistakes(task, splits, scorer),
    )


def measured(trainer: Trainer, scorer: Scorer, rows: Any, name: str) -> dict[str, Any]:
    """Every metric of one split with its interval; metrics of the user's own have none."""
    found = trainer.evaluate(rows, metric_key_prefix=name)
    scores = scorer.metric.compute()
    n = next(iter(scores.values())).n
    own = {k.removeprefix(f"{name}_"): v for k, v in found.items() if k.removeprefix(f"{name}_") in _extras(scorer)}
    return scores | {key: type(scores[scorer.headline])(value, math.nan, math.nan, n) for key, value in own.items()}


def mistakes(task: Task, splits: Splits, scorer: Scorer, most: int = 12) -> list[dict[str, Any]]:
    """The test rows on which the model was surest and wrong."""
    found = []
    for index, label, prediction, confidence in scorer.metric.mistakes(most):
        found.append(
            task.show(splits.test[index]) | {"label": label, "prediction": prediction, "confidence": confidence}
        )
    return found


def described(
    recipe: Recipe, task: Task, trainer: Trainer, splits: Splits, pretrained: Pretrained, rates: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was run on what: the part of a report that is known before training."""
    parameters = {id(p): p for p in trainer.model.parameters()}.values()
    return {
        "task": task.name,
        "model": recipe.model,
        "revision": pretrained.revision,
        "strategy": spec.spell(trainer.strategy),
        "problem_type": splits.labels.problem_type,
        "labels": splits.labels.names,
        "data": {
            "source": splits.source,
            "rows": {name: len(getattr(splits, name)) for name in ("train", "valid", "test")},
            "fingerprints": splits.fingerprints,
            "columns": splits.columns,
            "notes": splits.notes,
        },
        "checks": splits.checks,
        "trainable": sum(p.numel() for group in trainer.groups for p in group.parameters.values()),
        "total": sum(p.numel() for p in parameters),
        "seed": recipe.seed,
        "versions": versions(),
        "command": " ".join(shlex.quote(part) for part in [Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": recipe.reproducible() | {"learning_rate": trainer.args.learning_rate},
        "rates": rates,
        "unsafe": unsafe(recipe),
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
        "peak_memory": peak_memory(),
        "history": history,
    }


def peak_memory() -> int:
    """Bytes: the GPU's peak where one is used, else the resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def unsafe(recipe: Recipe) -> list[str]:
    """What the user allowed that could have run foreign code."""
    said = {
        "weights may have been read from a pickle file (--allow_pickle)": recipe.allow_pickle,
        "code that came with the model was run (--trust_remote_code)": recipe.trust_remote_code,
    }
    return [sentence for sentence, true in said.items() if true]


def _dtype(values: Any) -> np.dtype:
    return np.asarray(torch.as_tensor(values).cpu()).dtype


def _extras(scorer: Scorer) -> set[str]:
    return set(scorer._extra_values()) if scorer.extra else set()
