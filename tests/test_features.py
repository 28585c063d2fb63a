"""Features once, then scikit-learn: what is saved predicts what was fitted, and nothing is extracted twice."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers

from hftl import FeatureRecipe, classical, load
from hftl.errors import UserError

CLASSIFIERS = ["logistic", "svm", "rbf_svm", "knn"]
SETTINGS = {"disable_tqdm": True}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def data(problem: str = "one", n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)) * [1, 2, 3, 1, 1, 5] + 2
    scores = x[:, :3] @ rng.normal(size=(3, 3))
    if problem == "regression":
        return x, scores[:, 0]
    return x, (scores > scores.mean(axis=0)).astype(int) if problem == "many" else scores.argmax(axis=1)


def logits(decision, x: np.ndarray) -> np.ndarray:
    return decision(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_decision_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    x, y = data()
    y = np.minimum(y, classes - 1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x, y)
    ours = logits(classical.fit("logistic", 0.1, x, y, "single_label_classification", classes), x)
    found = torch.from_numpy(ours).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, theirs.predict_proba(x), atol=1e-5)
    svm = make_pipeline(StandardScaler(), LinearSVC(C=0.1, dual="auto", max_iter=5000)).fit(x, y)
    ours = logits(classical.fit("svm", 0.1, x, y, "single_label_classification", classes), x)
    expected = svm.decision_function(x)
    np.testing.assert_allclose(ours if classes > 2 else ours[:, 1] - ours[:, 0], expected, atol=1e-4)


def test_kernels_and_neighbours_decide_as_scikit_learn_does():
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    x, y = data()
    theirs = make_pipeline(StandardScaler(), OneVsRestClassifier(SVC(C=10.0, gamma=1 / 6))).fit(x, y)
    ours = logits(classical.fit("rbf_svm", 10.0, x, y, "single_label_classification", 3), x)
    np.testing.assert_allclose(ours, theirs.decision_function(x), atol=1e-4)
    near = make_pipeline(StandardScaler(), KNeighborsClassifier(5)).fit(x, y)
    ours = logits(classical.fit("knn", 5, x, y, "single_label_classification", 3), x)
    assert (ours.argmax(axis=1) == near.predict(x)).all()


def test_numbers_and_several_labels_are_fitted_or_refused():
    x, y = data("regression")
    fitted = logits(classical.fit("logistic", 10.0, x, y, "regression", 0), x)[:, 0]
    assert np.corrcoef(fitted, y)[0, 1] > 0.95
    with pytest.raises(UserError, match="numbers"):
        classical.fit("svm", 1.0, x, y, "regression", 0)
    x, y = data("many")
    for classifier in ("logistic", "svm", "rbf_svm"):
        found = logits(classical.fit(classifier, 1.0, x, y, "multi_label_classification", 3), x)
        assert ((found > 0) == y).mean() > 0.85
    with pytest.raises(UserError, match="one label"):
        classical.fit("knn", 5, x, y, "multi_label_classification", 3)


def test_a_class_that_train_lacks_is_never_predicted():
    x, y = data()
    x, y = x[y != 1], y[y != 1]
    for classifier in CLASSIFIERS:
        found = logits(classical.fit(classifier, 1, x, y, "single_label_classification", 3), x)
        assert not (found.argmax(axis=1) == 1).any()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(("layers", "pool"), [("last", None), ("all", "mean"), ("1", "first")])
def test_a_text_folder_predicts_what_was_measured(classifier, layers, pool, tiny_bert, reviews_csv, tmp_path):
    recipe = FeatureRecipe(
        model=tiny_bert,
        data=reviews_csv,
        classifier=classifier,
        layers=layers,
        pool=pool,
        output_dir=str(tmp_path / "o"),
        **SETTINGS,
    )
    report = recipe.run()
    assert report is not None
    assert not [*(tmp_path / "o").rglob("*.bin"), *(tmp_path / "o").rglob("*.pkl"), *(tmp_path / "o").rglob("*.joblib")]
    rows = datasets.load_dataset("csv", data_files=reviews_csv, split="train")
    found = load(tmp_path / "o")(list(rows["text"]))
    right = np.mean([one["label"] == label for one, label in zip(found, rows["label"], strict=True)])
    assert right > 0.7 or report.test["accuracy"].value <= 0.75
    assert f"Features({classifier}" in report.strategy


def test_an_image_folder_of_all_blocks_predicts(tiny_cnn, colour_folder, tmp_path):
    recipe = FeatureRecipe(
        task="image-classification",
        model=tiny_cnn,
        data=colour_folder,
        layers="all",
        output_dir=str(tmp_path / "o"),
        **SETTINGS,
    )
    report = recipe.run()
    assert report is not None
    assert report.test["accuracy"].value > 0.9
    file = next(path for path in Path(colour_folder).rglob("*.png") if path.parent.name == "red")
    assert load(tmp_path / "o")(str(file))["label"] == "red"


def test_a_linear_classifier_on_what_the_head_reads_loads_in_plain_transformers(tiny_cnn, colour_folder, tmp_path):
    recipe = FeatureRecipe(
        task="image-classification", model=tiny_cnn, data=colour_folder, output_dir=str(tmp_path / "o"), **SETTINGS
    )
    report = recipe.run()
    assert report is not None
    assert "pool=head" in report.strategy
    assert not (tmp_path / "o" / "features.json").exists()
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "o").eval()
    assert model.config.id2label == {0: "blue", 1: "red"}
    file = str(next(Path(colour_folder).rglob("*.png")))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "o")
    from PIL import Image

    with torch.no_grad():
        plain = model(**processor(Image.open(file).convert("RGB"), return_tensors="pt")).logits.softmax(dim=1)[0]
    ours = load(tmp_path / "o")(file)["scores"]
    assert plain.tolist() == pytest.approx(list(ours.values()), abs=1e-5)


def test_a_second_classifier_needs_no_forward_pass(tiny_bert, reviews_csv, tmp_path, monkeypatch):
    settings = SETTINGS | {"model": tiny_bert, "data": reviews_csv}
    FeatureRecipe(output_dir=str(tmp_path / "a"), **settings).run()
    from hftl import feature_model

    seen = []
    call = feature_model.Taps.__call__

    def counted(taps, inputs):
        seen.append(len(inputs["input_ids"]))
        return call(taps, inputs)

    monkeypatch.setattr(feature_model.Taps, "__call__", counted)
    FeatureRecipe(output_dir=str(tmp_path / "b"), classifier="svm", **settings).run()
    assert seen == [1, 16, 16]  # one row, to see how wide the features are; valid and test, by what is saved


def test_what_was_tried_on_valid_is_in_the_report(tiny_bert, reviews_csv, tmp_path):
    FeatureRecipe(model=tiny_bert, data=reviews_csv, output_dir=str(tmp_path / "o"), **SETTINGS).run()
    notes = json.loads((tmp_path / "o" / "report.json").read_text("utf-8"))["data"]["notes"]
    assert sum("on valid" in note and "C=" in note for note in notes) >= 7


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_train_epochs": 5}, "num_train_epochs means nothing"),
        ({"strategy": "LoRA(r=4)"}, "strategy means nothing"),
        ({"layers": "9"}, "block from 1 to 2"),
        ({"layers": "some"}, "block from 1 to 2"),
        ({"layers": "all", "pool": "head"}, "mean or first"),
        ({"classifier": "forest"}, "logistic"),
        ({"cache_gb": 0}, "--cache_gb"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(given, sentence, tiny_bert, reviews_csv, tmp_path):
    with pytest.raises(UserError, match=sentence):
        FeatureRecipe(model=tiny_bert, data=reviews_csv, output_dir=str(tmp_path / "o"), **SETTINGS | given).run()
    assert not (tmp_path / "o").exists()
