"""A recipe that trains no weight: the features of a frozen model are extracted once and given to a classifier.

Knows which settings that takes and the order of what is done; what happens inside is in `hftl.run.feature_run`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.run.recipe import Recipe
from hftl.run.settings import HOW, HUB, OF_MASKS, TWO_DOMAINS
from hftl.settings.fields import flag, own_settings
from hftl.train.startup import Clock, imports

if TYPE_CHECKING:
    from hftl.results.report.report import Report

MEANT = (
    "per_device_eval_batch_size",
    "disable_tqdm",
    "use_cpu",
    "ddp_backend",
    "ddp_timeout",
    "log_level",
    "tf32",
    *HUB,
)
"""TrainingArguments that mean something where no step trains."""


@dataclass(init=False)
class FeatureRecipe(Recipe):
    """A `Recipe` whose model stays frozen: its features are extracted once, kept on disk, and classified.

    Example:
        FeatureRecipe(data="reviews.csv", classifier="svm", layers="all").run()
    """

    hidden: ClassVar[tuple[str, ...]] = (
        *("strategy", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "packing"),
        *("gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "class_weights", "augment", "fit_batch"),
        *("max_tokens_per_batch", "early_stopping_patience", "max_steps", "resume", "show_rates", "cache_views"),
        *("cache_dtype", *OF_MASKS, *TWO_DOMAINS),
    )

    classifier: str = flag(
        "logistic", "logistic (for numbers a ridge), svm, rbf_svm, knn, or auto for all; C or k is chosen on valid", HOW
    )
    layers: str | int = flag("last", "whose output is read: last, all (joined), or the number of a block from 1", HOW)
    pool: str | None = flag(
        None, "head (what the model's own head reads), mean, or first token; else head where that fits, or mean", HOW
    )

    def run(self) -> Report | None:
        """Extract, fit, choose on valid, read test once, and write the folder.

        Raises:
            UserError: as `Recipe.run`, and a setting of training by steps.
        """
        self._refuse()
        clock = Clock()
        with imports():
            from hftl.results.folder import OutputFolder
            from hftl.results.report.table import render
            from hftl.run import feature_run, push
            from hftl.train import progress
        try:
            with progress.quiet():
                run = self.prepare(clock)
                started = time.monotonic()
                choice = feature_run.choose(run)
                report = feature_run.measure(run, choice, time.monotonic() - started)
                run.write(report)
        finally:
            OutputFolder(self.output_dir).tidy()
        if run.first:
            print(render(report))
            push.push_wanted(self, run.folder.path)
        return report

    def reproducible(self) -> dict[str, Any]:
        """As `Recipe.reproducible`, without what means nothing here."""
        return {name: value for name, value in super().reproducible().items() if name not in self.hidden}

    def _refuse(self) -> None:
        own = own_settings(type(self))
        changed = [name for name in self.hidden if getattr(self, name) != own[name].default]
        for name in [*changed, *(name for name in self.training if name not in MEANT)]:
            raise UserError(f"--{name} is for training by steps; here features are extracted once. Leave it out.")
