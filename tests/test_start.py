"""The output layer before the first step: solved on frozen features, of the pooling that held-out rows choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import pipeline

import hftl
from hftl import Recipe
from hftl.models import classical
from hftl.models.pooled import PooledModel
from hftl.run import calibrating, outcome, start


@pytest.fixture
def text(on_text, tmp_path):
    return on_text | {"output_dir": str(tmp_path / "run"), "disable_tqdm": True, "head": "auto", "max_steps": 2}


def test_the_logits_before_the_first_step_are_those_of_the_solution(text):
    run = Recipe(**text, bf16=False).prepare()
    model, rows = run.part.pretrained.model.eval(), run.part.rows["train"]
    batch = run.trainer.data_collator(rows.plain(list(range(len(rows)))))
    labels = batch.pop("labels").numpy()
    with torch.no_grad():
        logits = model(**batch)["logits"]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
    chance = -np.mean(np.log(np.bincount(labels)[labels] / len(labels)))
    assert loss < chance
    assert any(check.name == "head" and "held-out loss" in check.sentence for check in run.part.splits.checks)
    random = Recipe(**text | {"head": "random"}).prepare().part
    assert not any(check.name == "head" for check in random.splits.checks)


def test_tuning_that_makes_it_worse_leaves_the_model_before_the_first_step(text):
    run = Recipe(**text | {"learning_rate": 9.0}).prepare()
    before = {name: value.clone() for name, value in run.trainer.model.state_dict().items()}
    run.train()
    after = run.trainer.model.state_dict()
    if run.trainer.state.best_global_step == 0:
        assert all(torch.equal(after[name], value) for name, value in before.items())
        fresh = run.part.pretrained.fresh
        assert run.trainer.trained == sum(p.numel() for n, p in run.trainer.model.named_parameters() if n in fresh)
    else:
        pytest.fail("a rate of 9 made the model better")


@pytest.mark.parametrize("strategy", ["Full", "LoRA(r=2)"])
def test_a_model_of_another_pooling_loads_as_it_was_trained(text, tmp_path, strategy, monkeypatch):

    monkeypatch.setattr(start, "_tried", only_mean(start._tried))
    run = Recipe(**text, strategy=strategy).prepare()
    assert isinstance(run.part.pretrained.model, PooledModel)
    run.train()
    report = outcome.measure(run)
    run.write(report)
    loaded = hftl.load(tmp_path / "run")
    texts = [run.part.splits.test[i]["text"] for i in range(6)]
    batch = run.trainer.data_collator(run.part.rows["test"].plain(list(range(6))))
    batch.pop("labels")
    with torch.no_grad():
        expected = run.trainer.model.eval()(**batch)["logits"].numpy()
    np.testing.assert_allclose(np.array(loaded.logits([{"text": one} for one in texts])), expected, atol=1e-5)
    if strategy == "Full":
        plain = SentenceTransformer(str(tmp_path / "run"), device="cpu").encode(texts)
        np.testing.assert_allclose(plain, expected, atol=1e-5)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "the mean of all tokens" in card
    assert ("SentenceTransformer(" in card) == (strategy == "Full")


@pytest.mark.parametrize("several", [False, True], ids=["one class", "several labels"])
def test_the_temperature_of_logits_that_are_too_sure_is_found(several):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(600, 3)) * 2
    shares = 1 / (1 + np.exp(-logits)) if several else np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = generator.random(shares.shape) < shares
    labels = drawn.astype(float) if several else np.array([generator.choice(3, p=row) for row in shares])
    assert calibrating.temperature(5 * logits, labels) == pytest.approx(5, rel=0.25)
    assert calibrating.temperature(logits, labels) is None


def test_a_temperature_divides_the_logits_of_the_folder_and_is_noted(text, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrating, "LEAST", 1)
    scores = {}
    for name, found in {"plain": None, "warm": 2.0}.items():
        monkeypatch.setattr(calibrating, "temperature", lambda logits, labels, found=found: found)
        report = Recipe(**text | {"output_dir": str(tmp_path / name)}).run()
        scores[name] = np.array(hftl.load(tmp_path / name).logits([{"text": "a good film"}]))
        assert any("divided by 2.00" in note for note in report.data["notes"]) == (name == "warm")
    np.testing.assert_allclose(2 * scores["warm"], scores["plain"], atol=1e-5)


def only_mean(tried):
    return lambda name, *others: tried(name, *others) if name.startswith("mean") else None


def test_the_models_own_class_is_kept_where_asked(text, tmp_path):
    Recipe(**text | {"head": "own"}).run()
    answer = pipeline("text-classification", model=str(tmp_path / "run"))("a text")[0]
    assert answer["label"] == hftl.load(tmp_path / "run")("a text")["label"]


def test_numbers_of_any_size_are_solved_in_their_own_unit():
    """D2: 250,000 +- 100,000 had a mean absolute error of 261,211."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 8)).astype(np.float32)
    labels = (250_000 + 100_000 * x[:, 0]).astype(np.float32)
    solved = start._tried("mean x", x, labels, 0, 1, False)
    assert solved is not None
    assert solved.loss < 0.05
    decision = classical.fit("logistic", solved.strength, x, labels, 0)
    assert np.abs(decision(torch.from_numpy(x)).numpy()[:, 0] - labels).mean() < 20_000


def test_the_plain_class_stays_where_another_pooling_is_no_better_than_chance_has_it():
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(120, 4)).astype(np.float32), np.arange(120) % 3
    x[:, 0] += labels
    recipe = Recipe()
    near = x + generator.normal(size=x.shape).astype(np.float32) * 1e-3
    assert start._chosen({"head c": x, "mean b": near}, labels, 3, recipe)[0] == "head c"
    noise = generator.normal(size=x.shape).astype(np.float32)
    assert start._chosen({"head c": noise, "mean b": x}, labels, 3, recipe)[0] == "mean b"
    assert start._chosen({"head c": x}, np.zeros(120, dtype=np.int64), 1, recipe)[1] is None
