"""Features of a frozen model, and scikit-learn on them: the same decisions, computed once, kept without a pickle."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.multiclass
import sklearn.neighbors
import sklearn.svm
import torch
import transformers
from safetensors.torch import load_file, save_file
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hftl
from hftl import Features, Recipe, load, testing
from hftl.cli import main as cli
from hftl.errors import UserError
from hftl.models import classical, feature_model

KINDS = ("logistic", "svm", "rbf_svm", "knn")
TEXTS = ["good film", "awful pan", "a good good w3 bread", "w1"]


@pytest.fixture(scope="module")
def pooled_bert(tiny_bert, tmp_path_factory) -> str:
    """A tiny BERT with a pooler, so that one linear layer is all that is fresh."""
    folder = tmp_path_factory.mktemp("pooled")
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny_bert, initializer_range=0.2)  # features that differ by row
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(pooled_bert, reviews_csv, tmp_path):
    """Runs a recipe on the tiny texts, in a folder of its own; gives the report and the folder."""

    def go(name: str = "run", **settings):
        own = {key: settings.pop(key) for key in ("classifier", "layers", "pool") if key in settings}
        given = {"model": pooled_bert, "data": reviews_csv, "strategy": Features(**own)} | settings
        report = Recipe(output_dir=str(tmp_path / name), disable_tqdm=True, **given).run()
        return report, tmp_path / name

    return go


def plain_logits(folder: Path, texts: list[str]) -> np.ndarray:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).logits.numpy()


def head_inputs(folder: Path, texts: list[str]) -> np.ndarray:
    """What BERT's own head reads, by transformers alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model.bert(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts]
    return torch.cat(rows).numpy()


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- decisions are scikit-learn's ---


def blobs(classes: int, rows: int = 90) -> tuple[np.ndarray, np.ndarray]:
    made = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    return (made.normal(size=(rows, 5)) + labels[:, None] * 0.7).astype(np.float32) * [1, 5, 1, 9, 0.2], labels


