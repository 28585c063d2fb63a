"""A run with a target domain: what it reads, what chooses, what its report says, and that it resumes and spreads."""

from __future__ import annotations

import csv
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hftl import Adapting, Recipe, testing
from hftl.errors import UserError
from hftl.results import load as hub
from hftl.results.report.report import Report
from hftl.results.report.table import render
from hftl.run import part
from hftl.run.adaptation import told
from hftl.tasks.metrics.classification import SingleLabel
from hftl.tasks.text.classification import TextClassification

RECIPES = Path(__file__).parent.parent / "recipes"
QUICK = {"num_train_epochs": 2, "learning_rate": 2e-3, "disable_tqdm": True}
DOMAINS = ("film", "book", "pan")


@pytest.fixture(scope="module")
def target_csv(tmp_path_factory) -> str:
    return testing.reviews_csv(tmp_path_factory.mktemp("target") / "target.csv", 60)


@pytest.fixture(scope="module")
def adapted(tiny_bert, domains_csv, tmp_path_factory) -> Report:
    """One run over all there is: three domains in a column, DANN, the run without the target beside it."""
    folder = tmp_path_factory.mktemp("adapted") / "out"
    recipe = Recipe(
        model=tiny_bert,
        data=domains_csv,
        domain="domain",
        target="pan",
        strategy="DANN",
        output_dir=str(folder),
        **QUICK,
    )
    Adapting(recipe, source_only=True).run()
    return Report.from_folder(folder)


def splits_of(**settings):
    return part.read_data(Recipe(**settings), TextClassification())


def test_the_targets_rows_are_halved_and_its_labels_are_not_among_those_that_train(domains_csv):
    splits = splits_of(data=domains_csv, domain="domain", target="pan")
    assert set(splits.train["domain"]) | set(splits.test["domain"]) == {"film", "book"}
    assert set(splits.unlabelled["domain"]) == set(splits.target["domain"]) == {"pan"}
    assert "label" not in splits.unlabelled.column_names
    assert len(splits.unlabelled) == len(splits.target) == 20
    assert not set(splits.unlabelled["text"]) & set(splits.target["text"])
    again = splits_of(data=domains_csv, domain="domain", target="pan")
    assert again.target["text"][:] == splits.target["text"][:]


def test_source_names_the_domains_to_learn_from(domains_csv):
    splits = splits_of(data=domains_csv, domain="domain", target="pan", source=["film"])
    assert set(splits.train["domain"]) | set(splits.valid["domain"]) | set(splits.test["domain"]) == {"film"}


def test_a_source_of_its_own_needs_no_labels_and_its_label_column_is_not_read(domains_csv, target_csv, tmp_path):
    bare = tmp_path / "bare.csv"
    bare.write_text("text\nfine film\nawful film\n")
    assert splits_of(data=domains_csv, unlabelled=str(bare)).unlabelled.column_names == ["text"]
    splits = splits_of(data=domains_csv, unlabelled=target_csv, target_test=target_csv)
    assert splits.unlabelled.column_names == ["text"]
    assert splits.target.column_names == ["text", "label"]


def test_an_empty_file_is_no_target(domains_csv, tmp_path, tiny_bert):
    (tmp_path / "empty.csv").write_text("text\n")
    recipe = Recipe(model=tiny_bert, data=domains_csv, unlabelled=str(tmp_path / "empty.csv"), strategy="DANN")
    recipe.output_dir = str(tmp_path / "o")
    with pytest.raises(UserError, match=r"empty\.csv|no rows|there are none"):
        recipe.run()


