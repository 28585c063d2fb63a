"""benchmarks/speed.py compares like with like, its tables say what was measured, and an interrupted run goes on."""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
import transformers

from hftl import Recipe
from hftl.cli import main as cli
from hftl.models.anatomy import anatomy
from hftl.settings import spec
from hftl.strategies import Strategy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
speed, jobs, tables, data, plain = (
    importlib.import_module(name) for name in ("speed", "speed_jobs", "speed_table", "speed_data", "plain_trainer")
)


def bert() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **sizes))


def trained_by_hftl(model: torch.nn.Module, notation: str) -> set[str]:
    (strategy,) = spec.build(notation, Strategy.known())
    places = anatomy(model, {name for name, _ in model.named_parameters() if name.startswith("classifier.")})
    model = strategy.prepare(model, places)
    return {name for name, _ in model.named_parameters() if strategy.rate(places.place(name), 0.5) > 0}


def trained_by_the_plain_script(model: torch.nn.Module, flags: dict[str, str]) -> set[str]:
    if "--freeze" in flags:
        plain.freeze(model, flags["--freeze"])
    if "--lora" in flags:
        model = plain.with_lora(model, int(flags["--lora"]))
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["probe-sst2", "last2-sst2", "lora-sst2", "full-sst2"])
def test_the_plain_script_trains_the_weights_that_hftl_trains(name: str) -> None:
    model, job = bert(), jobs.JOBS[name]
    flags = dict(zip(job.plain[::2], job.plain[1::2], strict=True))
    theirs = trained_by_the_plain_script(copy.deepcopy(model), flags)
    ours = trained_by_hftl(model, job.strategy)
    assert {name.replace(".default", "") for name in ours} == {name.replace(".default", "") for name in theirs}


@pytest.mark.parametrize("name", jobs.JOBS)
def test_hftl_takes_every_flag_that_a_job_gives_it(name: str, tmp_path: Path) -> None:
    job = jobs.JOBS[name]
    call = jobs.Call(job, tmp_path, "model", 1, str(tmp_path), 2)
    for side in job.sides:
        words = jobs.SIDES[side](call)
        assert Path(words[1]).is_file()
        if side.startswith("hftl"):
            assert cli.merge(Recipe(), words[2:]).seed in (1, 101)


def test_the_floor_counts_frozen_work_once_and_the_rest_in_every_epoch() -> None:
    assert jobs.JOBS["probe-sst2"].floor == 1
    assert jobs.JOBS["last2-sst2"].floor == pytest.approx(4 / 6 + 3 * 5 * 2 / 6)
    assert jobs.JOBS["full-ants"].floor == 3 * 6
    assert jobs.JOBS["lpft-sst2"].floor == 1 + 3 * 2
    assert jobs.JOBS["lora-sst2"].floor == 2
    assert jobs.JOBS["last2-sst2"].floor_evaluating == pytest.approx(4 / 6 + 5 * 2 / 6)


def result(job: str, side: str, turn: int, seconds: float, **others: float) -> dict:
    rows = {"train": 80, "validation": 10, "test": 160}
    about = {"job": job, "side": side, "round": turn, "rows": rows, "threads": 2, "pass": 2.0, "wall": seconds + 9}
    return about | {"seconds": seconds, "valid": 0.8, "test": 0.8, "peak_memory": 1e9, "trained": 770} | others


def test_ratios_are_taken_within_a_round() -> None:
    slow = [result("probe-sst2", "plain", turn, seconds) for turn, seconds in ((1, 40.0), (2, 90.0), (3, 40.0))]
    fast = [result("probe-sst2", "hftl", turn, seconds) for turn, seconds in ((1, 2.0), (2, 3.0), (3, 1.0))]
    rows = [line for line in tables.table(slow + fast).splitlines() if "plain" in line]
    assert any("| 30.00 (20.00 to 40.00) |" in line for line in rows)


def test_a_goal_is_reached_or_not_by_the_median_of_the_rounds() -> None:
    runs = [result("probe-sst2", "hftl", turn, seconds) for turn, seconds in ((1, 2.2), (2, 2.2), (3, 9.0))]
    assert "| passes: at most 1.15 | 1.10 (1.10 to 4.50) | yes |" in tables.goals(runs)
    assert "| passes: at most 1.15 | 4.50 | no |" in tables.goals(runs[2:])


def test_the_cost_of_probing_leaves_out_tuning_and_the_pass_that_fills_the_cache() -> None:
    whole = result("lpft-sst2", "hftl", 1, 15.2)
    tuned = result("lpft-sst2", "hftl, Full half as long", 1, 12.0)
    assert tables.probing(whole, tuned) == pytest.approx((3.2 / 2.0 - 1) / 2)


def test_long_tailed_texts_are_the_same_each_time_and_very_unlike_in_length() -> None:
    made = data.long_tail("train", 400)
    assert made == data.long_tail("train", 400) != data.long_tail("test", 400)
    lengths = sorted(len(row["text"].split()) for row in made)
    assert statistics.median(lengths) == pytest.approx(20, rel=0.15)
    assert lengths[0] >= 3
    assert lengths[-1] > 150
    assert {row["label"] for row in made} == {"0", "1"}


def test_a_round_that_stands_in_the_results_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    for file in data.FILES.values():
        (folder / file).write_text("text,label\n" + "fine,1\nbad,0\n" * 20)
    played = []

    def one(call: jobs.Call, side: str, cache: Path) -> dict:
        played.append((call.seed, side))
        if len(played) == 4:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "wall": 9.0, "valid": 0.8, "test": 0.8, "peak_memory": 1e9, "trained": 770}

    monkeypatch.setattr(speed, "one", one)
    monkeypatch.setattr(speed, "run_process", lambda *words: (json.dumps({"seconds": 2.0}), 1.0))
    flags = ["--data", str(tmp_path), "--weights", str(tmp_path), "--rounds", "2", "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "probe-sst2", *flags, "--rows", "20"])
    with pytest.raises(KeyboardInterrupt):
        speed.main()
    speed.main()
    first, second = [(1, "hftl"), (1, "plain")], [(2, "hftl"), (2, "plain")]
    assert played == first + second + second
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
