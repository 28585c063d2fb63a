"""Refuse the settings of training by steps where a strategy needs no step. Knows names of settings; no torch."""

from __future__ import annotations

from typing import Any

from hftl.data.types import Target
from hftl.errors import UserError
from hftl.run.settings import HUB, Adaptation, RecipeSettings, Together
from hftl.settings import spec
from hftl.settings.fields import own_settings, training_settings
from hftl.strategies import Chain, Strategy

ONLY = (
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("weight_decay", "warmup_steps", "lr_scheduler_type", "early_stopping_patience", "class_weights", "augment"),
    *("head", "max_tokens_per_batch", "packing", "fit_batch", "cache_dtype", "resume", "show_rates"),
    *own_settings(Target),
    *own_settings(Adaptation),
    *own_settings(Together),
)
"""Settings of a recipe that only training by steps reads."""
ALSO = (
    *("per_device_eval_batch_size", "disable_tqdm", "use_cpu", "ddp_backend", "ddp_timeout", "log_level", "tf32"),
    *HUB,
)
"""TrainingArguments that mean something where no step trains, too."""


def strategy_of(value: Any) -> Strategy:
    """A strategy from its notation, or as it is."""
    if isinstance(value, Strategy):
        return value
    parts = spec.build(value, Strategy.known())
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def of_steps(name: str) -> bool:
    """Whether a setting reaches nothing where no step trains."""
    return name in ONLY or name in training_settings().keys() - own_settings(RecipeSettings).keys() - {*ALSO}


def refuse(recipe: RecipeSettings, strategy: Strategy) -> None:
    """Raise `UserError` where a setting was given that a strategy without steps never reads."""
    known = recipe.own(recipe.task)
    for name, value in recipe.settings().items():
        if of_steps(name) and (name not in known or value != known[name].default):
            raise UserError(f"--{name} is for training by steps; {type(strategy).__name__} needs none. Leave it out.")