def test_the_bundled_target_of_the_recipe_does_not_stay_beside_the_users_own_data(domains_csv, target_csv):
    bundled = {"unlabelled": "hftl:reviews/electronics", "target_test": "hftl:reviews/electronics"}
    with pytest.raises(UserError, match=r"does not go with .*domains\.csv\. Pass --unlabelled"):
        splits_of(data=domains_csv, **bundled)
    splits = splits_of(data=domains_csv, **bundled | {"unlabelled": target_csv})
    assert len(splits.unlabelled) == 60
    assert splits.target is None
    assert len(splits_of(data=domains_csv, domain="domain", target="pan", **bundled).target) == 20
    assert len(splits_of(data="hftl:reviews/not-electronics", **bundled).target) == 50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domain": "domain", "target": "pann"}, "Expected a domain 'pann'.*Did you mean 'pan'"),
        ({"domain": "domains", "target": "pan"}, "Expected a column 'domains'.*Did you mean 'domain'"),
        ({"target": "pan"}, "Pass --domain with its column"),
        ({"domain": "domain", "target": "pan", "source": ["pan"]}, "is among --source"),
        ({"domain": "domain", "target": "pan", "unlabelled": "x.csv"}, "Leave out one of them"),
        ({"unlabelled": "nowhere.csv"}, "nowhere.csv; there is none"),
        ({"select": "entropy"}, "--select entropy looks at the target. Pass --unlabelled"),
        ({"strategy": "MCC"}, "MCC reads unlabelled rows of the target domain. Pass --unlabelled"),
        ({"strategy": "UDALM"}, "UDALM reads unlabelled texts of the target domain. Pass --unlabelled"),
        ({"domain": "domain", "target": "pan", "strategy": "DANN", "packing": True}, "do not go together"),
        (
            {"domain": "domain", "target": "pan", "strategy": "DANN", "fit_batch": True},
            "--fit_batch sizes labelled rows",
        ),
        ({"strategy": "DANN(weight=-1.0)"}, "takes a number of 0 or more"),
        ({"strategy": "PseudoLabel(threshold=2.0)"}, "lies in"),
        (
            {"domain": "domain", "target": "pan", "strategy": "MCC", "problem_type": "multi_label_classification"},
            "MCC reads one label a row; the labels are a multi_label",
        ),
    ],
)
def test_a_target_that_cannot_be_is_answered_with_what_to_type(settings, words, tiny_bert, domains_csv, tmp_path):
    recipe = Recipe(model=tiny_bert, data=domains_csv, output_dir=str(tmp_path / "o"), **settings)
    with pytest.raises(UserError, match=words):
        recipe.run()
    assert not (tmp_path / "o" / "report.json").exists()


def test_a_strategy_that_reads_no_target_has_nothing_to_be_compared_with(tiny_bert, domains_csv, tmp_path):
    recipe = Recipe(model=tiny_bert, data=domains_csv, domain="domain", target="pan", output_dir=str(tmp_path / "o"))
    with pytest.raises(UserError, match="--strategy reads none of it"):
        Adapting(recipe, source_only=True).run()
    assert not (tmp_path / "o").exists()


def test_a_criterion_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(UserError, match=r"select.*source, entropy, snd.*Did you mean 'snd'"):
        Recipe(select="sdn")


def test_the_report_holds_the_target_beside_test_and_each_domain_of_test(adapted):
    assert adapted.target["accuracy"].n == 20
    assert adapted.domains.keys() == {"film", "book"}
    counted = sum(found["accuracy"].n for found in adapted.domains.values())
    assert counted == adapted.test["accuracy"].n
    hits = sum(round(found["accuracy"].value * found["accuracy"].n) for found in adapted.domains.values())
    assert hits == round(adapted.test["accuracy"].value * counted)


def test_the_report_says_what_chose_how_far_the_domains_lie_and_whether_adapting_helped(adapted):
    about = adapted.adaptation
    assert about.select == "source"
    assert {"source", "entropy", "snd", "iwv", "dev", "oracle"} <= about.checkpoints[0].keys()
    assert len(about.checkpoints) == 2
    assert all(0 <= about.distance[moment] <= 2 for moment in ("before", "after"))
    assert len(about.projection["after"]["target"]) == about.rows["target"] == 20
    assert about.source_only.strategy == "Full"
    assert about.source_only.verdict in ("helped", "hurt", "no clear difference")
    table = render(adapted)
    assert "The checkpoint was chosen by valid, of the source." in table
    assert "without the target's rows" in table
    page = (Path(adapted.folder) / "report.html").read_text("utf-8")
    assert "Features of both domains after" in page
    assert page.count('class="dot soft other"') == 40