ESTIMATORS = {
    "logistic": lambda: sklearn.linear_model.LogisticRegression(C=0.5, max_iter=1000),
    "svm": lambda: sklearn.svm.LinearSVC(C=0.5, dual="auto", max_iter=5000, random_state=0),
    "rbf_svm": lambda: sklearn.svm.SVC(C=0.5, gamma=1 / 5),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", list(ESTIMATORS))
def test_logits_are_the_decisions_of_scikit_learn(kind, classes):
    features, labels = blobs(classes)
    decision = classical.fit(kind, 0.5, features, labels, classes)
    estimator = ESTIMATORS[kind]()
    if kind == "rbf_svm" and classes > 2:
        estimator = sklearn.multiclass.OneVsRestClassifier(estimator)
    pipeline = make_pipeline(StandardScaler(), estimator).fit(features, labels)
    logits = decision(torch.from_numpy(features)).numpy()
    expected = pipeline.decision_function(features)
    found = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", list(ESTIMATORS))
def test_several_labels_a_row_are_learned_one_against_the_rest(kind):
    features, classes = blobs(4)
    labels = np.stack([classes % 2, classes // 2], axis=1).astype(np.float32)
    decision = classical.fit(kind, 0.5, features, labels, 2)
    found = decision(torch.from_numpy(features)).numpy()
    for i in range(2):
        pipeline = make_pipeline(StandardScaler(), ESTIMATORS[kind]()).fit(features, labels[:, i])
        np.testing.assert_allclose(found[:, i], pipeline.decision_function(features), atol=1e-5)


def test_neighbours_vote_as_in_scikit_learn():
    features, labels = blobs(3)
    decision = classical.fit("knn", 5, features, labels, 3)
    pipeline = make_pipeline(StandardScaler(), sklearn.neighbors.KNeighborsClassifier(5)).fit(features, labels)
    logits = decision(torch.from_numpy(features))
    assert (logits.argmax(dim=1).numpy() == pipeline.predict(features)).all()
    shares = (5 * pipeline.predict_proba(features) + 1 / 3) / 6
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), shares, atol=1e-6)


def test_numbers_are_learned_by_a_ridge():
    features, classes = blobs(4)
    labels = (classes * 2.5 - 1).astype(np.float32)
    decision = classical.fit("logistic", 0.5, features, labels, 0)
    pipeline = make_pipeline(StandardScaler(), sklearn.linear_model.Ridge(alpha=2.0)).fit(features, labels)
    found = decision(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found[:, 0], pipeline.predict(features), atol=1e-5)


def test_a_class_that_train_lacks_is_never_predicted():
    features, labels = blobs(2)
    for kind in KINDS:
        logits = classical.fit(kind, 1, features, 2 * labels, 3)(torch.from_numpy(features))
        assert 1 not in logits.argmax(dim=1).tolist(), kind


def test_a_feature_that_never_changes_does_no_harm():
    features, labels = blobs(2)
    features[:, 0] = 3.0
    logits = classical.fit("logistic", 1, features, labels, 2)(torch.from_numpy(features))
    assert torch.isfinite(logits).all()


# --- pooling ---


def test_a_mean_and_a_first_token_leave_padding_out():
    state = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    mean, first = feature_model._mean(state, mask), feature_model._first(state, mask)
    assert torch.equal(mean, torch.stack([state[0, :2].mean(0), state[1, 1:].mean(0)]))
    assert torch.equal(first, torch.stack([state[0, 0], state[1, 1]]))


def test_a_map_is_pooled_over_its_positions_wherever_its_channels_lie():
    state = torch.randn(2, 5, 4, 4)
    expected = state.mean(dim=(2, 3))
    assert torch.allclose(feature_model._mean(state, None), expected)
    assert torch.allclose(feature_model._mean(state.permute(0, 2, 3, 1), None), expected, atol=1e-6)
    assert feature_model._first(state, None) is None


# --- runs ---


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_a_linear_classifier_on_the_heads_input_is_an_ordinary_model(kind, run):
    report, folder = run(classifier=kind)
    assert report.strategy.startswith(f"Features({kind}, layers=last, pool=head, C=")
    assert not (folder / "features.json").exists()
    logits = plain_logits(folder, TEXTS)
    state = load_file(folder / "model.safetensors")
    expected = head_inputs(folder, TEXTS) @ state["classifier.weight"].numpy().T + state["classifier.bias"].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1], atol=1e-5)
    said = [max(one["scores"], key=one["scores"].get) for one in load(folder)(TEXTS)]
    assert said == [["negative", "positive"][i] for i in logits.argmax(axis=1)]


