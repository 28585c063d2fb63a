"""What the machine computes fast: precision by default, the layout of convolutions, compiled models, the optimizer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

import hftl
from hftl import Recipe
from hftl.errors import UserError
from hftl.results import load as hub
from hftl.run import outcome
from hftl.run.prepare import Run
from hftl.run.steps import of_steps
from hftl.train import kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture
def fast(monkeypatch):
    """A machine with bfloat16 in hardware, for which no model is too small."""
    monkeypatch.setattr(kernels, "native_bf16", lambda device: True)
    monkeypatch.setattr(kernels, "ENOUGH", 0)


@pytest.fixture
def text(on_text, tmp_path):
    return on_text | quick(tmp_path)


@pytest.fixture
def image(on_images, tmp_path):
    return on_images | quick(tmp_path)


def quick(tmp_path) -> dict:
    return {"output_dir": str(tmp_path / "run"), "max_steps": 3, "learning_rate": 5e-3, "disable_tqdm": True}


def dtypes_seen(run: Run) -> dict[bool, set[torch.dtype]]:
    """What the layers that multiply matrices give, by whether the model trains, filled while the run goes on."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for module in run.trainer.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, output: seen[m.training].add(output.dtype))
    return seen


# --- precision ---


@pytest.mark.parametrize(
    ("found", "pays"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
def test_a_cpu_takes_bfloat16_where_it_has_instructions_for_it(monkeypatch, found, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert kernels.bf16_pays(nn.Linear(1000, 1000, device="meta"), CPU) == pays


def test_a_gpu_takes_bfloat16_where_it_does_not_emulate_it(monkeypatch):
    model, gpu = nn.Linear(1000, 1000, device="meta"), torch.device("cuda", 0)
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native or including_emulation
        )
        assert kernels.bf16_pays(model, gpu) == native


def test_hardware_that_was_not_measured_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert not kernels.native_bf16(torch.device("mps"))


def test_a_small_model_stays_in_float32(monkeypatch):
    monkeypatch.setattr(kernels, "native_bf16", lambda device: True)
    assert not kernels.bf16_pays(nn.Linear(998, 1000, device="meta"), CPU)
    assert kernels.bf16_pays(nn.Linear(1000, 1000, device="meta"), CPU)


@pytest.mark.parametrize("task", ["text", "image"])
def test_by_default_training_and_evaluation_compute_in_bfloat16_where_it_is_fast(fast, request, task):
    run = Recipe(**request.getfixturevalue(task)).prepare()
    seen = dtypes_seen(run)
    run.train()
    assert seen == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert {parameter.dtype for parameter in run.trainer.model.parameters()} == {torch.float32}


def test_the_precision_that_was_chosen_is_written_down(fast, text, tmp_path):
    assert Recipe(**text).run().settings["bf16"] is True
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["bf16"] is True
    assert json.loads((tmp_path / "run" / "report.json").read_text())["settings"]["bf16"] is True


@pytest.mark.parametrize("strategy", ["Full", "Features"])
def test_what_was_measured_is_what_the_folder_gives_in_the_precision_it_is_loaded_in(strategy, text, tmp_path):
    """P7."""
    steps = strategy == "Full"
    given = {name: value for name, value in text.items() if steps or not of_steps(name)}
    run = Recipe(**given, strategy=strategy, bf16=True).prepare()
    run.train()
    report = outcome.measure(run)
    run.write(report)
    rows = run.part.splits.test
    answers = hftl.load(tmp_path / "run")([rows[i]["text"] for i in range(len(rows))])
    names = run.part.splits.labels.names
    losses = [-np.log(one["scores"][names[rows[i]["label"]]]) for i, one in enumerate(answers)]
    assert report.test["log_loss"].value == pytest.approx(np.mean(losses), abs=1e-6)
    assert report.settings["bf16"] is steps


def test_where_bfloat16_is_slow_the_recipe_says_float32(text, tmp_path):
    Recipe(**text).run()
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (written["bf16"], written["fp16"]) == (False, False)


@pytest.mark.parametrize("launcher", ["no", "bf16"])
def test_a_precision_that_was_asked_for_is_kept(fast, text, monkeypatch, launcher):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    trainer = Recipe(**text, bf16=False).prepare().trainer
    assert trainer.accelerator.mixed_precision == "no"
    assert not trainer.args.bf16


def test_bfloat16_that_was_asked_for_is_kept_where_it_is_slow(text, monkeypatch):
    monkeypatch.setattr(kernels, "native_bf16", lambda device: False)
    assert Recipe(**text, bf16=True).prepare().trainer.accelerator.mixed_precision == "bf16"


def test_the_precision_of_the_launcher_is_kept_and_written_down(text, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = Recipe(**text).prepare()
    assert run.trainer.accelerator.mixed_precision == "bf16"
    assert run.settings["bf16"] is True


def test_float16_is_refused_on_a_cpu_where_it_would_mean_float32(text):
    with pytest.raises(UserError, match=r"Expected a GPU for float16.*--bf16"):
        Recipe(**text, fp16=True).prepare()


# --- layout ---


def test_convolutions_are_laid_out_by_channels_where_it_is_faster():
    cnn = nn.Sequential(nn.Conv2d(3, 1000, 20, device="meta"))
    cuda = torch.device("cuda", 0)
    assert kernels.channels_last_pays(cnn, CPU, "no")
    assert kernels.channels_last_pays(cnn, cuda, "bf16")
    assert not kernels.channels_last_pays(cnn, cuda, "no")
    assert not kernels.channels_last_pays(nn.Conv2d(3, 8, 3), CPU, "no"), "a small model gains nothing"
    assert not kernels.channels_last_pays(nn.Linear(1000, 1000, device="meta"), CPU, "no")


@pytest.mark.parametrize("strategy", ["Full", "LastLayers(1)", "LoRA(r=4)"])
def test_a_model_in_channels_last_saves_plain_tensors_and_reloads_the_same(image, tmp_path, monkeypatch, strategy):
    monkeypatch.setattr(kernels, "channels_last_pays", lambda *about: True)
    run = Recipe(**image, strategy=strategy).prepare()
    last = [p for p in run.trainer.model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    assert last, "the model was meant to train in channels_last"
    run.train()
    run.write(outcome.measure(run))
    pixels = torch.stack([torch.as_tensor(row["pixel_values"]) for row in run.part.rows["test"].plain([0, 1, 2])])
    with torch.inference_mode():
        expected = run.trainer.model.eval()(pixel_values=pixels).logits
        loaded = hub.load_folder(tmp_path / "run").model
        found = loaded(pixel_values=pixels).logits
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_both_layouts_learn_the_same(image, monkeypatch):
    def losses(last: bool) -> list[float]:
        monkeypatch.setattr(kernels, "channels_last_pays", lambda *about: last)
        report = Recipe(**image, overwrite=True, optim="sgd", logging_steps=1).run()
        return [entry["loss"] for entry in report.history if "loss" in entry]

    assert losses(True) == pytest.approx(losses(False), abs=1e-5)


# --- reading ahead ---


def test_images_are_decoded_ahead_for_a_gpu_and_by_a_cpu_itself(monkeypatch):
    monkeypatch.setattr(kernels.os, "sched_getaffinity", lambda process: range(6))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cuda = torch.device("cuda", 0)
    assert (kernels.readers(CPU), kernels.readers(cuda)) == (0, 5)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert kernels.readers(cuda) == 1, "the processes of a run share the cores"
    monkeypatch.setattr(kernels.multiprocessing, "get_start_method", lambda: "spawn")
    assert kernels.readers(cuda) == 0


@pytest.mark.parametrize(("task", "asked", "readers"), [("image", {}, 3), ("image", {"dataloader_num_workers": 1}, 1)])
def test_readers_are_chosen_for_images_unless_they_were_asked_for(request, monkeypatch, task, asked, readers):
    monkeypatch.setattr(kernels, "readers", lambda device: 3)
    assert Recipe(**request.getfixturevalue(task), **asked).prepare().trainer.args.dataloader_num_workers == readers


def test_texts_are_read_by_the_process_that_trains(text, monkeypatch):
    monkeypatch.setattr(kernels, "readers", lambda device: 3)
    assert Recipe(**text).prepare().trainer.args.dataloader_num_workers == 0


def test_readers_give_the_same_run(image):
    settings = image | {"max_steps": -1, "num_train_epochs": 2, "strategy": "LinearProbe", "overwrite": True}
    plain, ahead = Recipe(**settings).run(), Recipe(**settings, dataloader_num_workers=1).run()
    losses = [[entry.get("loss") for entry in report.history] for report in (plain, ahead)]
    assert losses[0] == losses[1]
    assert plain.test == ahead.test


# --- compiled models ---


@pytest.mark.parametrize(("task", "strategy"), [("text", "LastLayers(1)"), ("image", "Full")])
def test_a_compiled_model_learns_and_saves_what_the_plain_one_does(request, tmp_path, task, strategy):
    settings = request.getfixturevalue(task) | {"overwrite": True, "strategy": strategy, "cache_gb": 0.0}
    plain = Recipe(**settings).run()
    before = load_file(tmp_path / "run" / "model.safetensors")
    torch._dynamo.reset()
    compiled = Recipe(**settings, torch_compile=True, torch_compile_backend="eager").run()
    assert counters["stats"]["unique_graphs"], "nothing was compiled"
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0, msg=name)
    assert compiled.test["log_loss"].value == pytest.approx(plain.test["log_loss"].value, abs=1e-5)


@pytest.mark.launch
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_the_compiler_of_torch_compiles_a_recipe(image):
    torch._dynamo.reset()
    report = Recipe(**image | {"max_steps": 1, "eval_strategy": "no"}, torch_compile=True).run()
    assert report.settings["torch_compile"] is True
    assert report.test["accuracy"].n > 0


# --- the optimizer ---


def test_the_optimizer_is_the_fused_adamw(text):
    run = Recipe(**text).prepare()
    run.train()
    inner = run.trainer.optimizer.optimizer
    assert type(inner) is torch.optim.AdamW
    assert all(group["fused"] for group in inner.param_groups)


@pytest.mark.parametrize("strategy", ["LastLayers(1)", "LinearProbe", "LoRA(r=4)", "BitFit"])
def test_what_is_frozen_costs_no_optimizer_state_and_no_gradient(text, strategy):
    run = Recipe(**text, strategy=strategy).prepare()
    run.train()
    held = run.trainer.optimizer.optimizer.state
    trained = {id(p) for group in run.trainer.groups for p in group.parameters.values()}
    assert {id(parameter) for parameter in held} == trained
    frozen = [p for p in run.trainer.model.parameters() if id(p) not in trained]
    assert any(parameter.shape[0] > 60 for parameter in frozen), "the embeddings should be among what is frozen"
    assert all(parameter.grad is None for parameter in frozen)