def test_the_run_without_the_target_is_the_same_recipe_less_the_strategy(adapted):
    plain = Report.from_folder(f"{adapted.folder}-source-only")
    assert plain.strategy == "Full"
    assert plain.data["fingerprints"] == adapted.data["fingerprints"]
    assert plain.target["accuracy"].value == adapted.adaptation.source_only.scores["target"].value


def test_what_is_saved_is_the_task_model_alone(adapted):
    names = load_file(Path(adapted.folder) / "model.safetensors").keys()
    assert not [name for name in names if "partner" in name]
    assert adapted.trainable == adapted.total
    assert hub.load_folder(adapted.folder).labels.names == ["negative", "positive"]


@pytest.mark.parametrize("select", ["source", "entropy", "snd", "dev", "oracle"])
def test_the_criterion_that_is_named_chooses(select):
    watched = type("W", (), {})()
    watched.metric, watched.select, watched.oracle = SingleLabel(["a", "b"]), select, object()
    watched.distance, watched.points, watched._rows = {}, {}, {}
    names = ("accuracy", "entropy", "snd", "iwv", "dev", "oracle")
    values = [(0.9, 0.5, 0.1, 3, 2, 0.4), (0.8, 0.4, 0.3, 2, 3, 0.6), (0.8, 0.6, 0.2, 1, 1, 0.5)]
    history = [
        {"step": i, "epoch": i} | {f"eval_{name}": value for name, value in zip(names, row, strict=True)}
        for i, row in enumerate(values)
    ]
    found = told(watched, history)
    assert found.chosen["step"] == {"source": 0, "entropy": 1, "snd": 1, "dev": 2, "oracle": 1}[select]
    assert found.oracle["step"] == 1


def test_a_label_free_criterion_restores_its_checkpoint(tiny_bert, domains_csv, tmp_path):
    recipe = Recipe(
        model=tiny_bert,
        data=domains_csv,
        domain="domain",
        target="pan",
        select="entropy",
        output_dir=str(tmp_path / "o"),
        **QUICK | {"num_train_epochs": 4},
    )
    made = recipe.prepare()
    made.train()
    rows = [row for row in made.trainer.state.log_history if "eval_entropy" in row]
    assert made.trainer.state.best_metric == min(row["eval_entropy"] for row in rows)
    assert made.domains.criteria(made.trainer)["entropy"] == pytest.approx(made.trainer.state.best_metric, rel=1e-5)


def test_an_alignment_goes_to_the_end_of_its_run(tiny_bert, domains_csv, tmp_path):
    """Valid stands still at a rate of nearly 0: the plain run stops early, the aligned one does not."""
    settings = {"model": tiny_bert, "data": domains_csv, "domain": "domain", "target": "pan"}
    settings |= QUICK | {"num_train_epochs": 6, "learning_rate": 1e-9, "early_stopping_patience": 2}
    epochs = []
    for strategy in ("Full", "DANN"):
        made = Recipe(**settings, strategy=strategy, output_dir=str(tmp_path / strategy)).prepare()
        made.train()
        epochs.append(made.trainer.state.epoch)
    assert epochs == [4, 6], "two evaluations count once the rate has fallen to half: those of epochs 3 and 4"


