"""Two processes on one machine do what one does: the same update at the same global batch, the same valid metric."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = Path(__file__).parent.parent / "recipes" / "text_cls.py"


@pytest.fixture
def still_bert(tiny_bert, tmp_path) -> str:
    """The tiny BERT without dropout, whose draws would differ between one process and two."""
    folder = tmp_path / "still"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def start(processes: int, *flags: str, **env: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    found = subprocess.run(
        [*launcher, str(RECIPE), *flags, "--disable_tqdm"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.parametrize("strategy", ["Full", "LoRA(r=4)", "GradualUnfreeze", "DANN"])
def test_two_processes_make_the_update_of_one(strategy, still_bert, reviews_csv, tmp_path):
    common = ["--model", still_bert, "--data", reviews_csv, "--strategy", strategy, "--optim", "sgd"]
    common += ["--learning_rate", "0.5", "--max_steps", "1", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    common += ["--unlabelled", reviews_csv] if strategy == "DANN" else []
    start(1, *common, "--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "one"))
    start(2, *common, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "two"))
    weights = "adapter_model.safetensors" if "LoRA" in strategy else "model.safetensors"
    one, two = (load_file(tmp_path / name / weights) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    for split in ("valid", "test"):
        assert reports[0][split]["accuracy"]["n"] == reports[1][split]["accuracy"]["n"] == 16
        assert reports[0][split]["log_loss"]["value"] == pytest.approx(reports[1][split]["log_loss"]["value"], abs=1e-5)
        assert reports[0][split]["accuracy"] == reports[1][split]["accuracy"]
    losses = [next(e["loss"] for e in report["history"] if "loss" in e) for report in reports]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_two_processes_with_a_token_budget_end_as_one_that_accumulates(still_bert, reviews_csv, tmp_path):
    """Both see the same batches in the same updates, and the report names the right rows of a sorted evaluation."""
    common = ["--model", still_bert, "--data", reviews_csv, "--optim", "sgd", "--learning_rate", "0.1"]
    common += ["--max_tokens_per_batch", "150", "--num_train_epochs", "2"]
    start(1, *common, "--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path / "one"))
    start(2, *common, "--output_dir", str(tmp_path / "two"))
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    steps = [max(entry["step"] for entry in report["history"]) for report in (one, two)]
    assert steps[0] == steps[1] > 4
    for split in ("valid", "test"):
        assert two[split]["accuracy"] == one[split]["accuracy"]
        assert two[split]["log_loss"]["value"] == pytest.approx(one[split]["log_loss"]["value"], abs=1e-4)
    with open(reviews_csv, newline="", encoding="utf-8") as file:
        truth = {row["text"]: row["label"] for row in csv.DictReader(file)}
    for report in (one, two):
        assert report["wrong"], "with no mistake nothing is shown here: train less"
        assert all(truth[mistake["text"]] == mistake["label"] for mistake in report["wrong"])


def test_two_processes_fill_one_cache_and_end_as_one(still_bert, reviews_csv, tmp_path):
    common = ["--model", still_bert, "--data", reviews_csv, "--strategy", "LastLayers(1)", "--optim", "sgd"]
    common += ["--learning_rate", "0.1", "--num_train_epochs", "3"]
    size = ["--per_device_train_batch_size"]
    start(1, *common, *size, "16", "--output_dir", str(tmp_path / "one"), "--cache_gb", "0")
    start(2, *common, *size, "8", "--output_dir", str(tmp_path / "two"), HFTL_CACHE=str(tmp_path / "kept"))
    assert len(list((tmp_path / "kept").rglob("index.npz"))) == 4  # each process wrote its share of train and of valid
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)
