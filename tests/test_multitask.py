"""Several tasks on one encoder: the closed forms of how they mix and weigh, and one task that is as if alone."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from scipy import stats
from test_recipes import launch

from hftl import EachAlone, Recipe, Report, load
from hftl.cli.main import main, merge
from hftl.errors import UserError
from hftl.models.shared import RATE, MultiTaskModel, Uncertainty
from hftl.run import outcome, several
from hftl.run.part import read_data
from hftl.run.settings import task_class
from hftl.run.several import read_word
from hftl.studies.alone import verdict
from hftl.tasks.base import Task
from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.metrics.classification import SingleLabel
from hftl.train.mixing import Plan, TaskBatches, proportions
from hftl.train.pcgrad import Surgery, projected
from hftl.train.sampling import LengthGrouped

SIZES = [3000, 500, 40]
QUICK = {
    "head": "random",
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 8,
    "disable_tqdm": True,
    "num_train_epochs": 2,
}


@pytest.fixture(scope="module")
def still_bert(tiny_bert, tmp_path_factory):
    """The tiny BERT without dropout, whose draws would tie one task's numbers to another's."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    model = transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def both(tiny_bert, reviews_csv, pairs_csv, tmp_path_factory):
    """A finished run on reviews and pairs, compared with each alone."""
    folder = tmp_path_factory.mktemp("both") / "run"
    tasks = [f"mood={reviews_csv}", f"pairs={pairs_csv}"]
    settings = QUICK | {"num_train_epochs": 4}
    EachAlone(Recipe(model=tiny_bert, tasks=tasks, output_dir=str(folder), **settings)).run()
    return folder


# --- mixing ---


@pytest.mark.parametrize("mixing", ["proportional", "uniform", "temperature", "annealed"])
def test_tasks_come_as_often_as_the_mixing_says(mixing):
    plan = Plan(SIZES, micro=1, epochs=100_000 / sum(SIZES), mixing=mixing, temperature=3.0)
    assert plan.steps >= 100_000
    done = np.arange(plan.steps)[:, None] / plan.steps
    exponents = {"proportional": 1.0, "uniform": 0.0, "temperature": 1 / 3, "annealed": 1 - 0.8 * done}
    weights = np.array(SIZES, float) ** np.broadcast_to(exponents[mixing], (plan.steps, 1))
    chances = weights / weights.sum(axis=1, keepdims=True)
    for part in np.array_split(np.arange(plan.steps), 4):  # by quarters, for what changes during a run
        counts = np.bincount(plan.tasks[part], minlength=3)
        assert stats.chisquare(counts, chances[part].sum(axis=0)).pvalue > 1e-3


def test_another_mixing_fails_the_chi_squared_test():
    plan = Plan(SIZES, micro=1, epochs=100_000 / sum(SIZES), mixing="temperature", temperature=1.05)
    expected = plan.steps * proportions(SIZES, "proportional")
    assert stats.chisquare(plan.counts(), expected).pvalue < 1e-6


@pytest.mark.parametrize("mixing", ["proportional", "uniform", "temperature", "annealed"])
def test_tasks_of_one_size_come_equally_often(mixing):
    assert proportions([70, 70, 70], mixing, 2.0, 0.3) == pytest.approx([1 / 3] * 3)


def test_annealing_goes_from_the_sizes_to_a_fifth_of_their_logarithm():
    start, end = proportions([900, 100], "annealed", progress=np.array([0.0, 1.0]))
    assert start == pytest.approx([0.9, 0.1])
    assert end[0] / end[1] == pytest.approx(9**0.2)


def test_the_order_of_tasks_is_a_function_of_the_seed_and_of_where_the_run_is():
    whole = Plan([40, 24], micro=4, epochs=3, seed=7)
    assert whole.tasks.tolist() == Plan([40, 24], micro=4, epochs=3, seed=7).tasks.tolist()
    assert whole.tasks.tolist() != Plan([40, 24], micro=4, epochs=3, seed=8).tasks.tolist()
    fresh, gone_on = (TaskBatches(whole, _orders_of(40, 24)) for _ in range(2))
    for epoch in range(2):
        fresh.set_epoch(epoch)
        list(fresh)
    for sampler in (fresh, gone_on):
        sampler.set_epoch(2)
    assert list(fresh) == list(gone_on)


