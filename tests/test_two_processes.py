"""Two processes on one machine do what one does, whole (DDP) or split (FSDP2): same updates, losses, metrics, folder.

Each launch runs many recipes in turn (`tests/in_turn.py`): starting processes takes longer than all of them.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_runs import same
from in_turn import noted
from PIL import Image
from safetensors.torch import load_file
from test_segmentation import quarters

import hftl
from hftl import testing

pytestmark = pytest.mark.launch
ROOT = Path(__file__).parents[1]
FSDP2 = ROOT / "accelerate_configs" / "fsdp2.yaml"
SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 0.3, "disable_tqdm": True}
SGD["head"] = "random"  # a head that is solved starts where steps show little


@pytest.fixture(scope="module")
def places(tiny_bert, tiny_cnn, reviews_csv, colour_folder, tmp_path_factory) -> dict[str, str]:
    """A BERT without dropout, whose draws would differ between one process and two; splits of which 2 divides none."""
    made = tmp_path_factory.mktemp("two")
    shutil.copytree(tiny_bert, made / "bert")
    config = json.loads((made / "bert" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (made / "bert" / "config.json").write_text(json.dumps(config))
    odd = {f"odd{n}": testing.reviews_csv(made / f"odd{n}.csv", n) for n in (17, 19)}
    texts = {"even": reviews_csv} | odd
    quarters(made / "scenes", 80)
    for i in range(0, 80, 2):  # half of the masks say less of their image
        mask = Image.open(made / "scenes" / "masks" / f"{i}.png")
        mask.paste(255, (0, 0, 64, i // 2))
        mask.save(made / "scenes" / "masks" / f"{i}.png")
    return {
        "scenes": str(made / "scenes"),
        "bert": str(made / "bert"),
        "cnn": tiny_cnn,
        "colours": colour_folder,
        "out": str(made),
        **texts,
    }


def works(places: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Settings of the runs that both one process and two are put to, without the batch and the folder."""
    text = SGD | {"model": places["bert"], "data": places["even"]}
    image = SGD | {"task": "image-classification", "model": places["cnn"], "data": places["colours"]}
    scenes = image | {"task": "image-segmentation", "data": places["scenes"], "image_size": "64"}
    step = {"max_steps": 1}
    return {
        "Full": text | step,
        "LoRA": text | step | {"strategy": "LoRA(r=4)"},
        "GradualUnfreeze": text | step | {"strategy": "GradualUnfreeze"},
        "DANN": text | step | {"strategy": "DANN", "unlabelled": places["even"]},
        "EDA": text | step | {"augment": "EDA(alpha=0.3)"},
        "odd": text | {"valid": places["odd17"], "test": places["odd19"], "num_train_epochs": 2},
        "cached": text | {"strategy": "LastLayers(1)", "num_train_epochs": 3},
        "image": image | {"strategy": "LinearProbe", "num_train_epochs": 2},
        "segment": scenes | {"strategy": "LinearProbe", "num_train_epochs": 2},
        "early": text | {"num_train_epochs": 6, "learning_rate": 1e-30, "early_stopping_patience": 2},
    }


TOGETHER = {
    "ddp": ["Full", "LoRA", "GradualUnfreeze", "DANN", "EDA", "odd", "cached", "image", "segment", "early"],
    "fsdp2": ["Full", "LoRA", "odd", "cached", "image", "segment", "early"],
}


@pytest.fixture(scope="module")
def alone(places) -> dict[str, dict[str, Any]]:
    """What one process makes of each run, keeping nothing."""
    found = {}
    for name, settings in works(places).items():
        out = f"{places['out']}/one/{name}"
        found[name] = noted(settings | {"per_device_train_batch_size": 16, "output_dir": out, "cache_gb": 0.0})
        found[name]["folder"] = Path(out)
    return found


