"""A study runs its cells once: it goes on where it was killed, and runs again what was told something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hftl import Adapting, EachAlone, Recipe, Report, testing
from hftl.errors import UserError
from hftl.results.folder import TEST_ROWS
from hftl.tasks.metrics.classification import MultiLabel, SingleLabel
from hftl.tasks.metrics.entities import Entities
from hftl.tasks.metrics.regression import Regression
from hftl.tasks.metrics.segments import Segments

QUICK = {"num_train_epochs": 1.0, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "disable_tqdm": True}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("given")
    rows = testing.reviews_csv(folder / "rows.csv", 80)
    return QUICK | {"model": testing.tiny_bert(folder / "bert"), "data": rows, "unlabelled": rows, "strategy": "DANN"}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders into which recipes were run, in order."""
    done: list[str] = []
    run = Recipe.run

    def noted(recipe: Recipe, cell: bool = False) -> Report | None:
        done.append(Path(recipe.output_dir).name)
        return run(recipe, cell)

    monkeypatch.setattr(Recipe, "run", noted)
    return done


def test_a_killed_study_goes_on_with_the_cells_that_are_not_done(given, runs, tmp_path, monkeypatch):
    study = Adapting(Recipe(**given, output_dir=str(tmp_path / "o")), source_only=True)

    def killed(self, done):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Adapting, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            study.run()
    shutil.rmtree(tmp_path / "o")  # as if the second run had been killed
    report = study.run()
    assert runs == ["o-source-only", "o", "o"]
    assert Report.from_folder(tmp_path / "o").adaptation.source_only.scores == report.adaptation.source_only.scores


def test_a_finished_study_is_judged_again_without_a_run(given, runs, tmp_path):
    study = Adapting(Recipe(**given, output_dir=str(tmp_path / "o")), source_only=True)
    first, again = study.run(), study.run()
    assert runs == ["o-source-only", "o"]
    assert again.test == first.test
    assert again.adaptation.source_only.verdict == first.adaptation.source_only.verdict


def test_a_cell_that_was_told_something_else_is_not_taken_for_this_one(given, runs, tmp_path):
    Adapting(Recipe(**given, output_dir=str(tmp_path / "o")), source_only=True).run()
    other = Recipe(**given | {"seed": 7}, output_dir=str(tmp_path / "o"))
    with pytest.raises(UserError, match=r"holds a finished run\. Pass --overwrite"):
        Adapting(other, source_only=True).run()
    assert runs == ["o-source-only", "o"]  # refused before anything is run
    Adapting(Recipe(**given | {"seed": 7, "overwrite": True}, output_dir=str(tmp_path / "o")), source_only=True).run()
    assert runs == ["o-source-only", "o", "o-source-only", "o"]


def test_each_task_alone_is_found_by_its_folder(given, runs, tmp_path):
    tasks = [f"a={given['data']}", f"b={given['data']},max_train_samples=20"]
    recipe = Recipe(**QUICK, model=given["model"], tasks=tasks, output_dir=str(tmp_path / "o"))
    first, again = EachAlone(recipe).run(), EachAlone(recipe).run()
    assert runs == ["o", "a", "b"]
    assert [row.difference for row in first.tasks] == [row.difference for row in again.tasks]
    assert (tmp_path / "o" / "a" / TEST_ROWS).is_file()
    alone = Report.from_folder(tmp_path / "o-alone" / "a")
    assert alone.test["accuracy"] == again.tasks[0].single


def metrics() -> list:
    rng = np.random.default_rng(0)
    one, several, number = SingleLabel(["a", "b"]), MultiLabel(["a", "b"]), Regression()
    one.update(rng.normal(size=(9, 2)), rng.integers(0, 2, 9))
    several.update(rng.normal(size=(9, 2)), rng.integers(0, 2, (9, 2)))
    number.update(rng.normal(size=9), rng.normal(size=9))
    tags, masks = Entities(["O", "B-x"]), Segments(["a", "b"])
    tags.update(rng.normal(size=(9, 4, 2)), rng.integers(0, 2, (9, 4)))
    masks.update(rng.integers(1, 9, (9, 2, 2)).astype(float), np.zeros((9, 4, 4)))
    return [one, several, number, tags, masks]


@pytest.mark.parametrize("metric", metrics(), ids=lambda metric: type(metric).__name__)
def test_what_a_cell_keeps_of_test_opens_without_a_pickle_and_compares_as_it_did(metric, tmp_path):
    np.savez(tmp_path / "rows.npz", **metric.held())
    again = type(metric)(metric.names)
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as held:
        again.restore({name: held[name] for name in held.files})
    assert again.paired().values() == metric.paired().values()
