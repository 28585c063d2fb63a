"""Every name of the installed TrainingArguments acts in a run, or is refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from hftl.errors import UserError
from hftl.run.arguments import OURS, PUSHED, training_arguments
from hftl.run.recipe import Recipe
from hftl.run.scorer import Scorer
from hftl.settings.fields import own_settings, training_settings
from hftl.strategies import Strategy
from hftl.tasks.metrics.classification import SingleLabel

ACTS: dict[str, dict[str, Any]] = {
    **{
        name: {name: True}
        for name in (
            "average_tokens_across_devices",
            "logging_first_step",
            "log_on_each_node",
            "disable_tqdm",
            "eval_on_start",
            "eval_use_gather_object",
            "save_only_model",
            "save_on_each_node",
            "enable_jit_checkpoint",
            "ignore_data_skip",
            "use_cpu",
            "dataloader_drop_last",
            "dataloader_in_order",
            "skip_memory_metrics",
            "ddp_find_unused_parameters",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "torch_compile",
            "full_determinism",
        )
    },
    **{
        name: {name: 3}
        for name in (
            "max_grad_norm",
            "torch_empty_cache_steps",
            "logging_steps",
            "per_device_eval_batch_size",
            "eval_delay",
            "eval_accumulation_steps",
            "save_total_limit",
            "data_seed",
            "ddp_bucket_cap_mb",
            "ddp_timeout",
            "neftune_noise_alpha",
            "dataloader_num_workers",
        )
    },
    **{name: {name: 0.3} for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor")},
    "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"power": 2.0}},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim_args": "momentum=0.9", "optim": "sgd"},
    "optim_target_modules": {"optim_target_modules": "all-linear", "optim": "apollo_adamw"},
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": {
        "activation_checkpointing_kwargs": {"use_reentrant": True},
        "activation_checkpointing": True,
    },
    "torch_compile_backend": {"torch_compile_backend": "inductor"},
    "torch_compile_mode": {"torch_compile_mode": "reduce-overhead"},
    "use_liger_kernel": {"use_liger_kernel": True},
    "liger_kernel_config": {"liger_kernel_config": {"rope": True}, "use_liger_kernel": True},
    "logging_strategy": {"logging_strategy": "epoch"},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": "all"},
    "log_level": {"log_level": "debug"},
    "log_level_replica": {"log_level_replica": "error"},
    "report_to": {"report_to": ["trackio"]},
    "run_name": {"run_name": "mine", "report_to": ["trackio"]},
    **{
        name: {name: "mine", "report_to": ["trackio"]}
        for name in (
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
        )
    },
    "hub_private_repo": {"hub_private_repo": True, "report_to": ["trackio"]},
    "eval_strategy": {"eval_strategy": "steps", "eval_steps": 2},
    "eval_steps": {"eval_steps": 2, "eval_strategy": "steps"},
    "metric_for_best_model": {"metric_for_best_model": "f1"},
    "greater_is_better": {"greater_is_better": True, "metric_for_best_model": "mine"},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {
        "dataloader_multiprocessing_context": "spawn",
        "dataloader_num_workers": 1,
    },
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
}
"""Names that hftl leaves to the base Trainer -> settings with which they arrive there as they are given."""
MACHINES = ("tf32", "dataloader_pin_memory", "ddp_backend", "accelerator_config", "fsdp", "fsdp_config", "deepspeed")
"""Read when processes or devices are set up: `test_configs` and `test_two_processes` launch them."""
EARLIER = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Names that transformers itself passes on to another."""
UNREAD = [
    ("run_name", {"run_name": "x"}, "--report_to"),
    ("project", {"project": "x"}, "--report_to trackio"),
    ("eval_steps", {"eval_steps": 5}, "--eval_strategy steps"),
    ("metric_for_best_model", {"eval_strategy": "no", "metric_for_best_model": "accuracy"}, "--eval_strategy epoch"),
    ("early_stopping_patience", {"eval_strategy": "no", "early_stopping_patience": 2}, "--eval_strategy epoch"),
    ("logging_steps", {"logging_strategy": "epoch", "logging_steps": 5}, "--logging_strategy steps"),
    ("optim_args", {"optim_args": "beta1=0.5"}, "--optim"),
    ("adam_beta1", {"optim": "sgd", "adam_beta1": 0.5}, "--optim adamw_torch"),
    ("optim_target_modules", {"optim_target_modules": "attn"}, "galore_adamw"),
    ("liger_kernel_config", {"liger_kernel_config": {"rope": True}}, "--use_liger_kernel"),
    ("activation_checkpointing_kwargs", {"activation_checkpointing_kwargs": {"a": 1}}, "--activation_checkpointing"),
    ("dataloader_persistent_workers", {"dataloader_persistent_workers": True}, "--dataloader_num_workers"),
    ("hub_private_repo", {"hub_private_repo": True}, "--push_to_hub"),
]
THEIRS = Path(transformers.__file__).parent
SOURCES = "".join(
    path.read_text("utf-8")
    for path in (*THEIRS.glob("trainer*.py"), *THEIRS.glob("training_args.py"), *THEIRS.glob("integrations/*.py"))
)
"""Of the base Trainer and what it calls."""
OTHER = {bool: lambda held: not held, str: lambda held: "x", list: lambda held: ["x"], type(None): lambda held: "x"}


