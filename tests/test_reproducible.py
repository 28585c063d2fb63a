"""A run can be had again: from its seed alone, from its recipe.yaml, in another process; and it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from reports import classification
from test_report_page import page_of

from hftl import Recipe
from hftl.data.load import load
from hftl.run import outcome
from hftl.tasks.text.classification import TextClassification

RECIPES = Path(__file__).parents[1] / "recipes"
QUICK = ["--num_train_epochs", "2", "--per_device_train_batch_size", "32", "--learning_rate", "0.01", "--disable_tqdm"]
TIMES = {"seconds", "startup", "examples_per_second", "peak_memory", "command", "folder"}


def start(script: str, hash_seed: int, here: Path, *flags: str) -> str:
    """Run a recipe in a fresh process, in the folder above its data: a recipe.yaml keeps paths that lie below.

    `hash_seed` orders its sets and dicts of another kind otherwise.
    """
    env = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    words = [sys.executable, str(RECIPES / f"{script}.py"), *flags]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=here, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def untimed(folder: Path) -> dict[str, Any]:
    """report.json less its times, its command and its folder."""
    report = {n: v for n, v in json.loads((folder / "report.json").read_text()).items() if n not in TIMES}
    history = [
        {n: v for n, v in row.items() if "runtime" not in n and "per_second" not in n} for row in report["history"]
    ]
    return report | {"history": history}


@pytest.mark.launch
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("text_cls", "--augment EDA(alpha=0.3)"),
        ("image_cls", "--full_determinism --augment Flip --dataloader_num_workers 2"),
    ],
)
def test_a_fresh_process_gives_the_bytes_of_another_from_its_recipe_file(
    script: str, flags: str, tiny_bert: str, tiny_cnn: str, reviews_csv: str, colour_folder: str, tmp_path: Path
) -> None:
    model, data = (tiny_bert, reviews_csv) if script == "text_cls" else (tiny_cnn, colour_folder)
    one, two = tmp_path / "one", tmp_path / "two"
    here, given = tmp_path.parent, ["--model", model, "--data", data, *flags.split(), *QUICK]
    start(script, 1, here, *given, "--output_dir", str(one))
    said = start(script, 2, here, "--config", str(one / "recipe.yaml"), "--output_dir", str(two))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert untimed(one) == untimed(two)
    assert (one / "recipe.yaml").read_bytes() == (two / "recipe.yaml").read_bytes()
    assert "has changed" not in said


def test_another_seed_gives_other_weights(on_text: dict[str, str], tmp_path: Path) -> None:
    weights = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        Recipe(**on_text, seed=seed, max_steps=1, output_dir=str(folder)).run()
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_a_run_says_that_its_data_has_changed_since_its_recipe_was_written(
    on_text: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    data = tmp_path / "rows.csv"
    data.write_text(Path(on_text["data"]).read_text())
    settings = on_text | {"data": str(data), "max_steps": 1}
    Recipe(**settings, output_dir=str(tmp_path / "one")).run()
    written = yaml.safe_load((tmp_path / "one" / "recipe.yaml").read_text())
    Recipe(**written, output_dir=str(tmp_path / "same")).run()
    assert "has changed" not in capsys.readouterr().out
    data.write_text(data.read_text() + "one more row,positive\n")
    report = Recipe(**written, output_dir=str(tmp_path / "two")).run()
    said = [line for line in capsys.readouterr().out.splitlines() if "the data has changed" in line]
    assert len(said) == 1
    assert report is not None
    assert next(check for check in report.checks if check.name == "changed").level == "warn"
    again = yaml.safe_load((tmp_path / "two" / "recipe.yaml").read_text())
    assert again["data_sha256"] != written["data_sha256"]


def test_the_sha256_of_the_data_hangs_on_no_seed_and_no_file_name(reviews_csv: str, tmp_path: Path) -> None:
    renamed = tmp_path / "b.csv"
    renamed.write_text(Path(reviews_csv).read_text())
    roles = TextClassification.roles
    one = load(reviews_csv, roles, seed=1)
    assert one.origin == load(str(renamed), roles, seed=2, max_train_samples=9).origin
    assert one.fingerprints != load(reviews_csv, roles, seed=2).fingerprints
    renamed.write_text(renamed.read_text().replace("good", "fine", 1))
    assert one.origin != load(str(renamed), roles, seed=1).origin


@pytest.mark.parametrize(
    ("device", "changes", "says"),
    [
        ("cpu", {}, "number of threads \\(\\d+ here\\) give the same bytes"),
        ("cuda", {}, "atomic sums have no order"),
        ("cuda", {"full_determinism": True}, "kernels that add in a fixed order"),
        ("cpu", {"world_size": 4}, "summed over 4 processes"),
    ],
)
def test_the_report_says_what_was_not_deterministic(device: str, changes: dict[str, Any], says: str) -> None:
    args = {"device": torch.device(device), "world_size": 1, "full_determinism": False} | changes
    run = SimpleNamespace(trainer=SimpleNamespace(args=SimpleNamespace(**args)), recipe=Recipe())
    found = " ".join(outcome.reproduce(run))  # type: ignore[arg-type]
    assert re.search(says, found)
    assert says.split()[0] in page_of(classification(reproduce=[says])).text


def test_what_no_recipe_file_can_hold_is_said() -> None:
    args = SimpleNamespace(device=torch.device("cpu"), world_size=1, full_determinism=False)
    recipe = Recipe(data={"train": "a.csv"}, fit_batch=True)
    found = outcome.reproduce(SimpleNamespace(trainer=SimpleNamespace(args=args), recipe=recipe))  # type: ignore[arg-type]
    assert [sentence.split()[0] for sentence in found] == ["Every", "--fit_batch", "The"]
