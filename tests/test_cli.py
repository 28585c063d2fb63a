"""The command line: the order of sources, the reading of flags, help, and the `hftl` command."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from hftl.cli import main as cli
from hftl.data.types import Data, Target
from hftl.errors import UserError
from hftl.run.recipe import Recipe
from hftl.run.settings import Adaptation
from hftl.settings import fields as settings_fields
from hftl.settings.fields import RANGES, flag, named_choices, own_settings, training_settings
from hftl.tasks.base import Task
from hftl.tasks.image.segmentation import ImageSegmentation

ROOT = Path(__file__).parents[1]


@dataclass(init=False)
class Stub(Recipe):
    """A recipe with a flag of its own, as a user writes one, that says what it would have run."""

    alpha: float = flag(0.5, "a flag of a user's own", "Mine")
    ran: ClassVar[list[dict[str, Any]]] = []

    def run(self) -> Any:
        self.ran.append(self.settings())
        return "the report"


def settings_of(*words: str, recipe: Recipe | None = None) -> dict[str, Any]:
    Stub.ran.clear()
    assert cli.main(recipe or Stub(), list(words)) == "the report"
    return Stub.ran[0]


def refusal(capsys: pytest.CaptureFixture[str], *words: str, command: Any = None) -> str:
    """The one sentence that a command line is refused with."""
    Stub.ran.clear()
    with pytest.raises(SystemExit) as left:
        (command or (lambda argv: cli.main(Stub(), argv)))(list(words))
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert not Stub.ran
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


# the order of sources, and how words become values


def test_flags_win_over_the_file_and_the_file_wins_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 2\nlearning_rate: 1e-4\ntrain_file: a.csv\nmax_length: null\nnum_train_epochs: null\n")
    recipe = Stub(seed=1, max_length=99, num_train_epochs=9.0, weight_decay=0.3, optim="sgd")
    found = settings_of("--seed", "3", "--config", str(file), recipe=recipe)
    assert found["seed"] == 3
    assert found["learning_rate"] == 1e-4  # YAML 1.1 reads 1e-4 as text
    assert found["data"] == "a.csv"
    assert found["max_length"] is None
    assert found["num_train_epochs"] == 3.0  # null is the default where None is no value
    assert (found["weight_decay"], found["optim"]) == (0.3, "sgd")
    assert recipe.seed == 1


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning_rate", "1e-4"], "learning_rate", 1e-4),
        (["--learning_rate=1e-4"], "learning_rate", 1e-4),
        (["--learning-rate", "1e-4"], "learning_rate", 1e-4),
        (["--num_train_epochs", "2"], "num_train_epochs", 2.0),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--bf16"], "bf16", True),
        (["--bf16", "--seed", "1"], "bf16", True),
        (["--bf16", "false"], "bf16", False),
        (["--bf16=yes"], "bf16", True),
        (["--no_bf16"], "bf16", False),
        (["--no-dataloader-pin-memory"], "dataloader_pin_memory", False),
        (["--text", "5"], "text", "5"),
        (["--text", "none"], "text", "none"),
        (["--text="], "text", None),
        (["--text=--odd"], "text", "--odd"),
        (["--data", "-"], "data", "-"),
        (["--data", "123"], "data", "123"),
        (["--max_length", "none"], "max_length", None),
        (["--warmup_steps", "0.1"], "warmup_steps", 0.1),
        (["--metrics", "a", "b"], "metrics", ["a", "b"]),
        (["--metrics", "a", "--metrics", "b"], "metrics", ["a", "b"]),
        (["--metrics", "a"], "metrics", ["a"]),
        (["--report_to", "wandb"], "report_to", "wandb"),
        (["--report_to", "wandb", "mlflow"], "report_to", ["wandb", "mlflow"]),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
        (["--deepspeed", "zero2.json"], "deepspeed", "zero2.json"),
        (["--include_num_input_tokens_seen", "no"], "include_num_input_tokens_seen", "no"),
        (["--include_num_input_tokens_seen", "true"], "include_num_input_tokens_seen", True),
        (["--lr_scheduler_type", "cosine"], "lr_scheduler_type", "cosine"),
        (["--eval_steps", "20"], "eval_steps", 20.0),
        (["--strategy", "LastLayers(2) | LayerDecay(0.9)"], "strategy", "LastLayers(2) | LayerDecay(0.9)"),
        (["--alpha", "1"], "alpha", 1.0),
        (["--model_name_or_path", "m"], "model", "m"),
        (["--dataset_name", "d"], "data", "d"),
        (["--train-file", "d.csv"], "data", "d.csv"),
        (["--validation_file", "v.csv"], "valid", "v.csv"),
        (["--test_file", "t.csv"], "test", "t.csv"),
    ],
)
def test_a_flag_is_read_as_its_type(words: list[str], name: str, value: Any) -> None:
    found = settings_of(*words)[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--learning_rat", "1"], ["no flag --learning_rat.", "Did you mean '--learning_rate'?", "not abbreviated"]),
        (["--learnign_rate=1"], ["no flag --learnign_rate.", "Did you mean '--learning_rate'?"]),
        (["--per_device"], ["Did you mean '--per_device_train_batch_size'?", "not abbreviated"]),
        (["--warmup_ratio", "0.1"], ["Did you mean '--warmup_steps'?"]),
        (["--lr", "1"], ["Did you mean '--learning_rate'?"]),
        (["--alhpa", "1"], ["Did you mean '--alpha'?"]),
        (["--no_seed"], ["no flag --no_seed"]),
        (["--training", "{}"], ["no flag --training"]),
        (["--hub_token", "hf_secret"], ["hf auth login"]),
        (["--"], ["'--' came"]),
        (["-s", "3"], ["'-s' came"]),
        (["--text", "my", "column"], ["'column' came", "--text takes one value", "quote"]),
        (["--seed"], ["--seed needs a value (a whole number"]),
        (["--text", "--bf16"], ["--text needs a value (text)"]),
        (["--metrics"], ["--metrics needs a value"]),
        (["--seed", "x"], ["--seed expected a whole number", "'x' came"]),
        (["--seed", "1.5"], ["--seed expected a whole number", "'1.5' came"]),
        (["--seed="], ["--seed expected a whole number"]),
        (["--seed", "-1"], ["--seed expected a whole number from 0 to 4294967295; -1 came"]),
        (["--bf16", "maybe"], ["--bf16 expected true or false; 'maybe' came"]),
        (["--learning_rate", "fast"], ["--learning_rate expected a number above 0; 'fast' came"]),
        (["--learning_rate", "0"], ["--learning_rate expected a number above 0"]),
        (["--learning_rate", "nan"], ["nan came"]),
        (["--learning_rate", "inf"], ["inf came"]),
        (["--num_train_epochs", "-1"], ["--num_train_epochs expected a number above 0; -1"]),
        (["--per_device_train_batch_size", "0"], ["a whole number of 1 or more; 0 came"]),
        (["--max_train_samples", "0"], ["--max_train_samples expected a whole number of 1 or more"]),
        (["--optim", "adamv"], ["--optim expected adamw_torch"]),
        (["--adam_beta1", "1"], ["from 0 to below 1"]),
        (["--on_bad_row", "skp"], ["error or skip", "Did you mean 'skip'?"]),
        (["--problem_type", "regresion"], ["Did you mean 'regression'?"]),
        (["--class_weights", "even"], ["--class_weights expected balanced; 'even' came"]),
        (["--augment", "Sketsh"], ["Did you mean 'Sketch'?", "`hftl augmentations` lists them all"]),
        (["--augment", "Sketch(p=2)"], ["Sketch(p) takes a number from 0 to 1; 2"]),
        (["--lr_scheduler_type", "cosin"], ["Did you mean 'cosine'?"]),
        (["--save_strategy", "epochs"], ["Did you mean 'epoch'?"]),
        (["--lr_scheduler_kwargs", "{1"], ["expected JSON such as", "'{1' came"]),
        (["--strategy", "LayerDecya"], ["Did you mean 'LayerDecay'?"]),
        (["--strategy", "LayerDecay(2"], ["never closed"]),
        (["--strategy", "LayerDecay(7)"], ["LayerDecay(decay)", "in (0, 1]", "Try LayerDecay(0.75)", "7"]),
        (["--config", "nowhere.yaml"], ["no file 'nowhere.yaml'"]),
        (["--config", "."], ["cannot be read"]),
        (["--help", "LayerDecya"], ["--help takes all, strategies, augmentations", "Did you mean 'LayerDecay'?"]),
    ],
)
def test_a_bad_flag_is_answered_with_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], fragments: list[str]
) -> None:
    sentence = refusal(capsys, *words)
    assert all(fragment in sentence for fragment in fragments), sentence


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["is empty"]),
        (b"# nothing\n", ["is empty"]),
        (b"- a\n", ["holds a list", "learning_rate: 2e-5"]),
        (b"seed: 1\nseed: 2\n", ["line 2", "'seed' is given twice"]),
        (b"seed: 1\ndata:\n\tx: 1\n", ["line 3", "tab"]),
        (b"metrics: [a\n", ["line 2"]),
        (b"? [a]\n: 1\n", ["line 1"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b"!!python/object/apply:os.system ['true']", ["line 1"]),
        (b"on: 1\n", ["setting True"]),
        (b"sede: 1\n", ["unknown setting 'sede'", "Did you mean 'seed'?"]),
        (b"learning-rate: 1\n", ["unknown setting 'learning-rate'", "Did you mean 'learning_rate'?"]),
        (b"hub_token: hf_x\n", ["unknown setting 'hub_token'"]),
        (b"cache_views: 2\n", ["unknown setting 'cache_views'", "Leave it out: rows that --augment changes"]),
        (b"seed: 1.5\n", ["'seed' in ", "a whole number", "1.5 came"]),
        (b"seed: true\n", ["True came"]),
        (b"text: yes\n", ["True came", "quotes"]),
        (b"learning_rate: -1\n", ["a number above 0"]),
        (b"metrics: 3\n", ["a list of text"]),
    ],
)
def test_a_bad_config_file_is_answered_with_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, fragments: list[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    sentence = refusal(capsys, "--config", str(file))
    assert "bad.yaml" in sentence
    assert all(fragment in sentence for fragment in fragments), sentence


def test_a_recipe_file_of_an_earlier_version_is_read_where_it_asks_for_nothing_that_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 7\ncache_views: 0\n", "utf-8")
    assert cli.merge(Recipe(), ["--config", str(file)]).seed == 7


@pytest.mark.parametrize(
    ("world", "loaded", "left"), [(None, False, None), ("1", False, None), ("2", False, "1"), (None, True, "1")]
)
def test_a_lone_process_of_accelerate_takes_every_core(world, loaded, left, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {})
    monkeypatch.setitem(sys.modules, "torch", sys) if loaded else monkeypatch.delitem(sys.modules, "torch", False)
    cli.take_the_cores()
    assert os.environ.get("OMP_NUM_THREADS") == left


def test_a_bad_value_in_the_recipe_itself_is_found_before_the_run() -> None:
    with pytest.raises(UserError, match="num_train_epochs expected a number above 0"):
        Stub(num_train_epochs=-2)


def test_settings_are_those_of_the_installed_training_arguments() -> None:
    from transformers import IntervalStrategy, SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    theirs = {f.name: f for f in fields(TrainingArguments) if not f.name.startswith("_") and f.init}
    assert set(training_settings()) == set(theirs)
    assert training_settings()["adam_beta2"].default == theirs["adam_beta2"].default == 0.999
    for kind in (IntervalStrategy, SchedulerType, OptimizerNames):
        assert list(named_choices(kind.__name__)) == [member.value for member in kind]


def test_every_range_is_of_a_training_argument_that_no_recipe_declares_and_every_alias_of_a_setting() -> None:
    own = Recipe.own("text-classification")
    assert set(RANGES) <= set(training_settings()) - set(own)
    assert set(cli.ALIASES.values()) <= set(own)


def test_where_transformers_has_no_training_arguments_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_fields.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Expected TrainingArguments in .*training_args\.py.* pip install"):
        settings_fields._classes_of_transformers.__wrapped__()


# whose a setting is


@pytest.mark.parametrize("task", sorted(Task.known()))
def test_a_setting_has_one_owner(task: str) -> None:
    owners = (Recipe, Data, Task.known()[task], Target, Adaptation)
    names = [name for owner in owners for name in own_settings(owner)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--classes", "names.txt"],
            "--classes belongs to image-segmentation; this recipe's task is text-classification. Leave it out.",
        ),
        (["--task", "image-classification", "--packing"], "--packing belongs to text-classification and "),
        (["--task", "fill-mask", "--unlabelled", "a.csv"], "--unlabelled belongs to tasks with labels; this "),
        (["--task", "fil-mask"], "There is no task 'fil-mask'; hftl has "),
        (["--then", "x"], "There is no flag --then. Run the second recipe after it, with && and --model."),
    ],
)
def test_a_flag_of_another_task_is_refused_with_its_owners_name(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert refusal(capsys, *words).startswith(f"error: {sentence}")


def test_a_foreign_setting_in_a_file_is_refused_unless_it_is_empty_or_as_by_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("task: text-classification\nclasses: null\nignored: [255]\nimage: null\nmask: 0.15\nseed: 3\n")
    found = settings_of("--config", str(file))
    assert found["seed"] == 3
    assert not {"classes", "ignored", "image", "mask"} & set(found)
    file.write_text("ignored: [0, 255]\n")
    assert "--ignored belongs to image-segmentation" in refusal(capsys, "--config", str(file))


def test_the_task_of_the_flags_or_of_the_file_decides_which_others_there_are(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("task: image-segmentation\nclasses: names.txt\n")
    assert settings_of("--config", str(file))["classes"] == "names.txt"
    assert settings_of("--mask", "0.3", "--task=fill-mask")["mask"] == 0.3


def test_settings_of_every_owner_are_attributes_of_a_recipe() -> None:
    recipe = Recipe(task="image-segmentation", classes="names.txt", valid="v.csv", select="entropy", adam_beta1=0.8)
    assert (recipe.classes, recipe.valid, recipe.select, recipe.ignored) == ("names.txt", "v.csv", "entropy", [255])
    assert recipe.part(ImageSegmentation).classes == "names.txt"
    assert recipe.training == {"adam_beta1": 0.8}
    assert recipe == Recipe(**recipe.settings())
    with pytest.raises(UserError, match="--max_length belongs to"):
        Recipe(task="image-segmentation", max_length=3)


# help


def page(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recipes/text_cls.py"])
        with pytest.raises(SystemExit) as left:
            cli.main(Stub(seed=7), list(words))
    assert left.value.code == 0
    return capsys.readouterr().out


def test_the_short_help_shows_every_own_setting_with_the_recipes_default(capsys: pytest.CaptureFixture[str]) -> None:
    shown = page(capsys, "--seed", "1", "--help")
    assert max(map(len, shown.splitlines())) <= 100
    for name in Stub.own("text-classification"):
        assert len(re.findall(rf"^  --{name}\b", shown, re.MULTILINE)) == 1
    assert not re.search(r"--(image|ignored|classes|image_size|mask|weights|tokens)\b", shown)
    assert "(default: 7)" in shown
    assert shown.index("What goes in") < shown.index("How it learns") < shown.index("\nMine\n  --alpha X")
    assert "--adam_beta2" not in shown


def test_help_all_shows_every_name_of_training_arguments_but_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    shown = page(capsys, "--help", "all")
    assert all((f"--{name}" in shown) == (name != "hub_token") for name in training_settings())
    assert max(map(len, shown.splitlines())) <= 100


def test_strategies_are_listed_with_signature_and_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = page(capsys, "--help", "strategies")
    assert "LayerDecay(decay=0.75)" in shown
    assert "Every weight trains at the same rate." in shown
    assert "LayerDecay(decay=0.75)\n\n  Each block" in page(capsys, "--help", "LayerDecay")


def test_a_number_of_threads_that_the_user_gave_stays(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delitem(sys.modules, "torch", False)
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {"OMP_NUM_THREADS": "1"})
    cli.take_the_cores()
    assert os.environ.get("OMP_NUM_THREADS") == "1"


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ([], 1e-3),
        (["--strategy", "LinearProbe"], None),
        (["--strategy", "LayerDecay(0.9)"], 1e-3),
        (["--strategy", "LinearProbe", "--learning_rate", "2e-3"], 2e-3),
    ],
)
def test_the_rate_of_a_recipe_is_for_its_own_strategy(words, rate) -> None:
    assert cli.merge(Recipe(task="image-classification", learning_rate=1e-3), words).learning_rate == rate
