"""TrainingArguments fit for fine-tuning, made from a recipe. Knows transformers' settings; no data, and of a model only
what `hftl.train.kernels` asks of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import transformers
from torch import nn

from hftl.errors import UserError, suggest
from hftl.settings.fields import training_settings
from hftl.strategies import Strategy
from hftl.tasks.metrics.criteria import CRITERIA
from hftl.train import devices, kernels
from hftl.train.selecting import EarlyStopping, patience_from

if TYPE_CHECKING:
    from hftl.run.settings import RecipeSettings
    from hftl.train.rated import RatedTrainer

OURS: dict[str, tuple[object, str]] = {
    "do_train": (None, "a recipe always trains; hftl predict and a folder do the rest"),
    "do_eval": (None, "valid is measured unless --eval_strategy is no, and once at the end"),
    "do_predict": (None, "test is measured once, at the end; hftl predict writes predictions"),
    "local_rank": (None, "the launcher numbers its processes"),
    "hub_strategy": (None, "the finished folder is pushed once, in one commit"),
    "hub_always_push": (False, "the finished folder is pushed once, in one commit"),
    "hub_token": (None, "it would be written into files; log in with `hf auth login`"),
    "resume_from_checkpoint": (None, "pass --resume and the run's --output_dir"),
    "save_strategy": (None, "a checkpoint is saved at each evaluation; set --eval_strategy and --eval_steps"),
    "save_steps": (None, "a checkpoint is saved at each evaluation; set --eval_strategy and --eval_steps"),
    "load_best_model_at_end": (True, "the best checkpoint is always loaded; set --metric_for_best_model"),
    "restore_callback_states_from_checkpoint": (True, "a resumed run goes on as if it had not been interrupted"),
    "label_names": (["labels"], "the task names its labels"),
    "remove_unused_columns": (False, "the task keeps the columns that the model reads"),
    "batch_eval_metrics": (True, "metrics are always fed batch by batch"),
    "eval_do_concat_batches": (True, "metrics are always fed batch by batch"),
    "prediction_loss_only": (False, "metrics choose the checkpoint and make the report"),
    "length_column_name": ("length", "the task counts the tokens"),
    "include_for_metrics": ([], "metrics read outputs and labels"),
    "logging_nan_inf_filter": (False, "a loss that is no number ends the run"),
    "auto_find_batch_size": (False, "pass --fit_batch, which keeps the rows of an update"),
    "bf16_full_eval": (False, "a report measures in the precision in which the folder is loaded"),
    "fp16_full_eval": (False, "a report measures in the precision in which the folder is loaded"),
    "use_cache": (False, "no task here generates while it trains"),
    "parallelism_config": (None, "pass one of accelerate_configs/ to `accelerate launch --config_file`"),
    "debug": ("", "its underflow_overflow stops at the first attention mask, which is no number; leave it out"),
}
"""TrainingArguments that a recipe sets itself, or that reach nothing -> (what holds in every run, what to do instead);
None where no value of the user's would be heard."""
NO_OPTIM_ARGS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor")
"""Optimizers for which transformers does not read `optim_args`."""
PUSHED = ("push_to_hub", "hub_model_id", "hub_revision")
"""What `hftl.results.publish` reads; the base Trainer would push checkpoints while it trains."""


