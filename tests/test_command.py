"""The `hftl` command: what it hands over, and what it answers to a mistake."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hftl.cli import main as cli
from hftl.cli import recipes
from hftl.run import outcome

ROOT = Path(__file__).parents[1]


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    module = types.ModuleType("hftl.results.predict")
    module.predict_file = lambda *args, **named: calls.append((args, named))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hftl.results.predict", module)
    return calls


def test_predict_hands_its_flags_over(predicted: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    cli.hftl(["predict", "run", "--data", "-", "--output", str(output), "--batch-size", "8", "--text", "review"])
    output.write_text("kept")
    cli.hftl(["predict", "run", "--data=new.csv", "--output", str(output), "--overwrite"])
    assert predicted == [
        (("run", "-", str(output), {"text": "review"}), {"batch_size": 8}),
        (("run", "new.csv", str(output), {}), {}),
    ]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["predct"], "Did you mean 'predict'?"),
        (["--verson"], "Did you mean '--version'?"),
        (["predict"], "takes the folder of a run first"),
        (["predict", "--data", "x"], "takes the folder of a run first"),
        (["predict", "run", "--output", "o.csv"], "needs --data"),
        (["predict", "run", "--data", "d.csv"], "needs --output"),
        (["predict", "run", "--data", "d.csv", "--output", str(ROOT / "pyproject.toml")], "pass --overwrite"),
        (["predict", "run", "--date", "d.csv"], "Did you mean '--data'?"),
        (["predict", "run", "--data", "d", "--output", "o", "--batch_size", "0"], "a whole number of 1 or more"),
        (["strategies", "LayerDecya"], "Did you mean 'LayerDecay'?"),
    ],
)
def test_a_bad_hftl_command_is_answered_with_one_sentence(
    capsys: pytest.CaptureFixture[str], predicted: list[Any], words: list[str], fragment: str
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.hftl(words)
    sentence = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence.startswith("error: ")
    assert sentence.count("\n") == 1
    assert fragment in sentence
    assert not predicted


def test_hftl_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    for words, shown in [
        ([], "hftl predict FOLDER"),
        (["--help"], "hftl predict FOLDER"),
        (["strategies"], "LastLayers(k=2)"),
        (["strategies", "LastLayers"], "last k blocks"),
        (["predict", "--help"], "--batch_size"),
        (["--version"], "transformers 5."),
    ]:
        cli.hftl(words)
        assert shown in capsys.readouterr().out


def test_a_recipe_is_run_by_its_name_with_its_own_words(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["hftl"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "")  # it is given back at the end
    monkeypatch.setattr(cli, "main", lambda recipe: run.append((recipe.task, list(sys.argv))))
    cli.hftl(["train", "segment", "--data", "photos"])
    assert run == [("image-segmentation", ["hftl train segment", "--data", "photos"])]
    assert outcome.command() == "hftl train segment --data photos"
    with pytest.raises(SystemExit) as end:
        cli.hftl(["train", "text_clas"])
    assert end.value.code == 2
    assert "Did you mean 'text_cls'?" in capsys.readouterr().err


def test_recipes_are_listed_and_copied_out(tmp_path: Path, capsys: Any) -> None:
    cli.hftl(["recipes"])
    assert "hftl train token_cls" in capsys.readouterr().out
    cli.hftl(["recipes", "text_cls", str(tmp_path / "mine.py")])
    assert (tmp_path / "mine.py").read_bytes() == (ROOT / "recipes" / "text_cls.py").read_bytes()
    with pytest.raises(SystemExit):
        cli.hftl(["recipes", "text_cls", str(tmp_path / "mine.py")])
    assert "mine.py exists. Pass another file." in capsys.readouterr().err


def test_every_recipe_is_in_the_package_too() -> None:
    found = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__"}
    assert set(recipes.recipes()) == found
    assert 'package_dir={"hftl.recipes": "recipes"}' in (ROOT / "setup.py").read_text("utf-8")