def test_every_name_of_transformers_has_one_place():
    """A name that a new version adds fails here: find out whether it acts, and put it into one of these."""
    places = [*ACTS, *MACHINES, *EARLIER, *OURS, *PUSHED, *(training_settings().keys() & own_settings(Recipe).keys())]
    assert sorted(places) == sorted(training_settings())


@pytest.mark.parametrize("name", ACTS)
def test_what_acts_arrives_as_it_is_given_and_is_read(name, tmp_path):
    found = getattr(training_arguments(Recipe(**ACTS[name]), Strategy(), tmp_path), name)
    assert getattr(found, "value", found) == ACTS[name][name]
    assert re.search(rf"(args|self)\.{name}\b(?! *=[^=])", SOURCES), "nothing reads it"


@pytest.mark.parametrize("name", OURS)
def test_what_reaches_nothing_is_refused_with_what_to_do(name, tmp_path):
    value, cure = OURS[name]
    recipe = Recipe()
    recipe.training[name] = OTHER[type(value)](value)
    with pytest.raises(UserError, match=re.escape(f"--{name} is not for the user of a recipe: {cure}.")):
        training_arguments(recipe, Strategy(), tmp_path)
    recipe.training = {} if value is None else {name: value}
    training_arguments(recipe, Strategy(), tmp_path)


@pytest.mark.parametrize(("name", "settings", "need"), UNREAD)
def test_what_another_setting_silences_is_refused(name, settings, need, tmp_path):
    with pytest.raises(UserError, match=f"^--{name} is read only with .*{re.escape(need)}"):
        training_arguments(Recipe(**settings), Strategy(), tmp_path)


def test_a_mode_of_compiling_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--torch_compile_mode takes default, .*; foo came"):
        training_arguments(Recipe(torch_compile_mode="foo"), Strategy(), tmp_path)


@pytest.mark.parametrize(
    ("given", "which"),
    [
        ({"greater_is_better": False}, "accuracy, of which more"),
        ({"greater_is_better": True, "metric_for_best_model": "eval_loss"}, "loss, of which less"),
        ({"greater_is_better": True, "metric_for_best_model": "ece"}, "ece, of which less"),
    ],
)
def test_a_direction_that_a_known_metric_does_not_have_is_refused(given, which):
    scorer = Scorer(SingleLabel(["a", "b"]))
    with pytest.raises(UserError, match=f"--greater_is_better is known of {which} is better"):
        scorer.further(given)
    assert scorer.further(given | {"greater_is_better": not given["greater_is_better"]}) == []