@pytest.mark.parametrize(
    ("kind", "layers", "pool"),
    [("logistic", "all", "mean"), ("svm", 1, "first"), ("rbf_svm", "last", "head"), ("knn", "all", "first")],
)
def test_any_other_classifier_reloads_to_the_same_predictions(kind, layers, pool, run, reviews_csv):
    report, folder = run(classifier=kind, layers=layers, pool=pool)
    assert f"({kind}, layers={layers}, pool={pool}, " in report.strategy
    assert any("Plain transformers" in note for note in report.data["notes"])
    rows = rows_of(reviews_csv)
    again = load(folder)
    right = [one["label"] == row["label"] for one, row in zip(again([r["text"] for r in rows]), rows, strict=True)]
    counted = {split: report.data["rows"][split] for split in ("valid", "test")}
    measured = sum(round(getattr(report, split)["accuracy"].value * n) for split, n in counted.items())
    assert 0 <= sum(right) - measured <= report.data["rows"]["train"]
    assert np.mean(right) > 0.7
    alone = [one["scores"] for one in (again(text) for text in TEXTS)]
    for one, other in zip(alone, [p["scores"] for p in again(TEXTS)], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_scores_of_test_are_those_of_the_reloaded_folder(run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i, name in enumerate(("train", "validation", "test")):
        with open(data / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *testing.sentences(60, seed=i)])
    for kind, layers in (("logistic", "last"), ("rbf_svm", "all")):
        report, folder = run(f"run-{kind}", data=str(data), classifier=kind, layers=layers)
        rows = rows_of(data / "test.csv")
        said = load(folder)([row["text"] for row in rows])
        right = np.mean([one["label"] == row["label"] for one, row in zip(said, rows, strict=True)])
        assert right == pytest.approx(report.test["accuracy"].value)


@pytest.mark.parametrize(("kind", "layers", "pool"), [("logistic", "last", "head"), ("knn", 2, "mean")])
def test_images_go_the_whole_way(kind, layers, pool, tiny_cnn, colour_folder, run):
    settings = {"task": "image-classification", "model": tiny_cnn, "data": colour_folder}
    report, folder = run(classifier=kind, layers=layers, pool=pool, **settings)
    assert report.test["accuracy"].value >= 0.8
    image = str(next(Path(colour_folder, "red").glob("*.png")))
    said = load(folder)(image)
    assert said["label"] == "red"
    if pool == "head":
        plain = transformers.pipeline("image-classification", model=str(folder))(image)[0]
        assert (plain["label"], plain["score"]) == ("red", pytest.approx(said["score"], abs=1e-5))


def test_a_second_run_does_no_forward_pass(run, monkeypatch):
    first, _ = run("one", seed=7)
    calls = []
    taps = feature_model.Taps.__call__
    monkeypatch.setattr(feature_model.Taps, "__call__", lambda self, x: calls.append(len(x["labels"])) or taps(self, x))
    second, _ = run("two", seed=7, classifier="rbf_svm", layers="all")
    assert sum(calls) == 1, "one row tells what features there are"
    assert second.forward_passes == 0
    assert second.data["fingerprints"] == first.data["fingerprints"]


def test_nothing_in_the_folder_is_a_pickle(run):
    _, folder = run(classifier="rbf_svm")
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".md", ".yaml", ".html"}
    assert load_file(folder / "features.safetensors")["support"].ndim == 2


def test_a_classifier_beside_the_model_is_not_passed_off_as_the_models_own(run):
    _, own = run("own")
    _, beside = run("beside", classifier="knn")
    assert "pipeline(" in (own / "README.md").read_text("utf-8")
    card = (beside / "README.md").read_text("utf-8")
    assert "pipeline(" not in card
    assert "hftl.load(" in card
    assert not [name for name in load_file(beside / "model.safetensors") if name.startswith("classifier")]


def test_what_was_tried_and_what_would_be_better_is_in_the_report(run):
    report, folder = run(layers=1, pool="first")
    tried = [note for note in report.data["notes"] if note.startswith("Tried: Features(")]
    assert len(tried) == 7 + 4, "each C; then head, mean, first of the last block, and the mean of all, at the best"
    assert set(report.valid) == set(report.test)
    assert "learning_rate" not in json.loads((folder / "report.json").read_text())["settings"]


def test_valid_chooses_c(run, monkeypatch):
    fit = classical.fit

    def turned_round(kind, value, *rest):
        decision = fit(kind, value, *rest)
        if value != 1:
            decision.weight.neg_()
            decision.bias.neg_()
        return decision

    monkeypatch.setattr(classical, "fit", turned_round)
    report, _ = run(pool="mean")
    assert report.strategy.endswith("C=1)")


def test_of_values_that_are_equal_on_valid_the_lower_loss_is_chosen(run, monkeypatch):
    """D7: each C has the decisions of one classifier; only how sure they are differs."""
    fit, scales = classical.fit, {0.1: 0.1}

    def scaled(kind, value, *rest):
        decision = fit(kind, 1.0, *rest)
        decision.weight.mul_(scales.get(value, 0.01))
        decision.bias.mul_(scales.get(value, 0.01))
        return decision

    monkeypatch.setattr(classical, "fit", scaled)
    report, _ = run(pool="mean")
    assert report.strategy.endswith("C=0.1)")