def test_target_labels_never_reach_training_or_choice(tiny_bert, domains_csv, tmp_path):
    """Turned around, the target's labels change what is measured on it and nothing else."""
    with open(domains_csv, encoding="utf-8") as file:
        rows = list(csv.reader(file))
    other = {"positive": "negative", "negative": "positive"}
    turned = [[t, other[label] if d == "pan" else label, d] for t, label, d in rows[1:]]
    with open(tmp_path / "turned.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *turned])
    weights, scores = [], []
    for name, data in (("one", domains_csv), ("two", str(tmp_path / "turned.csv"))):
        recipe = Recipe(
            model=tiny_bert, data=data, domain="domain", target="pan", strategy="CDAN", select="dev", **QUICK
        )
        recipe.output_dir = str(tmp_path / name)
        scores.append(recipe.run().target["accuracy"].value)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert scores[0] == pytest.approx(1 - scores[1])


def test_frozen_layers_are_kept_and_the_target_is_still_seen_whole(tiny_bert, domains_csv, tmp_path):
    """With a probe the model's frozen part is replayed: a look at the target must not meet the replay."""
    settings = {"model": tiny_bert, "data": domains_csv, "domain": "domain", "target": "pan", "strategy": "LinearProbe"}
    found = []
    for cache in (20.0, 0.0):
        recipe = Recipe(**settings, cache_gb=cache, output_dir=str(tmp_path / f"o{cache}"), bf16=False, **QUICK)
        found.append(recipe.run().adaptation.checkpoints)
    for kept, plain in zip(*found, strict=True):
        assert kept["entropy"] == pytest.approx(plain["entropy"], abs=1e-5)
        assert kept["oracle"] == plain["oracle"]


def test_images_are_adapted_with_two_views(tiny_cnn, colour_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(Path(colour_folder).rglob("*.png"))):
        shutil.copy(path, flat / f"{i}.png")  # no labels, no folders by class
    recipe = Recipe(
        task="image-classification",
        model=tiny_cnn,
        data=colour_folder,
        unlabelled=str(flat),
        strategy="FixMatch(threshold=0.6)",
        output_dir=str(tmp_path / "o"),
        **QUICK,
    )
    report = recipe.run()
    assert report.adaptation.distance["after"] < 1
    assert report.target == {}


def test_the_recipe_runs_as_a_script(tiny_bert, domains_csv, target_csv, tmp_path, monkeypatch):
    flags = ["--model", tiny_bert, "--data", domains_csv, "--unlabelled", target_csv, "--target_test", target_csv]
    flags += ["--strategy", "UDALM | LayerDecay(0.9)", "--num_train_epochs", "1", "--disable_tqdm"]
    monkeypatch.setattr("sys.argv", ["domain_adapt.py", *flags, "--output_dir", str(tmp_path / "o")])
    runpy.run_path(str(RECIPES / "domain_adapt.py"), run_name="__main__")
    report = Report.from_folder(tmp_path / "o")
    assert report.target["accuracy"].n == 60
    assert report.strategy == "UDALM | LayerDecay(decay=0.9)"


def test_the_bundled_reviews_come_apart_by_domain():
    from hftl.data.load import load

    one = load("hftl:reviews/electronics", TextClassification.roles)
    rest = load("hftl:reviews/not-electronics", TextClassification.roles)
    assert len(one.train) == 150
    assert len(rest.train) == 450
    assert not set(one.train["text"]) & set(rest.train["text"])


def test_masked_rows_hide_as_bert_does(tiny_bert, target_csv):
    task = TextClassification()
    splits = splits_of(data=target_csv, unlabelled=target_csv)
    from hftl.tasks.base import Source

    processor = task.build(Source(tiny_bert), splits.labels).processor
    rows, collate = task.stream("masked", splits.unlabelled, processor)
    torch.manual_seed(0)
    asked, real = 0, 0
    for _ in range(100):
        batch = collate(rows.__getitems__(list(range(60))))
        asked += int((batch["labels"] != -100).sum())
        inner = batch["attention_mask"].bool() & (batch["labels"] != -100)
        assert bool((batch["labels"] != -100).eq(inner).all())
        real += int(batch["attention_mask"].sum()) - 2 * 60
    spread = 3 * np.sqrt(0.15 * 0.85 / real)
    assert abs(asked / real - 0.15) < spread