def training_arguments(recipe: RecipeSettings, strategy: Strategy, checkpoints: Path) -> transformers.TrainingArguments:
    """TrainingArguments with defaults fit for fine-tuning; making them starts the processes.

    Raises:
        UserError: TrainingArguments refuse a value.
    """
    if recipe.max_steps == 0:
        raise UserError("--max_steps expected a whole number of 1 or more, or -1 for no limit; 0 came.")
    if recipe.fit_batch and recipe.settings().get("max_tokens_per_batch") is not None:
        raise UserError("--fit_batch counts rows and --max_tokens_per_batch counts tokens. Leave out one of them.")
    for name, (value, cure) in OURS.items():
        if recipe.training.get(name) not in (None, value):
            raise UserError(f"--{name} is not for the user of a recipe: {cure}.")
    chosen = {
        "per_device_eval_batch_size": 64,
        "eval_strategy": "epoch",
        "logging_steps": 0.02,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else torchrun's processes would each think they are alone
    } | {name: value for name, value in recipe.training.items() if name not in PUSHED}
    own = {
        name: getattr(recipe, name)
        for name in transformers.TrainingArguments.__dataclass_fields__
        if hasattr(recipe, name) and name not in ("output_dir", "learning_rate", "task")
    }
    rate = recipe.learning_rate if recipe.learning_rate is not None else strategy.lr
    try:
        args = transformers.TrainingArguments(
            **own
            | {"learning_rate": 5e-5 if rate is None else rate}
            | chosen
            | {name: value for name, (value, _) in OURS.items() if value is not None}
            # `selection` sets these two
            | {"output_dir": str(checkpoints), "save_strategy": "no", "load_best_model_at_end": False}
        )
    except (ValueError, TypeError, FileNotFoundError) as failure:
        reason = " ".join(str(failure).split()).replace(" use_cpu", " --use_cpu")
        raise UserError(f"transformers refuses these settings: {reason}") from failure
    refuse_unread(recipe, args)
    devices.shard_on_cpu()
    return args


def refuse_unread(recipe: RecipeSettings, args: transformers.TrainingArguments) -> None:
    """Raise `UserError` where a setting was given that nothing reads, since another is not as it needs."""
    evaluates, optim = args.eval_strategy != "no", str(getattr(args.optim, "value", args.optim))
    reporters = [one for one in cast(list[str], args.report_to) if one != "none"]
    trackio, readers = "trackio" in reporters, args.dataloader_num_workers > 0
    low_rank = "galore" in optim or "apollo" in optim
    without_moments = optim in ("sgd", "adagrad", "rmsprop", "adafactor")
    needs = {
        "eval_steps": (args.eval_strategy == "steps", "--eval_strategy steps"),
        **dict.fromkeys(
            ("eval_delay", "metric_for_best_model", "greater_is_better", "early_stopping_patience"),
            (evaluates, "--eval_strategy epoch or steps"),
        ),
        "logging_steps": (args.logging_strategy == "steps", "--logging_strategy steps"),
        "run_name": (reporters, "--report_to"),
        **dict.fromkeys(
            ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
            (trackio, "--report_to trackio"),
        ),
        "hub_private_repo": (trackio or recipe.training.get("push_to_hub"), "--push_to_hub"),
        "optim_target_modules": (low_rank, "--optim galore_adamw or apollo_adamw"),
        "optim_args": (optim not in NO_OPTIM_ARGS, "an --optim that reads them"),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), (not without_moments, "--optim adamw_torch")),
        "liger_kernel_config": (args.use_liger_kernel, "--use_liger_kernel"),
        **dict.fromkeys(
            ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
            (args.activation_checkpointing, "--activation_checkpointing true"),
        ),
        **dict.fromkeys(
            ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor"),
            (readers, "--dataloader_num_workers of 1 or more"),
        ),
        "fsdp_config": (args.fsdp, "--fsdp"),
    }
    given = recipe.training | {"early_stopping_patience": recipe.early_stopping_patience}
    defaults = training_settings() | recipe.own(recipe.task)
    for name, (read, need) in needs.items():
        if given.get(name) not in (None, False, 0, defaults[name].default) and not read:
            raise UserError(f"--{name} is read only with {need}, which is not set. Pass that, or leave --{name} out.")
    if (mode := args.torch_compile_mode) is not None and mode not in (known := torch._inductor.list_mode_options()):
        raise UserError(f"--torch_compile_mode takes {', '.join(known)}; {mode} came.")


