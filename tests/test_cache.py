"""Frozen work is done once, and nothing else changes: cached runs equal runs that compute everything anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hftl import Recipe
from hftl.train import trial

TEXT = {
    "head": "random",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-3,
    "disable_tqdm": True,
}
IMAGE = TEXT | {"task": "image-classification"}


def ran(tmp_path: Path, name: str, **settings) -> dict:
    """Run once; give the report as it was written."""
    assert Recipe(output_dir=str(tmp_path / name), **settings).run() is not None
    return json.loads((tmp_path / name / "report.json").read_text("utf-8"))


def losses(report: dict, name: str = "loss") -> list[float]:
    return [entry[name] for entry in report["history"] if name in entry]


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


STRATEGIES = ["LinearProbe", "LastLayers(1)", "ProbeThenTune(0.6)", "GradualUnfreeze(0.9)", "LoRA(r=2) | LastLayers(1)"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cached_text_run_has_the_same_losses_and_scores(strategy, tiny_bert, reviews_csv, own_cache, tmp_path):
    settings = TEXT | {"model": tiny_bert, "data": reviews_csv, "strategy": strategy, "logging_steps": 1}
    settings |= {"num_train_epochs": 6} if "Gradual" in strategy else {}  # so that a stage lasts for two epochs
    kept = ran(tmp_path, "kept_run", **settings)
    anew = ran(tmp_path, "anew", cache_gb=0, **settings)
    assert any(own_cache.rglob("*")), "nothing was kept"
    assert kept["forward_passes"] < anew["forward_passes"]
    assert losses(kept) == pytest.approx(losses(anew), rel=1e-4, abs=1e-5)
    assert losses(kept, "eval_loss") == pytest.approx(losses(anew, "eval_loss"), rel=1e-4, abs=1e-5)
    headline = kept["headline"]
    assert kept["test"][headline]["value"] == pytest.approx(anew["test"][headline]["value"], abs=1e-6)


@pytest.mark.parametrize("strategy", ["LinearProbe", "LastLayers(1)"])
def test_a_cached_image_run_has_the_same_losses_and_scores(strategy, tiny_cnn, colour_folder, own_cache, tmp_path):
    settings = IMAGE | {"model": tiny_cnn, "data": colour_folder, "strategy": strategy, "logging_steps": 1}
    kept = ran(tmp_path, "kept_run", **settings)
    anew = ran(tmp_path, "anew", cache_gb=0, **settings)
    assert kept["forward_passes"] < anew["forward_passes"]
    assert losses(kept) == pytest.approx(losses(anew), rel=1e-4, abs=1e-5)
    assert losses(kept, "eval_loss") == pytest.approx(losses(anew, "eval_loss"), rel=1e-4, abs=1e-5)


def rows_through(monkeypatch, part: str) -> list[int]:
    """Count the rows that go through a module of the model, from now on, over all runs."""
    seen: list[int] = []
    prepare = Recipe.prepare

    def counted(recipe: Recipe, *args):
        run = prepare(recipe, *args)
        module = run.trainer.model.get_submodule(part)
        module.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        return run

    monkeypatch.setattr(Recipe, "prepare", counted)
    return seen


def test_each_row_goes_once_through_the_frozen_part(tiny_cnn, colour_folder, own_cache, tmp_path, monkeypatch):
    seen = rows_through(monkeypatch, "timm_model.layer1.0.conv1")
    settings = IMAGE | {"model": tiny_cnn, "data": colour_folder, "strategy": "LinearProbe"}
    report = ran(tmp_path, "first", **settings)
    rows = report["data"]["rows"]
    search = 2 * 2 + 3 + 2 * 3  # looking for the place to start from, on a few rows
    search += trial.ROWS  # and for one batch that is tried
    whole = 2 * rows["valid"] + rows["test"]  # valid to be kept, then both at the end with the whole model
    assert rows["train"] + whole <= sum(seen) <= rows["train"] + whole + 2 * search
    seen.clear()
    ran(tmp_path, "second", **settings | {"seed": 7, "strategy": "LinearProbe", "learning_rate": 1e-3})
    assert sum(seen) <= rows["valid"] + rows["test"] + 2 * search, "a second run computed the frozen part again"


def test_what_does_not_fit_is_computed_anew_and_said(tiny_bert, reviews_csv, own_cache, tmp_path, capsys):
    settings = TEXT | {"model": tiny_bert, "data": reviews_csv, "strategy": "LastLayers(1)"}
    tight = ran(tmp_path, "tight", cache_gb=1e-5, **settings)
    assert "--cache_gb" in capsys.readouterr().out
    assert losses(tight) == losses(ran(tmp_path, "none", cache_gb=0, **settings))


def test_images_that_change_at_random_are_read_anew_each_time(
    tiny_cnn, colour_folder, own_cache, tmp_path, monkeypatch
):
    settings = IMAGE | {"model": tiny_cnn, "data": colour_folder, "strategy": "LinearProbe", "augment": "flip"}
    seen = rows_through(monkeypatch, "timm_model.layer1.0.conv1")
    report = ran(tmp_path, "free", **settings)
    assert sum(seen) >= settings["num_train_epochs"] * report["data"]["rows"]["train"]


def test_bfloat16_halves_what_is_kept(tiny_bert, reviews_csv, own_cache, tmp_path):
    settings = TEXT | {"model": tiny_bert, "data": reviews_csv, "strategy": "LastLayers(1)"}
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        before = sum(f.stat().st_size for f in own_cache.rglob("*") if f.is_file()) if own_cache.exists() else 0
        report = ran(tmp_path, dtype, cache_dtype=dtype, **settings)
        sizes[dtype] = sum(f.stat().st_size for f in own_cache.rglob("*") if f.is_file()) - before
        half = len(losses(report)) // 2
        assert sum(losses(report)[-half:]) < sum(losses(report)[:half])
    assert 0.4 < sizes["bfloat16"] / sizes["float32"] < 0.7


def test_decoded_images_are_read_from_disk_after_the_first_time(
    tiny_cnn, colour_folder, own_cache, tmp_path, monkeypatch
):
    from hftl.tasks.image import classification as image

    opened = []
    read = image.open_image
    monkeypatch.setattr(image, "open_image", lambda value: opened.append(1) or read(value))
    settings = IMAGE | {"model": tiny_cnn, "data": colour_folder, "strategy": "Full"}
    kept = ran(tmp_path, "kept_run", **settings)
    once = len(opened)
    opened.clear()
    anew = ran(tmp_path, "anew", cache_gb=0, **settings)
    assert once < len(opened) / 1.5
    assert losses(kept) == losses(anew)