@pytest.mark.parametrize(
    ("logits", "labels", "loss"),
    [
        ([[0.0, 0.0], [0.0, math.log(3)]], np.array([0, 1]), (math.log(2) + math.log(4 / 3)) / 2),
        ([[0.0, math.log(3)]], np.array([[1.0, 0.0]]), (math.log(2) + math.log(4)) / 2),
        ([[1.0], [3.0]], np.array([2.0, 5.0], np.float32), 2.5),
    ],
    ids=["one label", "several", "numbers"],
)
def test_the_loss_of_a_classifier_is_that_of_its_labels(logits, labels, loss):
    assert classical.loss(torch.tensor(logits), labels) == pytest.approx(loss)


def test_several_labels_a_row_go_the_whole_way(run, tmp_path):
    rows = [
        {"text": text, "labels": [label, "long"] if len(text) > 30 else [label]}
        for text, label in testing.sentences(120)
    ]
    path = tmp_path / "tags.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    report, folder = run(data=str(path), label="labels")
    assert report.headline == "average_precision"
    own = load(folder)(TEXTS)
    expected = 1 / (1 + np.exp(-plain_logits(folder, TEXTS)))
    np.testing.assert_allclose([list(one["scores"].values()) for one in own], expected, atol=1e-5)
    with pytest.raises(UserError, match="knn takes one label"):
        run("knn", data=str(path), label="labels", classifier="knn")


def test_numbers_go_the_whole_way(run, tmp_path):
    rows = [(text, text.count("good") + 0.5) for text, _ in testing.sentences(120)]
    path = tmp_path / "numbers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    report, folder = run(data=str(path), problem_type="regression")
    assert report.headline == "pearson"
    own = [one["value"] for one in load(folder)(TEXTS)]
    np.testing.assert_allclose(own, plain_logits(folder, TEXTS)[:, 0], atol=1e-5)
    with pytest.raises(UserError, match="is for classes"):
        run("svm", data=str(path), problem_type="regression", classifier="svm")


def test_a_recipe_file_of_such_a_run_is_read_back(run, pooled_bert, reviews_csv, tmp_path):
    first, folder = run(classifier="svm", pool="mean")
    places = ["--model", pooled_bert, "--data", reviews_csv, "--output_dir", str(tmp_path / "b")]
    merged = cli.merge(Recipe(), ["--config", str(folder / "recipe.yaml"), *places])
    assert merged.run().strategy == first.strategy


def test_a_plain_run_into_the_folder_takes_the_classifier_away(run, pooled_bert, reviews_csv):
    _, folder = run(classifier="knn")
    Recipe(model=pooled_bert, data=reviews_csv, max_steps=1, output_dir=str(folder), overwrite=True).run()
    assert not (folder / "features.json").exists()
    assert not isinstance(load(folder).model, feature_model.FeatureModel)


def test_features_of_random_weights_are_not_another_seeds(run, colour_folder):
    """The network is all new: its seed decides its features, and they belong into the folder."""
    settings = {"task": "image-classification", "model": "timm:test_resnet", "data": colour_folder}
    for seed in (1, 2):
        report, folder = run(f"run-{seed}", seed=seed, pool="mean", **settings)
        files = sorted(Path(colour_folder).rglob("*.png"))
        said = load(folder)([str(file) for file in files])
        right = np.mean([one["label"] == file.parent.name for one, file in zip(said, files, strict=True)])
        assert right >= 0.95, f"seed {seed}"
        assert any("random parameters" in note for note in report.data["notes"])


def test_a_head_that_came_with_the_model_is_written_over_or_left_out(run, pooled_bert, tmp_path):
    torch.manual_seed(1)
    tuned = transformers.BertForSequenceClassification.from_pretrained(pooled_bert)
    tuned.save_pretrained(tmp_path / "tuned")
    transformers.AutoTokenizer.from_pretrained(pooled_bert).save_pretrained(tmp_path / "tuned")
    report, folder = run("own", model=str(tmp_path / "tuned"))
    assert "pool=head" in report.strategy
    assert not torch.equal(load_file(folder / "model.safetensors")["classifier.weight"], tuned.classifier.weight)
    _, beside = run("beside", model=str(tmp_path / "tuned"), classifier="knn")
    assert not [name for name in load_file(beside / "model.safetensors") if name.startswith("classifier")]


