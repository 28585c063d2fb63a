"""A run that was stopped, resumed, killed and resumed ends like one that was left alone, whatever it trains and how."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cut_runs import Killed, at_step, kill, same, send, stopped

from hftl import Recipe, Report

TEXT = {"model": "{bert}", "data": "{reviews}"}
IMAGE = {"task": "image-classification", "model": "{cnn}", "data": "{colours}"}
DOMAINS = TEXT | {"data": "{domains}", "domain": "domain", "target": "pan"}
TASKS = {"model": "{bert}", "tasks": ["mood={reviews}", "pairs={pairs}"], "mixing": "annealed"}

ROWS: dict[str, dict[str, Any]] = {
    "rates by depth": TEXT | {"strategy": "LayerDecay(0.7)"},
    "a head that is solved": TEXT | {"head": "auto"},
    "an adapter": TEXT | {"strategy": "LoRA(r=4)"},
    "layers that join in one by one": TEXT | {"strategy": "GradualUnfreeze"},
    "what frozen layers gave is kept": TEXT | {"strategy": "LastLayers(1)"},
    "early stopping": TEXT | {"learning_rate": 1e-12, "num_train_epochs": 8, "early_stopping_patience": 1},
    "a budget of tokens": TEXT | {"max_tokens_per_batch": 200},
    "augmented texts": TEXT | {"augment": "EDA"},
    "augmented images": IMAGE | {"augment": "RandAugment(n=1)"},
    "rows of a target": DOMAINS | {"strategy": "DANN"},
    "rows of a target, an adapter": DOMAINS | {"strategy": "LoRA(r=4) | CDAN"},
    "the target's hidden words": DOMAINS | {"strategy": "LoRA(r=4) | UDALM", "model": "{masked}"},
    "several tasks": TASKS
    | {"mixing": "annealed", "weighting": "uncertainty", "pcgrad": True, "gradient_accumulation_steps": 3},
    "masked tokens": TEXT | {"task": "fill-mask"},
}
QUICK = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "logging_steps": 1}
QUICK |= {"head": "random", "disable_tqdm": True, "save_total_limit": 1}


@pytest.fixture(scope="module")
def places(tiny_bert, tiny_cnn, reviews_csv, colour_folder, domains_csv, pairs_csv, tmp_path_factory) -> dict[str, str]:
    masked = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("models") / "masked")
    transformers.AutoModelForMaskedLM.from_pretrained(tiny_bert).save_pretrained(masked)  # its tensors share memory
    given = {"bert": tiny_bert, "cnn": tiny_cnn, "reviews": reviews_csv, "colours": colour_folder}
    return given | {"domains": domains_csv, "pairs": pairs_csv, "masked": str(masked)}


def recipe(row: str, places: dict[str, str], folder: Path, **more: Any) -> Any:
    """A row's recipe, with the places of models and data in it."""
    filled: dict[str, Any] = QUICK | {"output_dir": str(folder)} | more
    for name, value in ROWS[row].items():
        one = isinstance(value, str)
        filled[name] = (
            value.format(**places) if one else [v.format(**places) for v in value] if isinstance(value, list) else value
        )
    return Recipe(**filled)


@pytest.fixture
def last(monkeypatch) -> dict[str, torch.Tensor]:
    """The weights after the last step that was made, before the best checkpoint takes their place."""
    found, plain = {}, transformers.trainer_callback.CallbackHandler.on_step_end

    def on_step_end(self, args, state, control):
        found.clear(), found.update({name: value.detach().clone() for name, value in self.model.named_parameters()})
        return plain(self, args, state, control)

    monkeypatch.setattr(transformers.trainer_callback.CallbackHandler, "on_step_end", on_step_end)
    return found


SLOW = (
    "augmented images",
    "rows of a target, an adapter",
    "the target's hidden words",
    "masked tokens",
    "a budget of tokens",
)


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.sweep if row in SLOW else ()) for row in ROWS])
def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(row, places, last, tmp_path, monkeypatch):
    """Stopped in the first epoch, at a checkpoint of its own; killed in the second, which loses what it did of that."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept by the whole run"))
    recipe(row, places, whole).run()
    steps = max(entry["step"] for entry in Report.from_folder(whole).history)
    expected = dict(last)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept by the cut run"))
    with monkeypatch.context() as patch:
        at_step(patch, steps // 4 + 1, send(signal.SIGTERM))
        assert stopped(recipe(row, places, cut)) == 75
    with monkeypatch.context() as patch:
        at_step(patch, steps // 2 + 2, kill)
        with pytest.raises(Killed):
            recipe(row, places, cut, resume=True).run()
    assert not (cut / "report.json").exists()
    assert [path.name for path in (cut / "checkpoints").glob("checkpoint-*")]
    recipe(row, places, cut, resume=True).run()
    assert all(torch.equal(value, last[name]) for name, value in expected.items())
    same(whole, cut)
