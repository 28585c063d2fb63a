"""What is shared names no place of this machine and holds no secret; adapters are merged, held together, exported."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import hftl
from hftl import testing
from hftl.cli.main import hftl as command
from hftl.errors import UserError
from hftl.results import privacy
from hftl.results.adapters import base_tensors
from hftl.results.merging import merge
from hftl.results.publish import packed, refuse_secrets
from hftl.results.report.report import Report

TRAINING = {"learning_rate": 0.02, "max_steps": 10, "per_device_train_batch_size": 8, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_cnn: str, reviews_csv: str) -> Path:
    """Folders of runs on models and data that lie outside of the working directory."""
    folder = tmp_path_factory.mktemp("runs")
    text = TRAINING | {"task": "text-classification", "model": tiny_bert, "data": reviews_csv}
    colours = testing.colour_images(folder / "colours", 40)
    image = TRAINING | {"task": "image-classification", "model": tiny_cnn, "data": colours}
    made = {
        "lora": ("LoRA(r=4)", text),
        "ia3": ("PEFT('IA3')", text),
        "prompt": ("PEFT('PROMPT_TUNING', num_virtual_tokens=4)", text),
        "full": ("Full", text),
        "image": ("LoRA(r=4)", image),
    }
    for name, (strategy, settings) in made.items():
        testing.train_tiny(strategy, settings, folder / name)
    return folder


@pytest.fixture
def full(runs: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be spoilt."""
    return Path(shutil.copytree(runs / "full", tmp_path / "run"))


# --- paths ---


def test_a_path_under_the_working_directory_becomes_relative_and_any_other_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "here", tmp_path / "there"
    for folder in (inside / "data", outside):
        folder.mkdir(parents=True)
    monkeypatch.chdir(inside)
    told = {
        f"{inside}/data/a b.csv": "./data/a b.csv",
        f"{outside}/x.csv": "./x.csv",
        f"sst2={outside}/x.csv,label=y": "sst2=./x.csv,label=y",
        f"Expected a column in {outside}/x.csv. Pass --label.": "Expected a column in ./x.csv. Pass --label.",
        "~/runs/last": "./last",
        "you/name": "you/name",
        "data/x.csv": "data/x.csv",
        "https://example.org/tmp/x": "https://example.org/tmp/x",
        "~0": "~0",  # nobody is called so
        "~\0": "~\0",
        "/m/01g317": "/m/01g317",  # a label of Open Images: there is no such place
        "and/or": "and/or",
        "": "",
    }
    assert {text: privacy.shared(text) for text in told} == told
    words = f"accelerate launch a.py --data '{outside}/a b.csv' --model={outside}/m --seed 1"
    assert privacy.shared_command(words) == "accelerate launch a.py --data './a b.csv' --model=./m --seed 1"
    assert privacy.shared_command("python  a.py  --seed 1") == "python  a.py  --seed 1"  # as it was typed


def test_no_file_of_a_run_names_a_place_of_this_machine(runs: Path) -> None:
    for name in ("full", "image", "lora"):
        for file in (runs / name).iterdir():
            if file.suffix in (".json", ".yaml", ".md", ".html") and file.name != "adapter_config.json":
                assert str(runs.parent) not in file.read_text("utf-8"), file
    settings = yaml.safe_load((runs / "full" / "recipe.yaml").read_text("utf-8"))
    assert (settings["model"], settings["data"]) == ("./tiny-bert", "./reviews.csv")
    report = Report.from_folder(runs / "full")
    assert (report.model, report.data["source"]) == ("./tiny-bert", "./reviews.csv")
    assert report.folder == (runs / "full").as_posix()  # where it was read, which the file does not tell
    assert json.loads((runs / "full" / "report.json").read_text("utf-8"))["folder"] == "./full"
    assert report.revision.startswith("sha256:")  # which says what ./tiny-bert was
    assert len(report.data["fingerprints"]["train"]) == 64


# --- secrets ---

SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "an AWS access key": "AKIA" + "ABCDEFGH12345678",
    "an AWS secret key": "aws_secret_access_key = " + "a1B2c3D4/+" * 4,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a GitHub token": "ghp_" + "a1" * 18,
    "an API key": "sk-" + "proj-" + "x1" * 20,
    "an Authorization header": "Authorization: " + "Bearer abcdefgh1234",
    "a password in an address": "postgres://ada:" + "lovelace@db.example.org/x",
    "a home directory": "/home/" + "someone/data.csv",
    "a path of this machine (the working directory)": str(Path.cwd() / "data"),
}


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("file", ["config.json", "README.md"])
def test_a_planted_secret_is_refused_with_file_and_line(full: Path, what: str, file: str) -> None:
    refuse_secrets(packed(full, "you/name"), full)  # as it was written it holds none
    lines = (full / file).read_text("utf-8").splitlines()
    lines.insert(2, f"note: {SECRETS[what]}")
    (full / file).write_text("\n".join(lines), "utf-8")
    with pytest.raises(UserError) as refused:
        refuse_secrets(packed(full, "you/name"), full)
    assert f"line 3 of {file}" in str(refused.value)
    assert "Nothing was sent" in str(refused.value)
    assert what in str(refused.value) or "path of this machine" in str(refused.value)


def test_a_secret_in_the_header_of_the_weights_is_found(full: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(full / "model.safetensors"), full / "model.safetensors", {"by": SECRETS["a GitHub token"]})
    with pytest.raises(UserError, match=r"the header of model\.safetensors"):
        refuse_secrets(packed(full, "you/name"), full)


