"""Folders that hftl 0.1 wrote: page, card, recipe and model are read today. In `of_0_1` lies their text, less weights.

They were made by that version's recipes on the tiny models and rows of `hftl.testing`; galleries were cut to one row.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import transformers

from hftl import Adapting, EachAlone, Recipe, Report, load, testing
from hftl.cli.main import merge
from hftl.errors import UserError
from hftl.results.report.wording import known, number
from hftl.results.report.write import write

KEPT = Path(__file__).parent / "of_0_1"
FOLDERS = sorted(path.parent.relative_to(KEPT).as_posix() for path in KEPT.rglob("report.json"))
STUDIES = {"adapted": Adapting(Recipe())} | {name: EachAlone(Recipe()) for name in FOLDERS if "together" in name}
READ = {  # an input, and what an answer holds
    "text": ("good film", "label"),
    "number": ("good film", "value"),
    "several": ("good film", "label"),
    "tags": ("good film", "label"),
    "image": ("red.png", "label"),
    "segment": ("red.png", "mask"),
    "adapted": ("good film", "label"),
    "together/score": ("good film", "value"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_page_and_card_of_an_old_folder_show_its_numbers(name: str, tmp_path: Path) -> None:
    report = Report.from_folder(KEPT / name)
    write(report, tmp_path)
    again = Report.from_folder(tmp_path)
    assert (again.test, again.valid, again.headline, again.labels) == (
        report.test,
        report.valid,
        report.headline,
        report.labels,
    )
    headlines = [report.test[report.headline]] if report.test else [task.multi for task in report.tasks]
    for file in ("report.html", "README.md"):
        text = (tmp_path / file).read_text("utf-8")
        for score in headlines:
            assert all(number(value) in text for value in (score.value, score.low, score.high) if known(value)), file


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "features"])
def test_the_recipe_of_an_old_folder_is_run_again_as_it_was(name: str) -> None:
    merged = merge(STUDIES.get(name, Recipe()), ["--config", str(KEPT / name / "recipe.yaml")])
    recipe, report = getattr(merged, "recipe", merged), Report.from_folder(KEPT / name)
    for told in ("model", "strategy", "seed", "num_train_epochs", "per_device_train_batch_size", "bf16"):
        assert getattr(recipe, told) == report.settings[told], told
    if not recipe.several:
        assert (recipe.task, recipe.data) == (report.task, report.settings["data"])


def test_what_is_gone_from_an_old_recipe_is_answered_with_what_to_write() -> None:
    with pytest.raises(UserError, match="Features"):
        merge(Recipe(), ["--config", str(KEPT / "features" / "recipe.yaml")])


@pytest.mark.parametrize("name", READ)
def test_the_model_of_an_old_folder_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bert, folder = Path(testing.tiny_bert(Path("bert"))), Path("old")
    testing.colour_images(Path("colours"), 2)
    shutil.copy("colours/red/0.png", "red.png")
    config = transformers.AutoConfig.from_pretrained(KEPT / name)
    model = getattr(transformers, config.architectures[0])(config)
    if (KEPT / name / "adapter_config.json").exists():
        model = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(KEPT / name))
    model.save_pretrained(folder)
    shutil.copytree(bert, folder, ignore=lambda path, names: [n for n in names if "token" not in n], dirs_exist_ok=True)
    shutil.copytree(KEPT / name, folder, dirs_exist_ok=True)
    given, holds = READ[name]
    read, labels = load(folder), Report.from_folder(folder).labels
    answer = read(given)
    assert holds in answer
    assert read.labels.names == labels
