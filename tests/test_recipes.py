"""The two recipes as a user runs them: flags in, folder out, and what can be done with the folder afterwards."""

from __future__ import annotations

import csv
import io
import json
import re
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from hftl import Recipe, load, testing
from hftl.cli.main import hftl, main
from hftl.errors import UserError
from hftl.tasks.sections import Matrix

RECIPES = Path(__file__).parent.parent / "recipes"
QUICK = [
    "--head",
    "random",
    "--num_train_epochs",
    "3",
    "--learning_rate",
    "0.005",
    "--per_device_train_batch_size",
    "8",
    "--disable_tqdm",
]


def launch(recipe: str, *flags: str) -> None:
    """Run a recipe's file as `python recipes/...` would."""
    argv, sys.argv = sys.argv, [str(RECIPES / recipe), *flags]
    try:
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    finally:
        sys.argv = argv


@pytest.fixture(scope="module")
def text_run(tiny_bert, reviews_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    launch("text_cls.py", "--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(folder), *QUICK)
    return folder


@pytest.fixture(scope="module")
def image_run(tiny_cnn, colour_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "run"
    launch("image_cls.py", "--model", tiny_cnn, "--data", colour_folder, "--output_dir", str(folder), *QUICK)
    return folder


@pytest.fixture(scope="module")
def adapter_run(tiny_bert, reviews_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "run"
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--strategy", "LoRA(r=4)", "--output_dir", str(folder)]
    launch("text_cls.py", *flags, *QUICK)
    return folder


def test_the_features_recipe_runs_as_a_script(tiny_bert, reviews_csv, tmp_path):
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--strategy", "Features(layers='all')", "--disable_tqdm"]
    launch("features.py", *flags, "--output_dir", str(tmp_path / "o"))
    assert (tmp_path / "o" / "features.safetensors").is_file()
    settings = yaml.safe_load((tmp_path / "o" / "recipe.yaml").read_text("utf-8"))
    assert settings["strategy"] == "Features(layers='all')"


def test_every_recipe_is_a_thin_script():
    found = sorted(path.name for path in RECIPES.glob("[!_]*.py"))
    texts = [
        "mlm.py",
        "multiple_choice.py",
        "multitask.py",
        "segment.py",
        "text_cls.py",
        "token_cls.py",
    ]  # segment: test_segmentation.py
    assert found == ["domain_adapt.py", "features.py", "image_cls.py", "mim.py", *texts], (
        "add a run of the new recipe here"
    )
    for path in RECIPES.glob("[!_]*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 25


def test_the_text_recipe_learns(text_run):
    report = json.loads((text_run / "report.json").read_text())
    assert report["test"]["accuracy"]["value"] >= 0.8
    assert report["test"]["accuracy"]["n"] == 16


def test_the_image_recipe_learns(image_run):
    assert json.loads((image_run / "report.json").read_text())["test"]["accuracy"]["value"] >= 0.8


def test_the_folder_holds_what_the_readme_says(text_run, image_run, adapter_run):
    common = {"README.md", "recipe.yaml", "report.json", "report.html", "config.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in text_run.iterdir()} == common | tokenizer | {"model.safetensors"}
    assert {p.name for p in image_run.iterdir()} == common | {"model.safetensors"}
    adapter = {"adapter_model.safetensors", "adapter_config.json"}
    assert {p.name for p in adapter_run.iterdir()} == common | tokenizer | adapter


def test_report_json_has_the_promised_fields(text_run):
    report = json.loads((text_run / "report.json").read_text())
    for split in ("valid", "test"):
        for score in report[split].values():
            assert set(score) == {"value", "low", "high", "n"}
    for name in ("seconds", "examples_per_second", "forward_passes", "trainable", "total", "peak_memory", "seed"):
        assert report[name] > 0, name
    assert report["trainable"] == report["total"]
    assert report["versions"]["transformers"] == transformers.__version__
    assert set(report["data"]["fingerprints"]) == {"train", "valid", "test"}
    assert report["forward_passes"] == pytest.approx(9)


def test_a_full_model_loads_in_a_plain_pipeline(text_run):
    pipe = transformers.pipeline("text-classification", model=str(text_run))
    said = [(p["label"], p["score"]) for p in pipe(["good film", "awful pan"])]
    own = [(p["label"], pytest.approx(p["score"], abs=1e-5)) for p in load(text_run)(["good film", "awful pan"])]
    assert said == own
    assert {label for label, _ in said} <= {"positive", "negative"}


def test_an_image_model_loads_in_a_plain_pipeline(image_run, colour_folder):
    image = next(Path(colour_folder, "red").glob("*.png"))
    said = transformers.pipeline("image-classification", model=str(image_run))(str(image))[0]
    own = load(image_run)(str(image))
    assert (said["label"], said["score"]) == (own["label"], pytest.approx(own["score"], abs=1e-5))
    assert said["label"] in {"red", "blue"}


def test_an_adapter_loads_in_plain_peft(adapter_run, tiny_bert):
    import peft

    config = transformers.AutoConfig.from_pretrained(adapter_run)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, config=config)
    model = peft.PeftModel.from_pretrained(base, str(adapter_run)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter_run)
    with torch.inference_mode():
        logits = model(**tokenizer(["good film"], return_tensors="pt")).logits
    scores = load(adapter_run)("good film")["scores"]
    assert logits.softmax(-1)[0].tolist() == pytest.approx(list(scores.values()), abs=1e-5)
    assert list(config.id2label.values()) == list(scores)


def test_the_adapter_takes_the_fresh_pooler_along(adapter_run):
    """The checkpoint has no pooler: left out, it would be random again in every process."""
    saved = load_file(adapter_run / "adapter_model.safetensors")
    assert any("pooler.dense.weight" in name for name in saved)
    assert any("classifier.weight" in name for name in saved)


def test_recipe_yaml_gives_the_same_numbers(text_run, tiny_bert, reviews_csv, tmp_path):
    lines = (text_run / "recipe.yaml").read_text("utf-8").splitlines()
    assert lines[1].startswith("# model sha256:")  # which says what the model and the data were
    assert lines[2].startswith("# train sha256:")
    places = ["--model", tiny_bert, "--data", reviews_csv]  # outside of the working directory: not told
    recipe = ["--config", str(text_run / "recipe.yaml"), *places, "--output_dir", str(tmp_path / "again")]
    launch("text_cls.py", *recipe)
    first, again = (json.loads((f / "report.json").read_text()) for f in (text_run, tmp_path / "again"))
    assert again["test"] == first["test"]
    assert again["data"]["fingerprints"] == first["data"]["fingerprints"]
    a, b = (load_file(f / "model.safetensors") for f in (text_run, tmp_path / "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_early_stopping_ends_a_run_that_no_longer_improves(tiny_bert, reviews_csv, tmp_path):
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(tmp_path / "o"), *QUICK]
    launch("text_cls.py", *flags, "--num_train_epochs", "30", "--early_stopping_patience", "2")
    history = json.loads((tmp_path / "o" / "report.json").read_text())["history"]
    scores = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert len(scores) < 30
    best = int(np.argmax(scores))
    assert len(scores) == max(best + 1 + 2, 16), "what comes before half of the run does not count"


def test_bfloat16_needs_no_gpu(tiny_bert, reviews_csv, tmp_path):
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(tmp_path / "o"), *QUICK, "--bf16"]
    launch("text_cls.py", *flags)
    assert json.loads((tmp_path / "o" / "report.json").read_text())["test"]["accuracy"]["value"] >= 0.8
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "o" / "model.safetensors").values())


def test_the_best_checkpoint_is_the_one_that_is_tested(tiny_bert, reviews_csv, tmp_path):
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(tmp_path / "o"), *QUICK]
    launch("text_cls.py", *flags, "--num_train_epochs", "6", "--early_stopping_patience", "0")
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    scores = [entry["eval_accuracy"] for entry in report["history"] if "eval_accuracy" in entry]
    assert report["valid"]["accuracy"]["value"] == pytest.approx(max(scores))


def test_show_rates_prints_the_table_and_leaves_no_folder(tiny_bert, reviews_csv, tmp_path, capsys):
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(tmp_path / "o")]
    launch("text_cls.py", *flags, "--strategy", "LayerDecay(0.5)", "--show_rates")
    out = capsys.readouterr().out
    assert re.search(r"encoder\.layer\.0.*0\.25", out)
    assert not (tmp_path / "o").exists()


def test_predict_writes_labels_and_scores_for_a_csv(text_run, tmp_path):
    new = tmp_path / "new.csv"
    new.write_text("text\ngood film\nawful pan\n", "utf-8")
    hftl(["predict", str(text_run), "--data", str(new), "--output", str(tmp_path / "out.csv")])
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["text"] for row in rows] == ["good film", "awful pan"]
    expected = load(text_run)(["good film", "awful pan"])
    assert [row["prediction"] for row in rows] == [p["label"] for p in expected]
    assert float(rows[0]["score_positive"]) + float(rows[0]["score_negative"]) == pytest.approx(1, abs=1e-5)


