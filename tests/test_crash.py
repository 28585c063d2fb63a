"""A run that is cut short, by a kill, a signal or a machine that gives out, ends as if it had not been."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from cut_runs import Killed, at_step, kills, same, send, stopped

from hftl import Recipe
from hftl.errors import UserError
from hftl.results.folder import OutputFolder
from hftl.train.resume import manifest, stopping
from hftl.train.resume.checkpoints import sound_checkpoint
from hftl.train.resume.resuming import rotate
from hftl.train.trainer import Trainer

QUICK = {"num_train_epochs": 3, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "disable_tqdm": True}
QUICK |= {"save_total_limit": 1, "head": "random"}
EPOCH = 16
"""Steps of one over the 128 training rows."""


@pytest.fixture(scope="module")
def text(tiny_bert, reviews_csv):
    return QUICK | {"model": tiny_bert, "data": reviews_csv}


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> Path:
    """The folder of the run that nothing befell."""
    folder = tmp_path_factory.mktemp("crash") / "whole"
    Recipe(**text, output_dir=str(folder)).run()
    return folder


# --- signals ---


@pytest.mark.parametrize(
    ("number", "step", "code"),
    [(signal.SIGTERM, 21, 75), (signal.SIGUSR1, EPOCH - 1, 75), (signal.SIGINT, 3 * EPOCH - 1, 130)],
)
def test_a_signal_ends_the_step_writes_a_checkpoint_and_the_resumed_run_ends_alike(
    number, step, code, text, whole, tmp_path, monkeypatch, capfd
):
    """In the middle of an epoch, at the end of one, and at the end of the run."""
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        assert stopped(Recipe(**text, output_dir=str(folder))) == code
    assert (folder / "checkpoints" / f"checkpoint-{step + 1}" / manifest.NAME).stat().st_size
    assert "Add --resume to go on" in capfd.readouterr().err.splitlines()[-1]
    Recipe(**text, output_dir=str(folder), resume=True).run()
    same(whole, folder)


def test_a_second_signal_stops_at_once(text, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: [send(signal.SIGINT)(), send(signal.SIGINT)()])
    assert stopped(Recipe(**text, output_dir=str(tmp_path / "o"))) == 130
    assert not (tmp_path / "o").exists()


def test_a_signal_after_training_stops_at_once_and_the_last_checkpoint_is_there(text, whole, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", lambda *_: send(signal.SIGTERM)())
        assert stopped(Recipe(**text, output_dir=str(folder))) == 75
    steps: list[int] = []
    at_step(monkeypatch, 3 * EPOCH, lambda: steps.append(1))
    Recipe(**text, output_dir=str(folder), resume=True).run()
    assert not steps
    same(whole, folder)


def test_a_reader_of_rows_outlives_the_first_sigterm_and_another_child_does_not(monkeypatch):
    request = stopping.Request()
    request._process = -1  # as in a child
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, what: sent.append(what))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    for number in (signal.SIGINT, signal.SIGTERM):
        request.heard(number)
    assert not sent
    request.heard(signal.SIGTERM)
    assert sent == [signal.SIGTERM]
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: None)
    stopping.Request.heard(request, signal.SIGINT)
    assert sent == [signal.SIGTERM, signal.SIGINT]


# --- kills ---


@pytest.mark.launch
def test_a_run_that_was_killed_with_kill_9_ends_like_one_that_was_not(text, whole, tmp_path):
    """The moment is that of a checkpoint being written; `benchmarks/kills.py` does this at random moments."""
    flags = [f"--{name}={value}" for name, value in text.items()]
    run = kills.Watched(kills.Arm("text", "text_cls.py", flags), tmp_path)
    process = run.start()
    assert run.wait(process, run.begun)
    kills.end(process.pid)
    process.wait()
    how, wrong = kills.go_on(run)
    assert not wrong
    assert not kills.told_apart(run.arm, whole, run.folder, how == "anew")


@pytest.mark.parametrize("moment", ["writing a checkpoint", "writing the folder", "swapping the folder"])
def test_a_kill_while_something_is_written_loses_nothing(moment, text, whole, tmp_path, monkeypatch):
    folder, calls = tmp_path / "cut", []

    def dies(plain, after):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise Killed
            return plain(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if moment == "writing a checkpoint":
            patch.setattr(manifest, "seal", dies(manifest.seal, 1))
        elif moment == "writing the folder":
            patch.setattr(OutputFolder, "_fill", dies(OutputFolder._fill, 0))
        else:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(OutputFolder, "forget_checkpoints", dies(OutputFolder.forget_checkpoints, 1))
        with pytest.raises(Killed):
            Recipe(**text, output_dir=str(folder)).run()
    Recipe(**text, output_dir=str(folder), resume=True).run()
    same(whole, folder)


def test_a_run_that_had_stopped_early_makes_no_step_more_when_it_is_resumed(text, tmp_path, monkeypatch):
    settings = text | {"learning_rate": 1e-12, "num_train_epochs": 8, "early_stopping_patience": 2}
    Recipe(**settings, output_dir=str(tmp_path / "whole")).run()
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", lambda *_: send(signal.SIGTERM)())
        assert stopped(Recipe(**settings, output_dir=str(tmp_path / "cut"))) == 75
    Recipe(**settings, output_dir=str(tmp_path / "cut"), resume=True).run()
    same(tmp_path / "whole", tmp_path / "cut")


# --- torn checkpoints ---

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "partner.safetensors", manifest.STATE)


def checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    manifest.begin(path)
    for name in FILES:
        (path / name).write_bytes(os.urandom(5000))
    (path / manifest.STATE).write_text(json.dumps({"global_step": step, "best_global_step": best}))
    manifest.seal(path)
    return path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


@pytest.mark.parametrize("name", [*FILES, manifest.NAME])
@pytest.mark.parametrize("damage", [truncated, zeroed, flipped, Path.unlink])
def test_a_torn_checkpoint_is_passed_over(name, damage, tmp_path, capsys):
    first, second = checkpoint(tmp_path, 8), checkpoint(tmp_path, 16)
    assert sound_checkpoint(OutputFolder(tmp_path).checkpoints) == second
    damage(second / name)
    if (name, damage) == (manifest.NAME, Path.unlink):
        assert sound_checkpoint(OutputFolder(tmp_path).checkpoints) == second, "as one that plain transformers wrote"
        return
    assert sound_checkpoint(OutputFolder(tmp_path).checkpoints) == first
    said = capsys.readouterr().out
    assert said.startswith("checkpoint-16 is damaged: ")
    assert said.endswith("The run goes on from checkpoint-8.\n")
    assert not second.exists()


def test_without_the_best_checkpoint_the_last_is_of_no_use(tmp_path):
    best = checkpoint(tmp_path, 8)
    checkpoint(tmp_path, 16, best=8)
    flipped(best / "model.safetensors")
    with pytest.raises(UserError, match=r"the best one, checkpoint-8, is: model\.safetensors has changed"):
        sound_checkpoint(OutputFolder(tmp_path).checkpoints)


def test_a_run_goes_on_from_the_checkpoint_before_a_torn_one_and_ends_alike(text, whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        at_step(patch, 40, send(signal.SIGTERM))
        assert stopped(Recipe(**text, output_dir=str(folder))) == 75
    truncated(folder / "checkpoints" / "checkpoint-41" / "optimizer.pt")
    Recipe(**text, output_dir=str(folder), resume=True).run()
    assert "checkpoint-41 is damaged: optimizer.pt has" in capsys.readouterr().out
    same(whole, folder)


# --- what is kept, and what is in it ---


@pytest.mark.parametrize(("limit", "left"), [(None, 5), (1, 2), (2, 2), (3, 3)])
def test_the_limit_never_takes_the_best_or_the_last(limit, left, tmp_path):
    for step in (8, 16, 24, 32, 40):
        checkpoint(tmp_path, step)
        os.utime(tmp_path / "checkpoints" / f"checkpoint-{step}", (1e9 - step, 1e9 - step))  # the clock ran backwards
    rotate(tmp_path / "checkpoints", limit, {"checkpoint-40", "checkpoint-16"})
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"checkpoint-40", "checkpoint-16"} <= kept
    assert len(kept) == left


def test_at_any_moment_of_a_run_the_best_checkpoint_and_a_whole_one_are_there(text, tmp_path, monkeypatch):
    folder, seen = tmp_path / "o", []
    plain, best = manifest.begin, []

    def begin(path):
        if seen:
            names = {p.name for p in path.parent.iterdir() if not manifest.fault(p)}
            assert seen[-1] in names
            assert set(best) <= names
        plain(path)
        seen.append(path.name)

    def evaluated(self, metrics, trial):
        found = plain_best(self, metrics, trial)
        best[:] = [f"checkpoint-{self.state.best_global_step}"] if not found else []
        return found

    plain_best = Trainer._determine_best_metric
    monkeypatch.setattr(manifest, "begin", begin)
    monkeypatch.setattr(Trainer, "_determine_best_metric", evaluated)
    Recipe(**text | {"num_train_epochs": 5, "early_stopping_patience": 0}, output_dir=str(folder)).run()
    assert len(seen) == 5


def test_a_checkpoint_holds_no_arguments_and_no_pickle_is_opened_on_resuming(text, tmp_path, monkeypatch):
    folder = tmp_path / "o"
    with monkeypatch.context() as patch:
        at_step(patch, 2, send(signal.SIGTERM))
        assert stopped(Recipe(**text, output_dir=str(folder))) == 75
    kept = folder / "checkpoints" / "checkpoint-3"
    assert not (kept / "training_args.bin").exists()

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (kept / manifest.NAME).unlink()  # as of a checkpoint from elsewhere
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (kept / name).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(UserError, match="is a pickle with more than tensors in it, which is not opened"):
        Recipe(**text, output_dir=str(folder), resume=True).run()
    assert not (tmp_path / "executed").exists()


# --- a machine that gives out ---


def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_one_before(text, whole, tmp_path, monkeypatch, capsys):
    """The system refuses to let a file grow, in the second epoch."""
    folder, before = tmp_path / "cut", resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        at_step(patch, 20, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1])))
        try:
            code = stopped(Recipe(**text, output_dir=str(folder)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert said.startswith("error: No space is left on the disk")
    assert "Add --resume to go on" in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"checkpoint-{EPOCH}"]
    Recipe(**text, output_dir=str(folder), resume=True).run()
    same(whole, folder)


def test_memory_that_runs_out_leaves_the_last_checkpoint(text, tmp_path, monkeypatch, capsys):
    def fails():
        raise MemoryError

    at_step(monkeypatch, 20, fails)
    assert stopped(Recipe(**text, output_dir=str(tmp_path / "o"))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Memory ran out" in said
    assert "Add --resume" in said


def test_a_clock_that_jumps_changes_seconds_only(text, whole, tmp_path, monkeypatch):
    rng, plain = random.Random(3), time.time
    monkeypatch.setattr(time, "time", lambda: plain() + rng.choice((-86400.0, 0.0, 86400.0)))
    Recipe(**text, output_dir=str(tmp_path / "o")).run()
    same(whole, tmp_path / "o")


def test_two_runs_do_not_write_to_one_folder(on_text, tmp_path) -> None:
    folder = tmp_path / "run"
    with OutputFolder(folder).locked(), pytest.raises(UserError, match=r"Another run writes to .*run at this moment"):
        Recipe(**on_text, output_dir=str(folder)).run()
    with OutputFolder(folder).locked():
        assert not folder.exists(), "what was refused leaves nothing"
