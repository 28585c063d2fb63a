"""Features of a frozen model, extracted once, and a classifier of scikit-learn's on them: a recipe of its own.

Knows how a run is prepared and reported; what is fitted is in `hftl.classical`, what is saved in `hftl.feature_model`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError
from hftl.recipe import HOW, Recipe
from hftl.settings import flag, own_settings

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hftl.classical import Decision
    from hftl.report import Report
    from hftl.run import Run

STEPS = (
    *("strategy", "learning_rate", "num_train_epochs", "gradient_accumulation_steps", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "class_weights", "augment", "early_stopping_patience", "max_tokens_per_batch", "packing"),
    *("fit_batch", "max_steps", "resume", "per_device_train_batch_size", "show_rates", "cache_views"),
)
"""Settings of training by steps, of which there is none here."""


@dataclass(init=False)
class FeatureRecipe(Recipe):
    """A `Recipe` that trains no weight: the model is frozen, its features are extracted once and classified.

    Example:
        FeatureRecipe(data="reviews.csv", classifier="svm", layers="all").run()
    """

    classifier: str = flag(
        "logistic", "logistic (ridge for numbers), svm, rbf_svm or knn; C or k is chosen on valid", HOW
    )
    layers: str = flag("last", "whose output is the feature: last, all (joined), or the number of a block from 1", HOW)
    pool: str | None = flag(
        None,
        "head: what the model's own head reads; mean or first token; by default head for the last layer, else mean",
        HOW,
    )

    def run(self) -> Report | None:
        """Extract, fit, select on valid, read test once, and write the folder.

        Raises:
            UserError: as `Recipe.run`, and a setting of training by steps.
        """
        from transformers.trainer_callback import PrinterCallback, ProgressCallback

        from hftl import hub, outcome, progress

        defaults = own_settings(Recipe)
        given = [n for n in STEPS if getattr(self, n) != defaults[n].default] + list(self.training.keys() & {"optim"})
        if given:
            raise UserError(
                f"--{given[0]} means nothing here: features are extracted, and no step trains. Leave it out."
            )
        try:
            with progress.quiet():
                self.strategy = "LinearProbe"
                run = self.prepare()
                started = time.monotonic()
                for printing in (PrinterCallback, ProgressCallback):
                    run.trainer.pop_callback(printing)
                chosen = _fitted(self, run)
                seconds = time.monotonic() - started
                report = replace(
                    outcome.measure(run),
                    seconds=seconds,
                    examples_per_second=len(run.rows["train"]) / seconds,
                    strategy=chosen,
                )
                run.write(report)
        finally:
            hub.OutputFolder(self.output_dir).tidy()
        if run.first:
            print(report.table())
        return report


def _fitted(recipe: FeatureRecipe, run: Run) -> str:
    """Fit on train, choose on valid, and put the result into the run; say what was chosen."""
    from hftl import classical

    head = _head(run)
    pool = recipe.pool or ("head" if recipe.layers == "last" and head else "mean")
    names = _names(recipe, run, pool, head)
    features = _extracted(recipe, run, head)
    numbers = {split: _labels(run, split) for split in ("train", "valid")}
    tried: list[tuple[float, str, float, list[str], Decision]] = []

    def attempt(names: list[str], value: float) -> None:
        import numpy as np

        joined = {split: np.concatenate([features[split][name] for name in names], axis=1) for split in numbers}
        problem, classes = run.splits.labels.problem_type, len(run.splits.labels.names)
        made = classical.fit(recipe.classifier, value, joined["train"], numbers["train"], problem, classes)
        tried.append(
            (_score(run, made, joined["valid"], numbers["valid"]), _said(recipe, names, value), value, names, made)
        )

    for value in classical.GRIDS[recipe.classifier]:
        attempt(names, value)
    best = max(tried, key=lambda one: one[0])
    others = [[name] for name in features["train"] if name.split(" ")[-1] in ("head", run.trainer.anatomy.stack[-1])]
    for other in [name for name in others if name != names and len(names) == 1]:
        attempt(other, best[2])
    better = max(tried, key=lambda one: one[0])
    run.splits.notes += [f"{said}: {run.scorer.headline} {_shown(run, score)} on valid" for score, said, *_ in tried]
    if better[0] > best[0]:
        run.splits.notes.append(f"On valid {better[1]} does better than what was asked for.")
        print(run.splits.notes[-1])
    _install(run, best[4], best[3], head)
    return best[1]


def _head(run: Run) -> str | None:
    """The one linear layer that is all that is fresh; None where there is more to a head."""
    from torch import nn

    fresh = run.trainer.anatomy.fresh_modules
    module = run.trainer.model.get_submodule(fresh[0]) if len(fresh) == 1 else None
    return fresh[0] if isinstance(module, nn.Linear) else None


def _names(recipe: FeatureRecipe, run: Run, pool: str, head: str | None) -> list[str]:
    """The features that were asked for, as `Taps` calls them."""
    stack = run.trainer.anatomy.stack
    if not stack:
        raise UserError("Expected a model with a stack of blocks to take features from; this one has none.")
    if pool == "head":
        if recipe.layers != "last":
            raise UserError(
                f"--pool head is what follows the last block; with --layers {recipe.layers} pass mean or first."
            )
        if head is None:
            raise UserError("This model's head is more than one linear layer. Pass --pool mean.")
        return ["head"]
    if recipe.layers in ("last", "all"):
        return [f"{pool} {name}" for name in (stack if recipe.layers == "all" else stack[-1:])]
    if not recipe.layers.isdigit() or not 1 <= int(recipe.layers) <= len(stack):
        raise UserError(f"--layers takes last, all, or a block from 1 to {len(stack)}; {recipe.layers!r} came.")
    return [f"{pool} {stack[int(recipe.layers) - 1]}"]


def _extracted(recipe: FeatureRecipe, run: Run, head: str | None) -> dict[str, dict[str, np.ndarray]]:
    """Every pooled output of every block for train and valid, by split and name; computed once, then read from disk."""
    import torch

    from hftl.cache import Cache, Work, digest
    from hftl.feature_model import Taps
    from hftl.store import NoRoom

    trainer, parts = run.trainer, [run.rows["train"], run.rows["valid"]]
    model: nn.Module = trainer.model.eval()
    collate, device = run.task.collate(run.pretrained.processor), trainer.args.device
    taps = Taps(model, trainer.anatomy.stack, head)
    example = {k: v.to(device) for k, v in collate(parts[0].plain([0])).items()}
    with torch.no_grad():
        widths = {name: value.shape[1] for name, value in taps(example).items()}
    missing = {"head", "first"} - {name.split(" ")[0] for name in widths}
    if recipe.pool in missing:
        raise UserError(f"--pool {recipe.pool} does not fit this model, which has no such output. Pass --pool mean.")

    def compute(inputs: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
        with torch.no_grad(), trainer.accelerator.autocast():
            found = taps({k: v.to(device) for k, v in inputs.items()})
        return list(zip(*(found[name].cpu() for name in widths), strict=True))

    size = sum(widths.values()) * 4
    weights = [name for name, _ in model.named_parameters() if not trainer.anatomy.place(name).fresh]
    weights += [name for name, _ in model.named_buffers()]
    space = digest(model, ["features", *widths, trainer.accelerator.mixed_precision], weights)
    bar = not trainer.args.disable_tqdm and run.first
    cache = Cache(parts, collate, recipe.cache_gb, "auto", trainer.args.per_device_eval_batch_size, bar)
    try:
        readers = cache.keep(
            Work(space, "Extracting features", compute, lambda length: size, 1.0), parts, trainer.accelerator
        )
    except NoRoom as full:
        raise UserError(f"Features are kept on disk, and {full} Raise --cache_gb.") from full
    splits = zip(("train", "valid"), parts, strict=True)
    read = {split: readers[id(rows)].batch(range(len(rows))) for split, rows in splits}
    return {
        split: {name: leaf.float().numpy() for name, leaf in zip(widths, leaves, strict=True)}
        for split, leaves in read.items()
    }


def _labels(run: Run, split: str) -> np.ndarray:
    import numpy as np

    return np.asarray(run.rows[split].labels)


def _score(run: Run, decision: Decision, features: np.ndarray, labels: np.ndarray) -> float:
    """The headline metric, the higher the better."""
    import torch

    from hftl.arguments import LOWER_IS_BETTER

    metric = run.scorer.metric
    metric.reset()
    metric.update(decision(torch.from_numpy(features)).numpy(), labels)
    value = metric.values()[metric.headline]
    return -value if metric.headline in LOWER_IS_BETTER else value


def _shown(run: Run, score: float) -> str:
    return f"{abs(score) if score < 0 else score:.3f}"


def _said(recipe: FeatureRecipe, names: list[str], value: float) -> str:
    what = "head" if names == ["head"] else names[0].split(" ")[0]
    layers = recipe.layers if names != ["head"] else "last"
    number = "k" if recipe.classifier == "knn" else "C"
    return f"Features({recipe.classifier}, layers={layers}, pool={what}, {number}={value:g})"


def _install(run: Run, decision: Decision, names: list[str], head: str | None) -> None:
    """Make the fitted classifier part of the run's model: in its own head where that can hold it."""
    import torch

    from hftl.feature_model import FeatureModel

    trainer, model = run.trainer, run.trainer.model
    if names == ["head"] and head is not None and decision.kind == "linear":
        layer, t = model.get_submodule(head), dict(decision.named_buffers())
        weight = t["weight"] / t["scale"]
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(t["bias"] - weight @ t["mean"])
        return
    run.splits.notes.append(
        "Plain transformers loads the frozen model of this folder without its classifier, which is in features.json "
        "and features.safetensors: hftl.load and hftl predict read it."
    )
    trainer.model = trainer.model_wrapped = FeatureModel(model, names, decision).to(trainer.args.device)