def test_only_what_a_run_writes_is_sent(full: Path) -> None:
    before = set(packed(full, "you/name").files)
    strangers = ("training_args.bin", "optimizer.pt", "model.pkl", ".env", "notes.txt", "pytorch_model.bin")
    for name in strangers:
        (full / name).write_text("x")
    (full / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (full / "checkpoints" / "checkpoint-1" / "model.safetensors").write_text("x")
    (full / "vocab.txt").symlink_to("/etc/hostname")
    parcel = packed(full, "you/name")
    assert set(parcel.files) == before
    assert set(parcel.left) == {*strangers, "checkpoints", "vocab.txt"}
    assert "not sent: .env, checkpoints, model.pkl" in parcel.table()


def test_a_card_that_a_person_has_changed_is_sent_as_it_is(full: Path) -> None:
    assert b'hftl.load("you/name")' in packed(full, "you/name").files["README.md"]
    with (full / "README.md").open("a") as card:
        card.write("More words.\n")
    assert packed(full, "you/name").files["README.md"] == full / "README.md"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["push", "lora", "you/name", "--dry_run"], "base model is a folder of this machine"),
        (["push", "colours", "you/name"], "holds no finished run"),
        (["push", "full", "name"], "as owner/name"),
        (["push", "full", "you/na me"], "as owner/name"),
        (["push", "full", "you/name"], "HF_HUB_OFFLINE is set"),
        (["push", "full"], "hftl push FOLDER you/name"),
        (["merge", "full", "merged"], "holds a full model and no adapter"),
        (["merge", "prompt", "merged"], "PROMPT_TUNING changes no weight"),
        (["merge", "lora", "full"], "holds a finished run"),
        (["export", "full", "model.pt"], "ends in .onnx"),
    ],
)
def test_a_command_that_cannot_be_done_is_answered_with_one_sentence(
    runs: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr("hftl.results.export.NEEDED", ())
    with pytest.raises(SystemExit) as left:
        command(words)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert not (runs / "merged").exists()


# --- merging ---


@pytest.mark.parametrize("name", ["lora", "ia3", "image"])
def test_a_merged_adapter_is_a_full_model_with_the_same_logits_and_labels(
    runs: Path, name: str, tmp_path: Path
) -> None:
    said = merge(runs / name, tmp_path / "merged")
    assert "logits differ by" in said
    adapter, merged = hftl.load(runs / name), hftl.load(tmp_path / "merged")
    rows = adapter.task.examples(5)
    np.testing.assert_allclose(np.stack(adapter.logits(rows)), np.stack(merged.logits(rows)), atol=1e-5)
    assert np.stack(adapter.logits(rows)).std() > 1e-3
    assert merged.labels == adapter.labels
    assert not hasattr(merged.model, "peft_config")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    report = Report.from_folder(tmp_path / "merged")
    assert not report.adapter
    assert "folded into its base" in report.data["notes"][-1]
    assert packed(tmp_path / "merged", "you/name").files  # and can be pushed, whatever its base was


def test_a_merge_that_changes_the_logits_writes_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, name: str) -> Any:
        return model.unload().eval()  # without the adapter

    monkeypatch.setattr("hftl.results.merging.folded", wrong)
    with pytest.raises(UserError, match="gives other logits"):
        merge(runs / "lora", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --- several adapters ---


def test_several_adapters_share_one_base_and_each_gives_its_own_logits_exactly(runs: Path) -> None:
    names = ("lora", "ia3", "prompt")
    held = hftl.load_adapters({name: runs / name for name in names})
    tensors = {name: base_tensors(held[name].model) for name in names}
    base = [path for path in tensors["lora"] if path.startswith("bert.encoder.") and "lora_" not in path]
    assert len(base) == 32  # 2 layers of 16 weights and biases
    for path in base:
        assert len({tensors[name][path].data_ptr() for name in names}) == 1, path
    rows = held["lora"].task.examples(5)
    for name in (*names, *reversed(names)):
        alone, together = hftl.load(runs / name).logits(rows), held[name].logits(rows)
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True)), name
    assert not np.array_equal(held["lora"].logits(rows), held["ia3"].logits(rows))


def test_adapters_of_another_base_and_full_models_are_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="adapts another base model"):
        hftl.load_adapters({"a": runs / "lora", "b": runs / "image"})
    with pytest.raises(UserError, match="holds a full model and no adapter"):
        hftl.load_adapters({"a": runs / "full"})


# --- export ---


def test_exporting_without_its_packages_says_what_to_install(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hftl.results.export import export

    monkeypatch.setattr("hftl.results.export.NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(UserError, match=r'pip install "hftl\[export\]"'):
        export(runs / "full", tmp_path / "m.onnx")


@pytest.mark.sweep
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason='needs pip install "hftl[export]"')
@pytest.mark.parametrize("name", ["full", "lora", "image"])
def test_an_exported_model_gives_the_same_logits_for_other_rows_and_lengths(
    runs: Path, name: str, tmp_path: Path
) -> None:
    import onnxruntime

    from hftl.results.export import export

    said = export(runs / name, tmp_path / "m.onnx")
    assert "logits differ by" in said
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    predictor = hftl.load(runs / name)
    rows = predictor.task.examples(12)
    for part in (rows[:1], rows[9:], rows):
        batch = predictor.batch(part)
        (found,) = session.run(["logits"], {k: v.numpy() for k, v in batch.items()})
        with torch.inference_mode():
            own = predictor.model(**batch).logits.numpy()
        np.testing.assert_allclose(found, own, atol=1e-5)
    assert json.dumps([one.name for one in session.get_inputs()]) == json.dumps(list(batch))