def test_auto_chooses_among_all_classifiers(run):
    report, folder = run(classifier="auto")
    tried = " ".join(report.data["notes"])
    assert all(f"Features({kind}, " in tried for kind in KINDS)
    assert load(folder)("good film")["label"] in ("positive", "negative")


@pytest.mark.parametrize("kind", list(ESTIMATORS))
def test_a_label_that_no_row_has_or_every_row_has_keeps_its_share(kind):
    features, classes = blobs(2)
    labels = np.stack([classes, np.zeros(90), np.ones(90)], axis=1).astype(np.float32)
    logits = classical.fit(kind, 0.5, features, labels, 3)(torch.from_numpy(features))
    np.testing.assert_allclose(logits[:, 1], -np.log(181.0), rtol=1e-5)
    np.testing.assert_allclose(logits[:, 2], np.log(181.0), rtol=1e-5)


# --- refusals ---


def test_a_new_pooler_makes_the_mean_the_default_and_the_head_refused(tiny_bert, run):
    report, _ = run(model=tiny_bert)
    assert "pool=mean" in report.strategy
    assert any("pool='mean' was used" in note for note in report.data["notes"])
    assert "bert.pooler.dense is new" in " ".join(report.data["notes"])
    with pytest.raises(UserError, match="is not one linear layer"):
        run("two", model=tiny_bert, pool="head")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": "3"}, r"Features\(layers\) takes last, all, or a block from 1 to 2; 3 came"),
        ({"layers": "top"}, r"Features\(layers\) takes last, all"),
        ({"layers": "all", "pool": "head"}, "pass mean or first"),
        ({"learning_rate": 1e-3}, "--learning_rate is for training by steps"),
        ({"strategy": "Features | LoRA"}, "Features trains nothing, so no strategy goes with it"),
        ({"classifier": "tree"}, "takes logistic, svm, rbf_svm, knn or auto; 'tree' came"),
        ({"unlabelled": "new.csv"}, "--unlabelled is for training by steps"),
        ({"num_train_epochs": 5}, "--num_train_epochs is for"),
        ({"adam_beta1": 0.5}, "--adam_beta1 is for"),
        ({"cache_gb": 0.0}, "Pass a larger --cache_gb"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(settings, words, run, tmp_path):
    with pytest.raises(UserError, match=words):
        run(**settings)
    assert not (tmp_path / "run").exists()


def test_a_first_token_of_a_map_is_refused(tiny_cnn, colour_folder, run):
    with pytest.raises(UserError, match=r"Features\(pool='first'\) does not fit"):
        run(task="image-classification", model=tiny_cnn, data=colour_folder, pool="first")


def test_what_a_recipe_sets_for_steps_is_no_users_mistake(pooled_bert, reviews_csv, tmp_path):
    """Any recipe takes the strategy: what its file sets for steps goes, and what a flag sets is refused."""
    recipe = Recipe(model=pooled_bert, data=reviews_csv, num_train_epochs=5, strategy="LoRA(r=4)")
    words = ["--strategy", "Features('svm', layers=1)", "--output_dir", str(tmp_path / "o"), "--disable_tqdm"]
    assert cli.merge(recipe, words).run().strategy.startswith("Features(svm, layers=1, pool=mean, C=")
    with pytest.raises(UserError, match="--num_train_epochs is for training by steps"):
        cli.merge(recipe, [*words, "--num_train_epochs", "2"]).run()


def test_names_of_earlier_versions_say_what_to_write(capsys):
    with pytest.raises(SystemExit):
        cli.main(Recipe(), ["--classifier", "svm"])
    assert "Features(classifier='svm'" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="Features"):
        hftl.FeatureRecipe  # noqa: B018


def test_a_damaged_classifier_is_told_in_one_sentence(run):
    _, folder = run(classifier="knn")
    save_file({"k": torch.tensor(1)}, folder / "features.safetensors")
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="holds a classifier that cannot be read"):
        load(folder)