def suit_machine(
    recipe: RecipeSettings,
    args: transformers.TrainingArguments,
    model: nn.Module,
    decoded: bool = False,
    steps: bool = True,
) -> None:
    """Choose the precision that nobody chose, and lay the model's weights out as this machine computes fastest.

    Must come before the Trainer is made, which reads the precision once. `--bf16`, `--fp16` and accelerate's own
    `mixed_precision` go first; DeepSpeed has its own settings and is left alone.

    Args:
        decoded: whether rows are decoded when they are read; processes that do so are chosen, too.
        steps: whether it trains; features are what a report measures, and who loads the folder computes in float32.

    Raises:
        UserError: float16 was asked of a CPU.
    """
    if not steps or (recipe.bf16 is False and not args.fp16):
        args.mixed_precision = "no"  # over what `accelerate launch` has put into the environment
    elif recipe.bf16 is None and args.mixed_precision == "no" and args.deepspeed_plugin is None:
        args.mixed_precision = "bf16" if kernels.bf16_pays(model, args.device) else "no"
    if args.mixed_precision == "fp16" and args.device.type == "cpu":
        raise UserError("Expected a GPU for float16; a CPU would go on in float32. Leave --fp16 out, or pass --bf16.")
    args.bf16, args.fp16 = args.mixed_precision == "bf16", args.mixed_precision == "fp16"
    if decoded and "dataloader_num_workers" not in recipe.training:
        args.dataloader_num_workers = kernels.readers(args.device)
    if kernels.channels_last_pays(model, args.device, args.mixed_precision):
        model.to(memory_format=torch.channels_last)


def selection(
    args: transformers.TrainingArguments,
    names: Sequence[str],
    lower: Collection[str],
    others: Collection[str] | None = (),
    select: str = "source",
) -> transformers.TrainingArguments:
    """Keep the checkpoint that is best on valid by the headline metric, and say so to the base Trainer.

    Args:
        names: of the metrics, the headline first.
        lower: of which less is better.
        others: names of the user's own metrics; None where they are not known before the first evaluation.
        select: else a criterion of `hftl.tasks.metrics.criteria`, or "oracle", the headline metric on the target.
    """
    if args.eval_strategy == "no":
        return args
    if select != "source":
        if args.metric_for_best_model is not None:
            raise UserError("--select and --metric_for_best_model both choose the checkpoint. Leave out one of them.")
        args.metric_for_best_model = f"eval_{select}"
        args.greater_is_better = CRITERIA.get(select, names[0] not in lower)
        return _kept_at_evaluations(args)
    metric = (args.metric_for_best_model or names[0]).removeprefix("eval_")
    measured = ["loss", *names, *(others or ())]
    if metric not in measured and others is not None:
        raise UserError(
            f"--metric_for_best_model {metric} is not measured here; there is {', '.join(measured)}."
            f"{suggest(metric, measured)}"
        )
    args.metric_for_best_model = f"eval_{metric}"
    if args.greater_is_better is None or metric in names:
        args.greater_is_better = metric not in lower
    return _kept_at_evaluations(args)


def _kept_at_evaluations(args: transformers.TrainingArguments) -> transformers.TrainingArguments:
    args.load_best_model_at_end = True
    args.save_strategy, args.save_steps = args.eval_strategy, args.eval_steps or args.save_steps
    return args


def stop_early(recipe: RecipeSettings, trainer: RatedTrainer) -> None:
    """Have a run end early, unless the patience is 0 or nothing is evaluated, or the strategy aligns two domains.

    Valid is the source's: it no longer rises while the target still gains, and the alignment's schedule has to end.
    """
    patience = recipe.early_stopping_patience
    if patience > 0 and trainer.args.eval_strategy != "no" and not trainer.strategy.streams:
        start = patience_from(trainer.groups, transformers.SchedulerType(trainer.args.lr_scheduler_type).value)
        trainer.add_callback(EarlyStopping(patience, start))