def test_a_micro_batch_is_of_one_task_and_each_pass_gives_every_row_once():
    plan = Plan([40, 26], micro=4, epochs=6)
    batches = []
    for epoch in range(6):
        sampler = TaskBatches(plan, _orders_of(40, 26))
        sampler.set_epoch(epoch)
        batches += list(sampler)
    for first, last, size in ((0, 40, 40), (40, 66, 26)):
        mine = [rows for rows in batches if first <= rows[0] < last]
        assert all(first <= row < last for rows in mine for row in rows)
        passes = -(-size // 4)
        for start in range(0, len(mine) - passes + 1, passes):
            seen = [row for rows in mine[start : start + passes] for row in rows]
            assert sorted(seen) == list(range(first, last))


def _orders_of(*sizes: int) -> list[LengthGrouped]:
    return [LengthGrouped(size, 4, None, seed=7) for size in sizes]


def test_two_processes_share_the_micro_batches_of_one():
    plan = Plan([40, 25], micro=4, epochs=2)
    one = list(TaskBatches(plan, _orders_of(40, 25)))
    two = [list(TaskBatches(plan, _orders_of(40, 25), 2, process)) for process in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        assert set(first) | set(second) == set(whole)
        assert (min(first) >= 40) == (min(second) >= 40)


# --- weights and conflicts ---


def test_uncertainty_is_its_closed_form_and_so_is_its_gradient():
    weighting, s = Uncertainty(3).double(), torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    with torch.no_grad():
        weighting.scaled.copy_(s / RATE)
    for task, loss in enumerate((0.5, 2.0, 4.0)):
        weighting.scaled.grad = None
        given = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
        found = weighting(given, task)
        found.backward()
        assert found.item() == pytest.approx(np.exp(-s[task]) * loss + s[task] / 2)
        assert given.grad.item() == pytest.approx(np.exp(-s[task]))
        expected = torch.zeros(3, dtype=torch.float64)
        expected[task] = RATE * (0.5 - torch.exp(-s[task]) * loss)
        torch.testing.assert_close(weighting.scaled.grad, expected)


def test_what_conflicts_is_made_orthogonal_and_what_does_not_is_left_alone():
    torch.manual_seed(0)
    gradients = torch.randn(2, 50, dtype=torch.float64)
    gradients[1] -= 2 * gradients[0]
    assert gradients[0] @ gradients[1] < 0
    first, second = projected(gradients, [[1], [0]])
    assert abs(first @ gradients[1]) < 1e-12
    assert abs(second @ gradients[0]) < 1e-12
    assert not torch.equal(first, gradients[0])
    agreeing = gradients * torch.tensor([[1.0], [-1.0]])
    assert torch.equal(projected(agreeing, [[1], [0]]), agreeing)


def test_three_gradients_follow_the_algorithm_of_the_paper():
    torch.manual_seed(1)
    g = torch.randn(3, 8, dtype=torch.float64)
    orders = [[2, 1], [0, 2], [1, 0]]
    for i, found in enumerate(projected(g, orders)):
        own = g[i].clone()
        for j in orders[i]:
            own = own - torch.minimum(own @ g[j], torch.tensor(0.0)) / g[j].square().sum() * g[j]
        torch.testing.assert_close(found, own)


def test_surgery_of_one_task_gives_back_what_it_took():
    weights = [
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    surgery = Surgery(weights, lambda gradient: gradient, seed=0)
    for scale in (1.0, 2.0):
        weights[0].grad, weights[1].grad = torch.full((2, 3), scale), torch.arange(4.0) * scale
        surgery.take("one")
        assert all(weight.grad is None for weight in weights)
    surgery.give(update=0)
    assert torch.equal(weights[0].grad, torch.full((2, 3), 3.0))
    assert torch.equal(weights[1].grad, torch.arange(4.0) * 3)
    assert weights[2].grad is None


# --- one model of several ---


def two_models(model) -> MultiTaskModel:
    """The small BERT with a pooler that is new, for classes and for numbers."""
    first = copy.deepcopy(model)
    config = copy.deepcopy(model.config)
    config.num_labels, config.problem_type = 1, "regression"
    second = transformers.BertForSequenceClassification(config)
    fresh = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    return MultiTaskModel({"one": first, "two": second}, {"one": fresh, "two": fresh})


def test_one_encoder_is_there_once_and_what_is_new_once_for_each_task(model):
    whole = two_models(model)
    size = sum(p.numel() for p in whole.parameters())
    pooler, heads = 16 * 16 + 16, (16 + 1) * (3 + 1)
    body = sum(p.numel() for n, p in model.bert.named_parameters() if "pooler" not in n)
    assert size == body + 2 * pooler + heads
    names = {name for name, _ in whole.named_parameters()}
    assert whole.fresh <= names
    assert {whole.where("two", "bert.pooler.dense.bias"), whole.where("one", "classifier.bias")} <= whole.fresh
    assert not [name for name in whole.fresh if whole.common(name)]
    assert sum(whole.common(name) for name in names) == sum("pooler" not in n for n, _ in model.bert.named_parameters())


def test_each_task_gives_what_its_own_model_gave(model):
    alone = copy.deepcopy(model).eval()
    whole = two_models(model).eval()
    batch = {"input_ids": torch.randint(1, 50, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    with torch.inference_mode():
        for task in ("two", "one", "two"):
            found = whole(task=task, **batch).logits
            assert found.shape == (4, {"one": 3, "two": 1}[task])
        assert torch.equal(whole(task="one", **batch).logits, alone(**batch).logits)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_any_family_shares_its_body_and_keeps_its_heads(family):
    """One task of three classes and one of five: what differs in shape is the head, and is new."""
    torch.manual_seed(0)
    alone = {"one": families.FAMILIES[family](3).eval(), "two": families.FAMILIES[family](5).eval()}
    states = {name: model.state_dict() for name, model in alone.items()}
    fresh = {name for name, value in states["one"].items() if value.shape != states["two"][name].shape}
    alone["two"].load_state_dict(states["two"] | {n: v for n, v in states["one"].items() if n not in fresh})
    models = copy.deepcopy(alone)
    if families.MODALITY[family] == "text" or family.startswith("timm-"):
        fresh |= {n for n in states["one"] if not n.startswith(f"{alone['one'].base_model_prefix}.")}
    whole = MultiTaskModel(models, {"one": fresh, "two": fresh}).eval()
    batch, there = families.batch(family), whole.state_dict()
    with torch.inference_mode():
        for name, model in alone.items():
            torch.testing.assert_close(whole(task=name, **batch).logits, model(**batch).logits)
            for own, value in model.state_dict().items():
                assert torch.equal(there[whole.where(name, own)], value)
    both = sum(p.numel() for model in alone.values() for p in model.parameters())
    assert sum(p.numel() for p in whole.parameters()) < 0.75 * both


def test_a_step_on_one_task_leaves_the_heads_of_the_others_alone(model):
    whole = two_models(model).train()
    batch = {"input_ids": torch.randint(1, 50, (4, 9)), "labels": torch.tensor([0, 1, 2, 0])}
    whole(task="one", **batch).loss.backward()
    moved = {name for name, p in whole.named_parameters() if p.grad is not None}
    assert "heads.one.classifier.weight" in moved
    assert "shared.pooler.dense.parts.one.weight" in moved
    assert not [name for name in moved if ".two." in name]


# --- whole runs ---


def losses_of(folder: Path) -> list[tuple[float, float]]:
    history = json.loads((folder / "report.json").read_text())["history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


@pytest.mark.parametrize("strategy", ["Full", "LayerDecay(0.8)", "LoRA(r=4)"])
def test_one_task_trains_as_in_a_run_of_its_own(strategy, tiny_bert, reviews_csv, tmp_path):
    settings = QUICK | {"model": tiny_bert, "strategy": strategy, "gradient_accumulation_steps": 2}
    Recipe(data=reviews_csv, output_dir=str(tmp_path / "alone"), **settings).run()
    recipe = Recipe(tasks=[f"mood={reviews_csv}"], output_dir=str(tmp_path / "one"), **settings)
    recipe.run()
    assert losses_of(tmp_path / "one") == losses_of(tmp_path / "alone")
    assert len(losses_of(tmp_path / "one")) > 10
    alone, one = Report.from_folder(tmp_path / "alone"), Report.from_folder(tmp_path / "one" / "mood")
    assert one.test == alone.test
    assert one.valid == alone.valid
    assert one.trainable == alone.trainable
    assert one.total == alone.total


def test_the_folder_of_each_task_loads_in_plain_transformers(both, reviews_csv):
    mood = transformers.pipeline("text-classification", model=str(both / "mood"))
    said = mood(["good great film", "awful pan"])
    assert [one["label"] for one in said] == ["positive", "negative"]
    own = load(both / "mood")(["good great film", "awful pan"])
    assert [one["score"] for one in own] == [pytest.approx(one["score"], abs=1e-6) for one in said]
    pairs = transformers.AutoModelForSequenceClassification.from_pretrained(both / "pairs")
    tokenizer = transformers.AutoTokenizer.from_pretrained(both / "pairs")
    with torch.inference_mode():
        logit = pairs(**tokenizer("good great film", "the book", return_tensors="pt")).logits.item()
    found = load(both / "pairs")({"text": "good great film", "text_pair": "the book"})["value"]
    assert found == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("how", [{"strategy": "LoRA(r=4)"}, {"strategy": "LoRA(r=4)", "adapters": True}, {}])
def test_a_folder_gives_the_logits_of_the_model_of_all(how, tiny_bert, reviews_csv, pairs_csv, tmp_path):
    tasks = [f"mood={reviews_csv}", f"pairs={pairs_csv}"]
    recipe = Recipe(model=tiny_bert, tasks=tasks, output_dir=str(tmp_path / "o"), **QUICK, **how)
    run = recipe.prepare()
    run.train()
    run.write(outcome.measure(run))
    for name, part in run.parts.items():
        batch = part.task.collate(part.pretrained.processor)(part.rows["test"].rows.plain([0, 1, 2, 3]))
        batch.pop("labels")
        transformers.set_seed(987)
        loaded = load(tmp_path / "o" / name)
        with torch.inference_mode():
            expected = run.trainer.model.eval()(task=name, **batch).logits
            torch.testing.assert_close(loaded.model(**batch).logits, expected, atol=1e-5, rtol=0)
        files = {path.name for path in (tmp_path / "o" / name).iterdir()}
        assert ("adapter_model.safetensors" in files) == bool(how)


def test_adapters_of_their_own_keep_tasks_from_each_other(still_bert, reviews_csv, tmp_path):
    """Whatever the other task is, this one ends with the same weights, bit for bit; sharing weights, it does not."""
    other = tmp_path / "other.csv"
    with open(reviews_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with other.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((" ".join(reversed(row["text"].split())), row["label"].upper()) for row in rows)

    def scores(second: str, folder: str, **how: object) -> dict[str, Score]:
        tasks = [f"mood={reviews_csv}", f"next={second}"]
        settings = QUICK | {"num_train_epochs": 1, "early_stopping_patience": 0, "eval_strategy": "no"}
        Recipe(model=still_bert, tasks=tasks, output_dir=str(tmp_path / folder), **settings, **how).run()
        return Report.from_folder(tmp_path / folder / "mood").test

    assert scores(reviews_csv, "a", adapters=True) == scores(str(other), "b", adapters=True)
    assert scores(reviews_csv, "c") != scores(str(other), "d")


def test_the_report_says_of_each_task_what_it_gained(both):
    report = Report.from_folder(both)
    assert [row.task for row in report.tasks] == ["mood", "pairs"]
    assert [row.metric for row in report.tasks] == ["accuracy", "pearson"]
    for row in report.tasks:
        own = Report.from_folder(both / row.task)
        assert row.multi.value == own.test[row.metric].value
        assert row.difference.value == pytest.approx(row.multi.value - row.single.value)
        assert row.difference.low <= row.difference.value <= row.difference.high
        assert row.verdict == verdict(row.difference)
    assert sum(row.share for row in report.tasks) == pytest.approx(1)
    mean = np.mean([row.multi.value for row in report.tasks])
    assert report.headline == "mean"
    assert report.test["mean"].value == pytest.approx(mean)
    page = (both / "report.html").read_text("utf-8")
    section = re.search(r'<section id="tasks">.*?</section>', page, re.DOTALL)[0]
    assert section.count("<tr>") == 3
    assert "mood" in section
    assert "pairs" in section
    gained, lost = ([row.task for row in report.tasks if row.verdict == said] for said in ("gained", "lost"))
    told = f"alone, {', '.join(gained) or 'none'} gained and {', '.join(lost) or 'none'} lost."
    card = (both / "README.md").read_text("utf-8")
    assert told in page
    assert told in card
    assert 'mood = hftl.load("run/mood")' in card
    assert "| `pairs` | Pearson correlation |" in card


def test_a_task_alone_has_the_model_of_a_run_alone(both, tiny_bert, reviews_csv, tmp_path):
    """The comparison trains what `Recipe` would with as many micro-batches."""
    row = Report.from_folder(both).tasks[0]
    evaluations = max(1, round(row.steps / 4))
    settings = QUICK | {"max_steps": row.steps, "eval_strategy": "steps", "eval_steps": evaluations}
    report = Recipe(model=tiny_bert, data=reviews_csv, output_dir=str(tmp_path / "o"), **settings).run()
    assert row.single == report.test["accuracy"]


def test_the_mean_over_tasks_selects_the_checkpoint_and_stops_early(tiny_bert, reviews_csv, pairs_csv, tmp_path):
    tasks = [f"mood={reviews_csv}", f"pairs={pairs_csv}"]
    settings = QUICK | {"num_train_epochs": 40, "early_stopping_patience": 2}
    report = Recipe(model=tiny_bert, tasks=tasks, output_dir=str(tmp_path / "o"), **settings).run()
    means = [entry["eval_mean"] for entry in report.history if "eval_mean" in entry]
    assert len(means) < 40
    assert len(means) == max(int(np.argmax(means)) + 1 + 2, 21), "what comes before half of the run does not count"
    assert report.valid["mean"].value == pytest.approx(max(means))
    for entry in report.history:
        if "eval_mean" in entry:
            assert entry["eval_mean"] == pytest.approx((entry["eval_mood_accuracy"] + entry["eval_pairs_pearson"]) / 2)


def test_uncertainty_and_pcgrad_change_what_is_learnt(tiny_bert, reviews_csv, pairs_csv, tmp_path):
    tasks = [f"mood={reviews_csv}", f"pairs={pairs_csv}"]
    found = []
    for i, how in enumerate([{}, {"weighting": "uncertainty"}, {"pcgrad": True}]):
        settings = QUICK | {"num_train_epochs": 1, "gradient_accumulation_steps": 2} | how
        folder = tmp_path / str(i)
        Recipe(model=tiny_bert, tasks=tasks, output_dir=str(folder), **settings).run()
        found.append(Report.from_folder(folder / "pairs").test["mse"].value)
        notes = Report.from_folder(folder).data["notes"]
        assert any("learnt log-variance" in note for note in notes) == ("weighting" in how)
    assert len(set(found)) == 3


def test_recipe_yaml_gives_the_same_numbers(both, tiny_bert, reviews_csv, pairs_csv, tmp_path, capsys):
    settings = yaml.safe_load((both / "recipe.yaml").read_text("utf-8"))
    sources = [re.sub(r",data_sha256=[0-9a-f]{64}$", "", word) for word in settings["tasks"]]
    assert sources == ["mood=./reviews.csv", "pairs=./pairs.csv"]
    for name, lies in (("./reviews.csv", reviews_csv), ("./pairs.csv", pairs_csv)):  # where they lie is not told
        settings["tasks"] = [word.replace(name, lies) for word in settings["tasks"]]
    settings |= {"model": tiny_bert, "output_dir": str(tmp_path / "o")}
    again, first = Recipe(**settings).run(), Report.from_folder(both)
    assert losses_of(tmp_path / "o") == losses_of(both)
    assert {name: score.value for name, score in again.test.items()} == {n: s.value for n, s in first.test.items()}
    assert "has changed" not in capsys.readouterr().out
    assert (tmp_path / "o" / "recipe.yaml").read_text().count("data_sha256=") == 2


def test_recipe_yaml_tells_which_task_has_other_data_than_it_had(both, reviews_csv, pairs_csv, tmp_path):
    settings = yaml.safe_load((both / "recipe.yaml").read_text("utf-8"))
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(Path(reviews_csv).read_text().splitlines(keepends=True)[:-1]))
    lies = {"./reviews.csv": str(fewer), "./pairs.csv": pairs_csv}
    settings["tasks"] = [word.replace(name, lies[name]) for word, name in zip(settings["tasks"], lies, strict=True)]
    said = {}
    for name, recipe in several.recipes(Recipe(**settings)).items():
        said[name] = [check.name for check in read_data(recipe, recipe.part(task_class(recipe.task))).checks]
    assert "changed" in said["mood"]
    assert "changed" not in said["pairs"]


# --- the comparison ---


def test_a_difference_is_paired():
    """Two models that err on the same rows differ by nothing, for sure; on different rows the interval is wide."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    first, same, other = (SingleLabel(["a", "b"]) for _ in range(3))
    wrong = np.arange(200) < 40
    for metric, errs in ((first, wrong), (same, wrong), (other, wrong[::-1])):
        metric.update(np.eye(2)[np.where(errs, 1 - labels, labels)], labels)
    equal = bootstrap.difference(first.paired(), same.paired(), "accuracy")
    assert (equal.value, equal.low, equal.high, equal.n) == (0, 0, 0, 200)
    apart = bootstrap.difference(first.paired(), other.paired(), "accuracy")
    assert apart.value == pytest.approx(0)
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * np.sqrt(80 / 200 / 200), rel=0.1)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.2, "gained"), (-0.2, -0.01, "lost"), (-0.1, 0.1, "no difference")]
)
def test_a_verdict_needs_an_interval_without_zero(low, high, said):
    assert verdict(Score((low + high) / 2, low, high, 10)) == said


# --- bad input ---

BAD = {
    "a task without a source": (["mood"], "--tasks expected name=source"),
    "a name that is no name": (["a/b=x.csv"], "--tasks expected name=source"),
    "two tasks of one name": (["mood={reviews}", "mood={reviews}"], "two tasks called 'mood'"),
    "a name that is taken": (["checkpoints={reviews}"], "Give it another"),
    "no such file": (["mood={reviews}", "next=nowhere.csv"], "Task next: Expected a file or folder at nowhere.csv"),
    "a setting of another task": (["mood={reviews},tokens=x"], "--tokens belongs to token-classification"),
    "a setting that is none": (["mood={reviews},labl=x"], "Did you mean 'label'?"),
    "a column that is not there": (["mood={reviews},label=x"], "Task mood: Expected a column 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tasks_are_said_in_one_sentence(case, tiny_bert, reviews_csv, tmp_path, capsys):
    tasks, said = BAD[case]
    words = ["--tasks", *(task.format(reviews=reviews_csv) for task in tasks), "--output_dir", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stopped:
        main(Recipe(model=tiny_bert), words)
    assert stopped.value.code == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("task", Task.known())
def test_whatever_is_a_tasks_own_may_follow_its_source(task):
    given = dict.fromkeys(Task.known()[task].roles, "c") if "label" in Task.known()[task].roles else {}
    words = [f"task={task}", "max_train_samples=9", *(f"{role}={column}" for role, column in given.items())]
    name, settings = read_word(",".join(["a=rows.csv", *words]), Recipe)
    assert (name, settings) == ("a", {"data": "rows.csv", "task": task, "max_train_samples": 9} | given)
    with pytest.raises(UserError, match="'cache_gb' came"):
        read_word(f"a=rows.csv,task={task},cache_gb=0", Recipe)


def test_settings_that_do_not_fit_are_refused(tiny_bert, reviews_csv, tmp_path):
    def refused(said: str, **settings: object) -> None:
        given = {"tasks": [f"mood={reviews_csv}"], "model": tiny_bert, "output_dir": str(tmp_path / "o")} | settings
        with pytest.raises(UserError, match=said):
            EachAlone(Recipe(**given)).run()

    refused("Pass --tasks name=source", tasks=[])

    refused("--tasks is for training by steps", strategy="Features")
    refused("--tasks NAME=SOURCE,label=VALUE", label="score")
    refused("here there are several. Leave it out", packing=True)
    refused("--tasks NAME=SOURCE,tokens=VALUE", tokens="words")
    refused("--gradient_accumulation_steps", pcgrad=True)
    refused("they share none", pcgrad=True, adapters=True, gradient_accumulation_steps=2)
    refused("let it name LoRA", adapters=True, strategy="LinearProbe")
    refused("fits no mixture", label_smoothing_factor=0.1)
    with pytest.raises(UserError, match="--mixing is for several tasks"):
        Recipe(data=reviews_csv, model=tiny_bert, output_dir=str(tmp_path / "o"), mixing="uniform").run()
    merged = merge(EachAlone(Recipe(tasks=["a=b"])), ["--no_compare", "--mixing", "uniform"])
    assert (merged.compare, merged.recipe.mixing, merged.recipe.tasks) == (False, "uniform", ["a=b"])
    several_of_one = merge(Recipe(data=reviews_csv, label="stars", num_train_epochs=5), ["--tasks", "a=b", "c=d"])
    assert several_of_one.tasks == ["a=b", "c=d"], "what the recipe says of one task is no user's mistake"


# --- two processes ---


def start(processes: int, *flags: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = str(Path(__file__).parent.parent / "recipes" / "multitask.py")
    found = subprocess.run(
        [*launcher, script, *flags, "--disable_tqdm"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.launch
def test_two_processes_end_as_one(still_bert, reviews_csv, pairs_csv, tmp_path):
    """With tasks that take turns inside an update, and their conflicts projected away over both processes."""
    common = ["--model", still_bert, "--tasks", f"mood={reviews_csv}", f"pairs={pairs_csv}", "--optim", "sgd"]
    common += ["--learning_rate", "0.05", "--max_steps", "6", "--pcgrad", "--gradient_accumulation_steps", "3"]
    size = "--per_device_train_batch_size"
    launch("multitask.py", *common, size, "8", "--output_dir", str(tmp_path / "one"), "--disable_tqdm")
    start(2, *common, size, "4", "--output_dir", str(tmp_path / "two"))
    for task in ("mood", "pairs"):
        one, two = (load_file(tmp_path / name / task / "model.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)
    first, second = (Report.from_folder(tmp_path / name) for name in ("one", "two"))
    for row, other in zip(first.tasks, second.tasks, strict=True):
        assert row.steps == other.steps
        assert row.multi.n == other.multi.n
        assert row.single.value == pytest.approx(other.single.value, abs=1e-4)
        assert row.multi.value == pytest.approx(other.multi.value, abs=1e-4)
