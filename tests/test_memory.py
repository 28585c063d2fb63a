"""--fit_batch: what a row takes is measured, the largest micro-batch that fits is taken, the update stays the same."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from reports import classification
from torch import nn

from hftl import Recipe
from hftl.errors import UserError
from hftl.results.report import card, page
from hftl.results.report.report import Report
from hftl.results.report.table import render
from hftl.run import outcome
from hftl.train import memory


@pytest.fixture
def text(on_text, tmp_path):
    return on_text | quick(tmp_path)


@pytest.fixture
def image(on_images, tmp_path):
    return on_images | quick(tmp_path)


def quick(tmp_path) -> dict:
    flags = {"eval_strategy": "no", "disable_tqdm": True, "cache_gb": 0.0, "max_steps": 3, "learning_rate": 1e-2}
    return {"output_dir": str(tmp_path / "run"), "overwrite": True, "optim": "sgd", **flags}


def room(monkeypatch, rows: int) -> None:
    """A machine on which so many rows fit, and no more."""
    monkeypatch.setattr(memory, "needs", lambda trainer: (1000, 10))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000 + 10 * rows)


# --- what is measured ---


def test_what_is_saved_for_backward_is_counted_in_bytes_without_the_weights():
    first, last, rows = nn.Linear(10, 20), nn.Linear(20, 3), torch.randn(7, 10)
    weights = {p.untyped_storage().data_ptr() for p in (*first.parameters(), *last.parameters())}
    counted = memory.saved_bytes(lambda: last(first(rows).tanh()).sum(), weights)
    assert counted == 4 * 7 * (10 + 20), "the input of the first layer, and the result of tanh, which two layers share"


def test_nothing_is_saved_under_layers_that_do_not_train():
    frozen, last, rows = nn.Linear(10, 20).requires_grad_(False), nn.Linear(20, 3), torch.randn(7, 10)
    weights = {p.untyped_storage().data_ptr() for p in (*frozen.parameters(), *last.parameters())}
    assert memory.saved_bytes(lambda: last(frozen(rows).tanh()).sum(), weights) == 4 * 7 * 20


@pytest.mark.parametrize("task", ["text", "image"])
def test_a_few_rows_tell_what_many_take(request, task):
    trainer = Recipe(**request.getfixturevalue(task)).prepare().trainer
    fixed, row = memory.needs(trainer)
    trained = sum(p.numel() * 4 for p in trainer.model.parameters())
    predicted = fixed - 3 * trained + 24 * row  # gradients and two numbers of an optimizer for each weight
    assert predicted == pytest.approx(memory.SPACE * memory.saved_by(trainer, 24), rel=0.01)


def test_the_longest_rows_are_measured(text):
    trainer = Recipe(**text).prepare().trainer
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda m, a, inputs: seen.append(inputs["input_ids"].shape), with_kwargs=True
    )
    memory.loss_of(trainer, 3)
    assert seen == [(3, trainer.train_dataset.lengths.max())]


def test_frozen_layers_leave_room_for_more_rows(text):
    full = memory.needs(Recipe(**text).prepare().trainer)
    probe = memory.needs(Recipe(**text, strategy="LinearProbe").prepare().trainer)
    assert probe[0] < full[0] / 5
    assert probe[1] < full[1] / 5


def test_bfloat16_leaves_room_for_more_rows(image):
    wide, narrow = (memory.needs(Recipe(**image, bf16=bf16).prepare().trainer)[1] for bf16 in (False, True))
    assert narrow < 0.75 * wide


@pytest.mark.parametrize("task", ["text", "image"])
def test_measuring_leaves_everything_as_it_was(request, task):
    trainer = Recipe(**request.getfixturevalue(task), max_train_samples=20).prepare().trainer
    model = trainer.model.eval()
    next(model.children()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with memory.untouched(model):
        assert memory.step_fits(trainer, 4)
        np.random.rand(), random.random()
        assert any(module.training for module in model.modules())
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_moves_the_statistics_that_are_put_back(image):
    trainer = Recipe(**image).prepare().trainer
    before = {name: value.clone() for name, value in trainer.model.named_buffers()}
    memory.loss_of(trainer, 4)
    moved = [name for name, value in trainer.model.named_buffers() if not torch.equal(value, before[name])]
    assert moved, "else the test above shows nothing"


# --- what is chosen ---


@pytest.mark.parametrize(
    ("batch", "accumulated", "fit", "micro", "times"),
    [
        (16, 1, 100, 16, 1),
        (16, 4, 100, 64, 1),
        (16, 1, 9, 8, 2),
        (16, 1, 1, 1, 16),
        (12, 1, 5, 4, 3),
        (7, 1, 6, 1, 7),
        (16, 1, 0, 1, 16),
    ],
)
def test_the_largest_divisor_that_fits_is_accumulated_to_the_batch_asked_for(
    text, monkeypatch, batch, accumulated, fit, micro, times
):
    room(monkeypatch, fit)
    asked = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    trainer = Recipe(**text, **asked, fit_batch=True).prepare().trainer
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (micro, times)
    assert trainer.get_train_dataloader().batch_size in (micro, None)
    assert trainer.get_total_train_batch_size(trainer.args) == batch * accumulated


@pytest.mark.parametrize("strategy", ["Full", "LoRA(r=4)"])
def test_the_update_is_the_one_that_was_asked_for(text, monkeypatch, strategy):
    def weights(**settings) -> dict[str, torch.Tensor]:
        run = Recipe(**text, strategy=strategy, per_device_train_batch_size=16, **settings).prepare()
        for module in run.trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # draws by micro-batch
        start = {name: value.detach().clone() for name, value in run.trainer.model.named_parameters()}
        run.train()
        return {name: value.detach() - start[name] for name, value in run.trainer.model.named_parameters()}

    room(monkeypatch, 4)
    whole, fitted = weights(), weights(fit_batch=True)
    assert max(float(change.abs().max()) for change in whole.values()) > 1e-3, "nothing was learned"
    for name, change in whole.items():
        torch.testing.assert_close(fitted[name], change, atol=1e-5, rtol=0, msg=name)


def test_where_all_fits_the_run_is_the_same_to_the_bit(text):
    plain, fitted = Recipe(**text).run(), Recipe(**text, fit_batch=True).run()
    losses = [[entry.get("loss") for entry in report.history] for report in (plain, fitted)]
    assert losses[0] == losses[1]
    assert plain.test == fitted.test


def test_batchnorm_gets_two_rows_at_least_and_the_change_is_said(image, monkeypatch, capsys):
    room(monkeypatch, 1)
    trainer = Recipe(**image, per_device_train_batch_size=6, fit_batch=True).prepare().trainer
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (2, 3)
    assert "; BatchNorm sees 2 rows, not 6" in capsys.readouterr().out


def test_what_was_chosen_is_said_and_written_down(text, monkeypatch, capsys, tmp_path):
    room(monkeypatch, 5)
    report = Recipe(**text, per_device_train_batch_size=8, fit_batch=True).run()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit_batch")]
    assert len(said) == 1
    assert said[0].startswith("fit_batch  4 rows at a time, 2 times for an update of 8 (")
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    for settings in (report.settings, written):
        assert (settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]) == (4, 2)


def test_where_even_one_row_may_not_fit_that_is_said(text, monkeypatch, capsys):
    room(monkeypatch, 0)
    Recipe(**text, fit_batch=True).prepare()
    assert "even one row may not fit" in capsys.readouterr().out


# --- the try on a GPU ---


@pytest.mark.parametrize(("fits", "found"), [(16, 16), (7, 4), (1, 1)])
def test_a_real_step_that_finds_no_memory_is_tried_again_with_fewer_rows(text, monkeypatch, fits, found):
    trainer, real = Recipe(**text).prepare().trainer, memory.loss_of

    def scarce(trainer, rows):
        if rows > fits:
            raise torch.OutOfMemoryError("no memory")
        return real(trainer, rows)

    monkeypatch.setattr(memory, "loss_of", scarce)
    assert memory.tried(trainer, [1, 2, 4, 8, 16]) == found
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_gpu_on_which_not_one_row_fits_gets_a_sentence(text, monkeypatch):
    def none(trainer, rows):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(memory, "loss_of", none)
    with pytest.raises(UserError, match=r"Not even one row at a time fits.*--max_length"):
        memory.tried(Recipe(**text).prepare().trainer, [1, 2])


# --- the machine ---


def test_the_memory_of_a_cpu_is_shared_with_others_and_with_the_processes_of_the_run(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    monkeypatch.setattr(memory, "container_room", lambda: 1 << 62)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.free_bytes(torch.device("cpu")) == 8000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_bytes(torch.device("cpu")) == 4000


def test_the_memory_of_a_gpu_counts_what_torch_holds_and_does_not_use(monkeypatch):
    for name, value in {"mem_get_info": (600, 9000), "memory_reserved": 500, "memory_allocated": 100}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda", 0)) == 950


def test_the_limit_of_a_container_counts_and_file_pages_do_not(tmp_path):
    assert memory.container_room(tmp_path) > 1e18
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.container_room(tmp_path) > 1e18
    for name, text in {"max": "1000\n", "current": "700\n", "stat": "anon 500\ninactive_file 200\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.container_room(tmp_path) == 500


def test_all_processes_take_the_least_that_fits_one_of_them():
    gathered = SimpleNamespace(num_processes=2, device="cpu", gather=lambda mine: torch.cat([mine, torch.tensor([4])]))
    assert memory.least(SimpleNamespace(accelerator=gathered), 8) == 4


# --- what does not go together ---


def test_rows_and_tokens_are_not_counted_at_once(text):
    with pytest.raises(UserError, match="--fit_batch counts rows and --max_tokens_per_batch counts tokens"):
        Recipe(**text, fit_batch=True, max_tokens_per_batch=100).prepare()


def test_the_base_trainers_own_search_points_to_fit_batch(text):
    with pytest.raises(UserError, match=r"--auto_find_batch_size is not for .* pass --fit_batch"):
        Recipe(**text, auto_find_batch_size=True).prepare()


def test_a_device_whose_memory_is_not_known_is_refused():
    trainer = SimpleNamespace(args=SimpleNamespace(device=torch.device("mps")))
    with pytest.raises(UserError, match="this is mps"):
        memory.fit_batch(trainer)


# --- what a report says of memory ---


def test_the_peak_grows_by_the_bytes_that_are_held():
    before = outcome.resident_peak()
    held = b"x" * (before - psutil.Process().memory_info().rss + 100_000_000)
    assert outcome.resident_peak() - before == pytest.approx(100_000_000, rel=0.2)
    del held


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux lets a process inherit its parent's peak"
)
def test_the_peak_of_the_parent_does_not_count(monkeypatch):
    monkeypatch.setattr(outcome.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1 << 40))
    assert outcome.resident_peak() < 1 << 40


def test_where_there_is_no_proc_the_peak_is_getrusages(monkeypatch):
    def absent(*about, **settings):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(outcome.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3000))
    monkeypatch.setattr(outcome.sys, "platform", "linux")
    assert outcome.resident_peak() == 3000 * 1024
    monkeypatch.setattr(outcome.sys, "platform", "darwin")
    assert outcome.resident_peak() == 3000


def test_the_most_of_all_processes_is_reported():
    gathered = SimpleNamespace(gather=lambda mine: torch.cat([mine, torch.tensor([1 << 50])]))
    args = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    assert outcome.peak_memory(SimpleNamespace(args=args, accelerator=gathered)) == 1 << 50


def test_a_run_that_stays_off_the_gpu_reports_resident_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    assert outcome.peak_memory(SimpleNamespace(args=args)) == outcome.resident_peak() > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_the_peak_stands_in_table_page_and_card_and_says_whose_it_is(processes):
    report = classification(peak_memory=1_240_000_000, processes=processes)
    shown = Report.from_dict(report.as_dict())
    for text in (render(report), card.markdown(shown)):
        assert ("peak memory 1.2 GB a process" in text) == (processes > 1)
        assert "peak memory 1.2 GB" in text
    said = {1: "<dt>peak memory</dt>", 2: "<dt>peak memory of a process</dt>"}[processes]
    assert f"{said}<dd>1.2 GB</dd>" in page.html(shown)