def test_predict_reads_stdin_a_line_at_a_time(text_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\nawful pan\n"))
    hftl(["predict", str(text_run), "--data", "-", "--output", str(tmp_path / "out.csv")])
    assert len(list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))) == 2


def test_predict_takes_a_folder_of_images(image_run, colour_folder, tmp_path):
    hftl(["predict", str(image_run), "--data", colour_folder, "--output", str(tmp_path / "out.csv")])
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert len(rows) == 120
    assert rows[0]["image"].endswith(".png")


def test_predict_takes_images_that_lie_in_one_folder_and_a_single_one(image_run, colour_folder, tmp_path):
    import shutil

    (tmp_path / "loose").mkdir()
    for path in sorted(Path(colour_folder, "red").glob("*.png"))[:3]:
        shutil.copy(path, tmp_path / "loose")
    hftl(["predict", str(image_run), "--data", str(tmp_path / "loose"), "--output", str(tmp_path / "out.csv")])
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["image"] for row in rows] == sorted(path.name for path in (tmp_path / "loose").iterdir())
    one = str(tmp_path / "loose" / rows[0]["image"])
    hftl(["predict", str(image_run), "--data", one, "--output", str(tmp_path / "one.csv")])
    assert list(csv.DictReader((tmp_path / "one.csv").open(encoding="utf-8"))) == rows[:1]


