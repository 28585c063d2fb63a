"""Private names of libraries that hftl relies on, each with what it relies on and the file to look at on a change."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import datasets
import peft
import pytest
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import nn

from hftl.models import fresh, wrapped

METHODS = {
    "_save_checkpoint": ("model trial", "train/resume/resuming.py"),
    "_get_output_dir": ("trial", "train/resume/resuming.py"),
    "_load_from_checkpoint": ("resume_from_checkpoint model", "train/resume/resuming.py"),
    "_load_best_model": ("", "train/resume/resuming.py"),
    "_issue_warnings_after_load": ("load_result", "train/resume/resuming.py"),
    "_load_optimizer_and_scheduler": ("checkpoint", "train/resume/resuming.py, train/trainer.py"),
    "_load_rng_state": ("checkpoint", "train/resume/resuming.py"),
    "_init_training_state": (
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "train/resume/resuming.py",
    ),
    "_finalize_training": ("trial num_train_samples start_time", "train/resume/resuming.py"),
    "_save": ("output_dir state_dict", "train/several.py"),
    "_save_optimizer_and_scheduler": ("output_dir", "train/trainer.py"),
    "_clip_grad_norm": ("model", "train/rated.py"),
    "_prepare_for_training": ("max_steps train_dataloader resume_from_checkpoint", "train/rated.py"),
    "_get_train_sampler": ("train_dataset", "train/reading.py"),
    "_get_eval_sampler": ("eval_dataset", "train/reading.py"),
    "_get_num_items_in_batch": ("batch_samples device", "train/trainer.py, train/several.py"),
}
"""Methods of transformers.Trainer that are overridden or called -> their parameters, and where in hftl/."""

ATTRIBUTES = {
    "_tr_loss": "train/resume/resuming.py",
    "_total_loss_scalar": "train/resume/resuming.py",
    "_globalstep_last_logged": "train/resume/resuming.py",
    "_initial_global_step": "train/resume/resuming.py",
    "_train_batch_size": "train/memory.py, train/several.py",
}
"""Attributes of transformers.Trainer -> where in hftl/."""

NAMES = [
    (datasets.Dataset.from_dict({"a": [1]}), "_fingerprint", "tasks/text/texts.py"),
    (transformers.AutoModel, "_model_mapping", "tasks/networks/dense.py"),
]


@pytest.mark.parametrize("name", METHODS)
def test_a_private_method_of_the_trainer_takes_what_it_took(name: str) -> None:
    parameters, file = METHODS[name]
    assert hasattr(transformers.Trainer, name), f"transformers.Trainer has no {name} any more: see hftl/{file}"
    found = [word for word in inspect.signature(getattr(transformers.Trainer, name)).parameters if word != "self"]
    assert found == parameters.split(), f"transformers.Trainer.{name} takes {found} now: see hftl/{file}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_of_the_trainer_is_still_used(name: str) -> None:
    used = f"self.{name}" in inspect.getsource(transformers.Trainer)
    assert used, f"transformers.Trainer has no {name} any more: see hftl/{ATTRIBUTES[name]}"


@pytest.mark.parametrize(("owner", "name", "file"), NAMES, ids=[name for _, name, _ in NAMES])
def test_a_private_name_of_a_library_is_there(owner: Any, name: str, file: str) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: see hftl/{file}"


def test_what_accelerate_is_told_of_its_processes_holds_for_the_state_that_it_goes_by() -> None:
    state = PartialState()
    kept = state.distributed_type
    try:
        state.distributed_type = DistributedType.MULTI_GPU
        assert PartialState().distributed_type == DistributedType.MULTI_GPU, "see hftl/train/devices.py: shard_on_cpu"
    finally:
        state.distributed_type = kept


def test_from_pretrained_marks_the_parameters_that_it_loads(tiny_bert) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    assert set(fresh.came_fresh(model)) == {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")
    }, "see hftl/models/fresh.py"


def test_accelerate_puts_the_forward_of_a_model_that_it_wraps_aside_under_this_name() -> None:
    AcceleratorState._reset_state()  # another test of this process may have chosen another precision
    model: Any = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(nn.Linear(2, 2))
    assert model._original_forward.__func__ is nn.Linear.forward, "see hftl/models/cut.py"


def test_peft_names_what_it_wraps_as_it_did() -> None:
    model = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    names = [name for name, _ in model.named_parameters()]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["body"], modules_to_save=["head"]))
    held = [name for name, _ in adapted.named_parameters() if "lora_" not in name and "original_module" not in name]
    found = [wrapped.inside(wrapped.out_of_peft(name)) for name in held]
    changed = "peft names what it wraps otherwise: see hftl/models/wrapped.py"
    assert sorted(found) == sorted(names), changed
    apart = [name for name, _ in adapted.named_parameters() if wrapped.set_aside(name)]
    assert len(apart) == 2, changed
    assert {wrapped.out_of_peft(wrapped.trained_copy(name)) for name in held if wrapped.trained_copy(name)} == {"head"}
    assert [wrapped.inside(wrapped.out_of_peft(name)) for name in held if wrapped.adapted(name)] == names[:2], changed