def launch(launcher: list[str], work: list[dict[str, Any]], out: Path) -> list[list[dict[str, Any]]]:
    """What each of two processes knows of runs that they did together."""
    out.mkdir(parents=True)
    (out / "work.json").write_text(json.dumps(work))
    found = subprocess.run(
        [sys.executable, "-m", *launcher, str(ROOT / "tests" / "in_turn.py"), str(out / "work.json")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HFTL_CACHE": str(out / "kept"), "PYTHONPATH": str(ROOT)},
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-5000:]
    return [json.loads((out / f"work.json.{rank}").read_text()) for rank in (0, 1)]


LAUNCHERS = {
    "ddp": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "fsdp2": ["accelerate.commands.launch", "--config_file", str(FSDP2)],
}


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def together(request, places) -> dict[str, Any]:
    """What two processes make of them: `{name: [process 0's, process 1's]}`, and the `kind`."""
    kind = request.param
    out, size = Path(places["out"]) / kind, {"per_device_train_batch_size": 8}
    made = works(places)
    work = [(name, made[name] | size) for name in TOGETHER[kind]]
    twice = {"max_steps": -1, "num_train_epochs": 2}
    work.append(("tokens", made["Full"] | twice | {"max_tokens_per_batch": 150}))
    for name, one in (
        ("text", made["Full"] | {"strategy": "LoRA(r=4)"}),
        ("image", made["image"] | {"strategy": "Full"}),
    ):
        one |= twice | size | {"optim": "adamw_torch", "learning_rate": 0.01, "cache_gb": 0.0}
        work += [(f"{name} whole", one), (f"{name} asked", one | {"asked": 2, "output_dir": str(out / f"{name} cut")})]
        work += [(f"{name} stopped", one | {"stop": 9, "resume": True, "output_dir": str(out / f"{name} cut")})]
        work += [(f"{name} cut", one | {"resume": True})]
    both = launch(LAUNCHERS[kind], [{"output_dir": str(out / name)} | given for name, given in work], out)
    found = {name: each for (name, _), *each in zip(work, *both, strict=True)}
    cut = {name: found.pop(name)[0]["left"] for name in list(found) if "left" in found[name][0]}
    return found | {"kind": kind, "out": out, "left": cut}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a folder's one file of weights holds."""
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def losses(noted: dict[str, Any], name: str = "loss") -> list[float]:
    return [entry[name] for entry in noted["history"] if name in entry]


@pytest.mark.parametrize("name", TOGETHER["ddp"])
def test_two_processes_do_what_one_does(name: str, alone, together) -> None:
    if name not in TOGETHER[together["kind"]]:
        pytest.skip("FSDP2 refuses streams, and the rest is no different under it")
    one, (two, _), folder = alone[name], together[name], together["out"] / name
    mine, theirs = weights(one["folder"]), weights(folder)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(theirs[key], mine[key], atol=1e-5, rtol=0)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(two, "eval_log_loss") == pytest.approx(losses(one, "eval_log_loss"), abs=1e-5)
    for split in ("valid", "test"):
        for metric, (value, n) in one["scores"][split].items():
            assert two["scores"][split][metric] == [pytest.approx(value, abs=1e-5), n], (split, metric)
    assert one["best"][1:] == [pytest.approx(two["best"][1]), two["best"][2]]


def test_no_row_is_lost_or_counted_twice_where_two_does_not_divide_them(alone, together) -> None:
    report = json.loads((together["out"] / "odd" / "report.json").read_text())
    assert [report["data"]["rows"][split] % 2 for split in ("valid", "test")] == [1, 1]
    assert together["odd"][0]["scores"]["test"]["accuracy"][1] == report["data"]["rows"]["test"]


def test_the_processes_agree_on_when_to_stop_and_on_the_best_checkpoint(together) -> None:
    for name, (first, second) in ((k, v) for k, v in together.items() if k not in ("kind", "out", "left")):
        assert first["best"] == second["best"], name
        assert first["scores"] == second["scores"], name
        assert losses(first, "eval_loss") == losses(second, "eval_loss"), name
    steps = 128 / 16
    assert together["early"][0]["best"][0].endswith(f"checkpoint-{steps:.0f}")
    assert together["early"][0]["best"][2] == 3 * steps, "the first is best, and two more are waited for"


def test_the_weights_lie_where_the_config_says(together) -> None:
    first, second = together["Full"]
    if together["kind"] == "ddp":
        assert first["here"] == second["here"] == first["all"]
        assert not first["split"]
        return
    assert first["kind"] == "DistributedType.FSDP"
    assert first["here"] + second["here"] == first["all"]
    assert second["here"] == pytest.approx(first["all"] / 2, rel=0.02)
    assert any("FSDP" in note for note in together["cached"][0]["notes"]), "that nothing is kept is said"
    assert "BertEmbeddings" in together["cached"][0]["resting"]
    assert not first["resting"], "what trains is not in eval mode"


def test_each_folder_is_whole_and_loads_in_one_process(places, together) -> None:
    for name in ("Full", "LoRA", "image"):
        report = json.loads((together["out"] / name / "report.json").read_text())
        loaded = hftl.load(str(together["out"] / name))
        assert not any("FSDP" in type(module).__name__ for module in loaded.model.modules())
        if name == "image":
            continue
        with open(places["even"], newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = [row["text"] for row in rows]
        right = [p["label"] == row["label"] for p, row in zip(loaded(texts), rows, strict=True)]
        wrong = {mistake["texts"][0] for mistake in report["sections"][-1]["examples"]}
        assert not any(ok for ok, text in zip(right, texts, strict=True) if text in wrong)
        assert all((together["out"] / name / file).is_file() for file in ("report.html", "README.md", "recipe.yaml"))


@pytest.mark.parametrize("name", ["text", "image"])
def test_broken_off_and_resumed_is_never_broken_off(name: str, together) -> None:
    """One process alone is asked, at step 2: both end within two, go on, and are broken off in the second epoch."""
    ((kept, (files, fault)),) = together["left"][f"{name} asked"].items()
    assert not fault
    assert 3 <= int(kept.removeprefix("checkpoint-")) < 5
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files)
    assert {"text": "checkpoint-8", "image": "checkpoint-6"}[name] in together["left"][f"{name} stopped"]
    assert losses(together[f"{name} whole"][0], "eval_loss") == losses(together[f"{name} cut"][0], "eval_loss")
    same(together["out"] / f"{name} whole", together["out"] / f"{name} cut")


def test_one_cache_is_filled_by_both(together) -> None:
    kept = together["out"] / "kept"
    if together["kind"] == "fsdp2":
        assert [path.name for path in kept.iterdir()] == ["locks"], "no rows are kept of weights that are split"
        return
    assert len({p.parents[1] for p in kept.rglob("index.npz")}) == 3, "of text, images and scenes"
    assert len(list(kept.rglob("index.npz"))) == 12  # each process wrote its share of train and of valid
    computed = [together["cached"][rank]["computed"] for rank in (0, 1)]
    assert computed[0] == computed[1] > 0


def test_a_token_budget_gives_two_processes_the_updates_of_one_that_accumulates(places, together) -> None:
    settings = works(places)["Full"] | {"max_steps": -1, "num_train_epochs": 2, "max_tokens_per_batch": 150}
    out = f"{places['out']}/one/tokens-{together['kind']}"
    one = noted(settings | {"gradient_accumulation_steps": 2, "output_dir": out})
    two = together["tokens"][0]
    assert one["best"][2] == two["best"][2] > 4
    for split in ("valid", "test"):
        assert two["scores"][split]["accuracy"] == one["scores"][split]["accuracy"]
        assert two["scores"][split]["log_loss"][0] == pytest.approx(one["scores"][split]["log_loss"][0], abs=1e-4)
    with open(places["even"], newline="", encoding="utf-8") as file:
        truth = {row["text"]: row["label"] for row in csv.DictReader(file)}
    wrong = json.loads((together["out"] / "tokens" / "report.json").read_text())["sections"][-1]["examples"]
    assert wrong, "with no mistake nothing is shown here: train less"
    assert all(truth[mistake["texts"][0]] == mistake["label"] for mistake in wrong)