def test_predictions_do_not_depend_on_the_batch(text_run):
    texts = [text for text, _ in testing.sentences(30, seed=5)]
    one, many = load(text_run)(texts, batch_size=1), load(text_run)(texts, batch_size=30)
    for a, b in zip(one, many, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def rows_of(n: int, label) -> datasets.Dataset:
    texts = [text for text, _ in testing.sentences(n)]
    return datasets.Dataset.from_dict({"text": texts, "label": [label(i, text) for i, text in enumerate(texts)]})


def quick(model: str, data, folder: Path, **settings) -> Recipe:
    common = {
        "head": "random",
        "num_train_epochs": 3,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 8,
        "disable_tqdm": True,
    }
    return Recipe(model=model, data=data, output_dir=str(folder), **common | settings)


def test_a_regression_learns_and_predicts_numbers(tiny_bert, tmp_path):
    data = datasets.DatasetDict(train=rows_of(160, lambda i, text: 2.5 if i % 2 == 0 else -0.5))
    report = quick(tiny_bert, data, tmp_path / "o", num_train_epochs=6).run()
    assert report.headline == "pearson"
    assert report.test["pearson"].value > 0.8
    assert isinstance(load(tmp_path / "o")("good film")["value"], float)
    assert report.of(Matrix) == []


def test_several_labels_a_row_learn_and_predict_lists(tiny_bert, tmp_path):
    def label(i: int, text: str) -> list[str]:
        return ["praise" if i % 2 == 0 else "blame", *(["film"] if "film" in text else [])]

    report = quick(tiny_bert, rows_of(320, label), tmp_path / "o", num_train_epochs=6, learning_rate=2e-3).run()
    assert report.headline == "average_precision"
    assert report.test["average_precision"].value > 0.8
    found = load(tmp_path / "o")("good film")
    assert set(found["scores"]) == {"praise", "blame", "film"}
    assert isinstance(found["label"], list)


def test_pairs_of_texts_are_read_as_pairs(tiny_bert, tmp_path):
    rng = np.random.default_rng(0)
    first = [testing.GOOD[i] if i < 8 else testing.BAD[i - 8] for i in rng.integers(0, 16, 240)]
    second = [testing.GOOD[i] if i < 8 else testing.BAD[i - 8] for i in rng.integers(0, 16, 240)]
    same = [int((a in testing.GOOD) == (b in testing.GOOD)) for a, b in zip(first, second, strict=True)]
    data = datasets.Dataset.from_dict({"sentence1": first, "sentence2": second, "label": same})
    run = quick(tiny_bert, data, tmp_path / "o").prepare()
    assert run.part.splits.columns == {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
    row = run.part.rows["train"][0]
    assert row["input_ids"].count(3) == 2, "two [SEP]"
    assert 1 in row["token_type_ids"]


def test_class_weights_raise_the_recall_of_the_rare_class(tiny_bert, tmp_path):
    texts = [(t, y) for i, (t, y) in enumerate(testing.sentences(400)) if y == "positive" or i % 20 == 1]
    data = datasets.Dataset.from_dict({"text": [t for t, _ in texts], "label": [y for _, y in texts]})
    plain = quick(tiny_bert, data, tmp_path / "plain", num_train_epochs=4, learning_rate=2e-3).run()
    weighted = quick(
        tiny_bert, data, tmp_path / "w", num_train_epochs=4, learning_rate=2e-3, class_weights="balanced"
    ).run()
    guessed = [sum(row[0] for row in report.of(Matrix)[0].counts) for report in (plain, weighted)]
    assert guessed[1] > guessed[0]


def test_an_evaluate_metric_by_path_joins_the_report(tiny_bert, reviews_csv, tmp_path):
    metric = tmp_path / "share" / "share.py"
    metric.parent.mkdir()
    metric.write_text(
        "import datasets\nimport evaluate\n"
        "class Share(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        number = datasets.Value('int64')\n"
        "        kind = datasets.Features({'predictions': number, 'references': number})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=kind)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'share_of_ones': sum(predictions) / len(predictions)}\n"
    )
    report = quick(tiny_bert, reviews_csv, tmp_path / "o", num_train_epochs=1, metrics=[str(metric.parent)]).run()
    assert 0 <= report.test["share_of_ones"].value <= 1


def test_a_data_set_made_in_python_leaves_a_recipe_that_says_so(tiny_bert, tmp_path):
    quick(tiny_bert, rows_of(60, lambda i, text: i % 2), tmp_path / "o", num_train_epochs=1).run()
    settings = yaml.safe_load((tmp_path / "o" / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="made in Python"):
        Recipe(**settings, output_dir=str(tmp_path / "again")).prepare()


def test_a_bare_timm_network_takes_weights_from_a_file(tmp_path, colour_folder):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    net = timm.create_model("test_resnet", num_classes=7)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    recipe = quick("timm:test_resnet", colour_folder, tmp_path / "o", task="image-classification")
    recipe.weights, recipe.num_train_epochs, recipe.strategy = str(tmp_path / "net.safetensors"), 1, "LoRA(r=2)"
    run = recipe.prepare()
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in run.part.pretrained.fresh} == {"fc"}
    weights = dict(run.trainer.model.named_parameters())
    stem = next(value for name, value in weights.items() if name.endswith("conv1.weight") or "conv1.0" in name)
    assert any(torch.equal(stem, value) for value in net.state_dict().values())


def test_an_adapter_on_a_bare_timm_network_carries_its_base(tmp_path, colour_folder):
    recipe = quick("timm:test_resnet", colour_folder, tmp_path / "o", task="image-classification", num_train_epochs=1)
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "net.safetensors")
    recipe.weights, recipe.strategy = str(tmp_path / "net.safetensors"), "LoRA(r=2)"
    report = recipe.run()
    image = next(Path(colour_folder, "red").glob("*.png"))
    first = load(tmp_path / "o")(str(image))
    (tmp_path / "net.safetensors").unlink()
    assert load(tmp_path / "o")(str(image)) == first
    assert report.adapter


def test_the_recipe_file_yields_to_yaml_and_yaml_to_flags(tmp_path):
    from hftl.cli.main import merge

    (tmp_path / "c.yaml").write_text("seed: 7\nweight_decay: 0.3\n")
    merged = merge(Recipe(seed=1, weight_decay=0.1, max_steps=5), ["--config", str(tmp_path / "c.yaml"), "--seed", "9"])
    assert (merged.seed, merged.weight_decay, merged.max_steps) == (9, 0.3, 5)


def test_main_returns_the_report(tiny_bert, reviews_csv, tmp_path):
    recipe = quick(tiny_bert, reviews_csv, tmp_path / "o", num_train_epochs=1)
    assert main(recipe, []).folder == str(tmp_path / "o")
