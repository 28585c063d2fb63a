"""Bad input ends in exit code 2 and one sentence that holds its cure; earlier results stay as they were."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from bad_inputs import (
    GOOD,
    Case,
    World,
    albert,
    arrange,
    bad_config,
    broken_jpeg,
    fail,
    foreign_code,
    interrupted,
    listing,
    no_space,
    other_weights,
    photos,
    planted,
    planted_adapter,
    read_only,
    recipe,
    run,
    truncated,
    without,
    words,
)

from hftl import Recipe
from hftl.cli import main as cli
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.run.part import source_of
from hftl.run.settings import task_class
from hftl.train.trainer import Trainer

CHECKPOINT = {"half/checkpoints/checkpoint-1/trainer_state.json": "{}"}
HALF = "--no_overwrite --output_dir half"
SMALL = "--per_device_train_batch_size 16"
STOP = f"--eval_strategy steps --eval_steps 1 {SMALL}"
TABLE = "file_name,label\ncat/0.jpg,cat\ncat/2.jpg,cat\ndog/1.jpg,dog\n"
MANY = "".join(f"a{i},{'xy'[i % 2]}\n" for i in range(20))

DATA = {
    "missing file": Case("--data nowhere.csv", ("Expected a file or folder at nowhere.csv; there is none",)),
    "empty texts": Case(
        "--data a.csv",
        ("data row 41", "an empty text (2 bad of 42 rows)", "skip"),
        {"a.csv": GOOD + ",positive\n \t,negative\n"},
    ),
    "a Hub id without a network": Case("--data someone/something", ("the Hub cannot be reached",)),
    "class weights for numbers": Case(
        "--data a.csv --class_weights balanced",
        ("--class_weights balanced needs one label a row",),
        {"a.csv": "text,label\n" + "".join(f"a{i},{i}.5\n" for i in range(20))},
    ),
}

IMAGES = {
    "an empty folder": Case("--data .", ("it holds",), command="image"),
    "a corrupted jpeg": Case(
        "--data photos",
        ("the unreadable image cat/cut.jpg", "(1 bad of 21 rows)", "--on_bad_row skip"),
        given=broken_jpeg,
        command="image",
    ),
    "a table that names a file outside": Case(
        "--data photos",
        ("a row names '../secret.png'", "inside it"),
        {"photos/metadata.csv": TABLE + "../secret.png,dog\n", "secret.png": b"x"},
        photos,
        command="image",
    ),
    "an augmentation whose model does not load": Case(
        "--augment \"MaskedLM(model='nowhere')\"", ("nowhere does not load as a masked language model",)
    ),
}

MODELS = {
    "unknown task": Case("--task text-clasification", ("Did you mean 'text-classification'?",)),
    "no model": Case("--model ''", ("--model is empty. Pass a local folder",)),
    "an adapter for a model": Case("--model model", ("holds an adapter", "--model"), given=planted_adapter),
    "unknown model": Case("--model someone/no-such-model", ("nor in the Hugging Face cache", "--model")),
    "model id of wrong syntax": Case("--model 'a b/c d'", ("a b/c d", "--model")),
    "unknown bundled model": Case("--model hftl:glyph", ("Pass --model hftl:glyphs",), command="image"),
    "a file for a model": Case(
        "--model rows.csv", ("--model rows.csv is a file. Pass the folder",), {"rows.csv": GOOD}
    ),
    "a model without config": Case("--model model", ("model holds no config.json",), given=without("config.json")),
    "a model without weights": Case("--model model", ("--allow_pickle",), given=without("model.safetensors")),
    "a model without tokenizer": Case(
        "--model model", ("does not load as a tokenizer",), given=without("tokenizer.json")
    ),
    "a pickle for weights": Case("--model model", ("Convert its weights", "--allow_pickle"), given=planted),
    "a trap among allowed pickles": Case(
        "--model model --allow_pickle", ("is not opened even with --allow_pickle",), given=planted
    ),
    "truncated weights": Case(
        "--model model", ("model does not load as a model", "Fetch or save it again"), given=truncated
    ),
    "a config that is not JSON": Case("--model model", ("config.json",), given=bad_config("{")),
    "a config that is a list": Case("--model model", ("model",), given=bad_config("[]")),
    "a full disk while a model is fetched": Case(
        "", ("No space is left on the disk",), given=fail(transformers.AutoConfig, "from_pretrained", no_space)
    ),
    "a config of nothing": Case("--model model", ("model",), given=bad_config("{}")),
    "a config of an unknown kind": Case("--model model", ("model",), given=bad_config('{"model_type": "brt"}')),
    "a config with bad values": Case(
        "--model model", ("model",), given=bad_config('{"model_type": "bert", "hidden_size": "wide"}')
    ),
    "a model with code of its own": Case("--model model", ("--trust_remote_code",), given=foreign_code),
    "an image model for texts": Case("--model {cnn}", ("no head for this task",)),
    "a text model for images": Case("--model {bert}", ("no head for this task",), command="image"),
    "unknown timm network": Case("--model timm:resnet81", ("Did you mean 'resnet1",), command="image"),
    "no timm network": Case("--model timm:nonsense", ("timm has no architecture called 'nonsense'",), command="image"),
    "a timm network for texts": Case("--model timm:resnet18", ("for images alone; --model is timm:resnet18",)),
    "weights that are not there": Case(
        "--model timm:test_resnet --weights gone.safetensors", ("--weights gone.safetensors",), command="image"
    ),
    "weights of another kind": Case(
        "--model timm:test_resnet --weights a.bin",
        ("a.bin is not a safetensors file",),
        {"a.bin": b"x" * 99},
        command="image",
    ),
    "weights of another network": Case(
        "--model timm:test_resnet --weights other.safetensors",
        ("fits another architecture",),
        given=other_weights,
        command="image",
    ),
    "weights for a whole model": Case(
        "--weights other.safetensors", ("leave --weights out",), given=other_weights, command="image"
    ),
    "weights for texts": Case("--weights other.safetensors", ("--weights belongs to image-classification",)),
    "one token": Case("--max_length 1", ("--max_length 1 leaves no room", "Pass 3 or more")),
}

WHOLE = ("unknown task", "unknown model", "a pickle for weights", "truncated weights", "a model with code of its own")
WHOLE += ("a full disk while a model is fetched", "weights for texts", "one token")
"""The models that go through the whole command line: one for each place that refuses them."""

SETTINGS = {
    "unknown flag": Case("--learnign_rate 1", ("no flag --learnign_rate", "Did you mean '--learning_rate'?")),
    "no steps": Case("--max_steps 0", ("--max_steps expected a whole number of 1 or more, or -1",)),
    "a checkpoint by name": Case("--resume_from_checkpoint earlier", ("pass --resume",)),
    "an optimizer's argument of wrong syntax": Case("--optim sgd --optim_args beta", ("check --optim, --optim_args",)),
    "a schedule that lacks an argument": Case(
        "--lr_scheduler_type cosine_with_min_lr", ("min_lr", "--lr_scheduler_kwargs")
    ),
    "unknown tracker": Case("--report_to nonsense", ("nonsense is not supported, only",)),
    "an optimizer that is not installed": Case("--optim adamw_bnb_8bit", ("bitsandbytes",)),
    "a tracker that is not installed": Case("--report_to wandb", ("wandb",)),
    "a parallelism config that is a word": Case("--parallelism_config x", ("accelerate launch --config_file",)),
    "noise on the embeddings of images": Case(
        "--neftune_noise_alpha 5", ("noise on token embeddings",), command="image"
    ),
    "transformers' underflow_overflow": Case("--debug underflow_overflow", ("attention mask",)),
    "pushing to nowhere": Case("--push_to_hub", ("pass --hub_model_id you/name",)),
    "pushing without the Hub": Case("--push_to_hub --hub_model_id you/name", ("HF_HUB_OFFLINE is set",)),
    "pushing on the way": Case("--hub_always_push", ("pushed once, in one commit",)),
    "an option of another task": Case("--max_length 9", ("--max_length belongs to fill-mask, ",), command="image"),
    "packing rows that are mixed": Case("--strategy MixStyle --packing", ("--packing has no rows",)),
    "a new model after hooks in the old one": Case("--strategy 'MixStyle | Scratch'", ("Put Scratch first",)),
    "more blocks to mix than there are": Case("--strategy 'MixStyle(layers=99)'", ("asks for more blocks",)),
    "a setting that the recipe makes itself": Case("--save_strategy steps", ("--eval_steps",)),
    "a package that is not installed": Case("--use_liger_kernel", ("liger-kernel", "install it")),
    "unknown metric to choose by": Case("--metric_for_best_model acuracy", ("Did you mean 'accuracy'?",)),
    "unknown further metric": Case("--metrics nonexistent", ("'nonexistent' could not be loaded",)),
    "unknown setting in a file": Case(
        "--config c.yaml", ("c.yaml", "'sede'", "Did you mean 'seed'?"), {"c.yaml": "sede: 1\n"}
    ),
    "data made in Python": Case("--data '(a data set made in Python)'", ("called (a data set made in Python)",)),
    "a decay above one": Case("--strategy 'LayerDecay(2)'", ("in (0, 1]", "Try LayerDecay(0.75)")),
    "random weights that stay frozen": Case("--strategy 'Scratch | LinearProbe'", ("would freeze random weights",)),
    "random weights below an adapter": Case("--strategy 'LoRA | Scratch'", ("Scratch", "Drop one of the two")),
    "an adapter that stays frozen": Case(
        "--strategy 'LoRA | LinearProbe'", ("freezes all that LoRA trains", "Drop one")
    ),
    "two adapters": Case("--strategy 'LoRA | DoRA'", ("DoRA came for a model that has an adapter", "Keep one")),
    "depth where there is none": Case(
        "--model albert --strategy LayerDecay", ("such as Full, LinearProbe or LoRA",), given=albert
    ),
    "more layers than there are": Case("--strategy 'LastLayers(-1)'", ("of 0 or more; -1",)),
}

FOLDERS = {
    "a file for a folder": Case("--output_dir a.csv", ("a.csv is a file. Pass a folder",), {"a.csv": GOOD}),
    "a folder below a file": Case("--output_dir a.csv/out", ("a.csv/out",), {"a.csv": GOOD}),
    "a finished run": Case("--no_overwrite", ("earlier holds a finished run. Pass --overwrite",)),
    "other files": Case(HALF, ("half holds other files",), {"half/thesis.txt": "x"}),
    "other files beside checkpoints": Case(
        HALF, ("half holds other files",), {"half/thesis.txt": "x", "half/checkpoints/mine.pt": "x"}
    ),
    "an interrupted run": Case(HALF, ("Pass --resume to go on, or --overwrite",), CHECKPOINT),
    "nothing to resume": Case(f"{HALF} --resume", ("no checkpoint to resume from. Leave --resume out",)),
    "a finished run to resume": Case("--no_overwrite --resume", ("nothing to resume",)),
    "a damaged checkpoint": Case(
        f"{HALF} --resume", ("cannot go on from half/checkpoints/checkpoint-1", "--overwrite"), CHECKPOINT
    ),
    "a folder without rights": Case(
        "--no_overwrite --output_dir new/out",
        ("new/out cannot be made", "cannot be written to. Pass another"),
        given=lambda w: w.patch.setattr("os.access", lambda *place, **how: False),
    ),
    "a disk that turns read-only": Case(
        "--no_overwrite --output_dir new",
        ("The system refused new/checkpoints (Read-only file system)", "another path"),
        given=lambda w: read_only(w, "new/checkpoints"),
    ),
    "the working directory": Case("--no_overwrite --output_dir .", (". holds other files",)),
    "a checkpoint cut short": Case(f"{HALF} --resume", ("no checkpoint to resume from",), {next(iter(CHECKPOINT)): ""}),
    "a checkpoint of another strategy": Case(
        f"{HALF} --resume --strategy LoRA",
        ("cannot go on from half/checkpoints/checkpoint-1", "--strategy"),
        given=interrupted,
    ),
    "a checkpoint of another model": Case(
        f"{HALF} --resume --model {{cnn}} --data {{colours}} --task image-classification",
        ("cannot go on from half/checkpoints/checkpoint-1", "--model"),
        given=interrupted,
    ),
    "a bad value with an interrupted run": Case("--output_dir half --data gone.csv", ("gone.csv",), CHECKPOINT),
}

RUNS = {
    "a loss that is not finite": Case(
        f"--learning_rate 1e30 --optim sgd --max_grad_norm 0 {SMALL}", ("Lower --learning_rate (it is 1e+30)",)
    ),
    "outputs that are not finite": Case(
        "--learning_rate 1e30 --optim sgd --max_grad_norm 0", ("outputs are not finite: lower --learning_rate",)
    ),
    "a full disk at the end": Case(
        "",
        ("No space is left on the disk",),
        given=fail(transformers.PreTrainedTokenizerBase, "save_pretrained", no_space, after=0),
        leaves=("earlier/checkpoints",),
    ),
    "a full disk at a checkpoint": Case(
        "", ("No space is left on the disk",), given=fail(torch, "save", no_space), leaves=("earlier/checkpoints",)
    ),
    "a full memory": Case(
        "",
        ("halve --per_device_train_batch_size",),
        given=fail(Trainer, "compute_loss", lambda: torch.OutOfMemoryError("CUDA out of memory."), after=1),
    ),
    "Ctrl-C before a checkpoint": Case(
        "--no_overwrite --output_dir new",
        ("Stopped by Ctrl-C. No checkpoint was written to new yet: run it again",),
        given=fail(Trainer, "training_step", KeyboardInterrupt, after=1),
        code=130,
    ),
    "Ctrl-C after a checkpoint": Case(
        f"--no_overwrite --output_dir new {STOP}",
        ("Stopped by Ctrl-C. Add --resume to go on",),
        given=fail(Trainer, "training_step", KeyboardInterrupt, after=2),
        code=130,
        leaves=("new",),
    ),
    "Ctrl-C while data is read": Case(
        "--no_overwrite --output_dir new",
        ("Stopped by Ctrl-C. No checkpoint",),
        given=fail(datasets, "load_dataset", KeyboardInterrupt),
        code=130,
    ),
}

PREDICT = {
    "no such folder": Case("predict gone --data {csv} --output p.csv", ("gone is no folder",), command="hftl"),
    "a folder without a model": Case(
        "predict d --data {csv} --output p.csv", ("d holds no config.json",), {"d/a.txt": "x"}, command="hftl"
    ),
    "a model without a task": Case("predict {bert} --data {csv} --output p.csv", ("BertModel",), command="hftl"),
    "a spoilt config": Case(
        "predict d --data {csv} --output p.csv",
        ("a config.json that is not JSON",),
        {"d/config.json": "{"},
        command="hftl",
    ),
    "an adapter in a pickle": Case(
        "predict model --data {csv} --output p.csv",
        ("no adapter_model.safetensors",),
        given=planted_adapter,
        command="hftl",
    ),
    "no data": Case("predict earlier --data gone.csv --output p.csv", ("gone.csv",), command="hftl"),
    "a missing column": Case(
        "predict earlier --data a.csv --output p.csv", ("Pass --text body",), {"a.csv": "body\na\n"}, command="hftl"
    ),
    "an output that exists": Case(
        "predict earlier --data {csv} --output p.csv",
        ("p.csv exists; pass --overwrite",),
        {"p.csv": "x"},
        command="hftl",
    ),
    "an output in no folder": Case(
        "predict earlier --data {csv} --output gone/p.csv",
        ("gone/p.csv lies in no folder that exists",),
        command="hftl",
    ),
    "an output that is a folder": Case(
        "predict earlier --data {csv} --output d --overwrite",
        ("--output d is a folder",),
        {"d/a.txt": "x"},
        command="hftl",
    ),
    "an empty stdin": Case("predict earlier --data - --output p.csv", ("stdin holds no rows",), command="hftl"),
    "an empty text to predict": Case(
        "predict earlier --data a.csv --output p.csv", ("a.csv",), {"a.csv": "text\n \n"}, command="hftl"
    ),
    "a null to predict": Case(
        "predict earlier --data a.jsonl --output p.csv",
        ("a text in row 2",),
        {"a.jsonl": '{"text": "a"}\n{"text": null}\n'},
        command="hftl",
        leaves=("p.csv.partial",),
    ),
    "a broken image to predict": Case(
        "predict {cnn} --data photos --output p.csv",
        ("cat/cut.jpg",),
        given=broken_jpeg,
        command="hftl",
        leaves=("p.csv.partial",),
    ),
    "a missing image to predict": Case(
        "predict {cnn} --data - --output p.csv",
        ("Expected an image in gone.jpg; it cannot be read (No such file or directory)",),
        given=lambda w: w.patch.setattr("sys.stdin", io.StringIO("gone.jpg\n")),
        command="hftl",
    ),
    "a full disk for predictions": Case(
        "predict earlier --data {csv} --output p.csv",
        ("No space is left on the disk",),
        given=fail(csv.DictWriter, "writerow", no_space, after=5),
        command="hftl",
    ),
    "no command": Case("predit", ("Did you mean 'predict'?",), command="hftl"),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in (
        ("data", DATA),
        ("images", IMAGES),
        ("models", {name: case for name, case in MODELS.items() if name in WHOLE}),
        ("settings", SETTINGS),
        ("folders", FOLDERS),
        ("runs", RUNS),
        ("predict", PREDICT),
    )
    for name, case in cases.items()
}
CURE = re.compile(
    r"--\w|\b(pass|add|correct|convert|rename|save|use|try|write|put|lower|free|check|change|install|keep|drop|arrange"
    r"|did you mean|it reads|such as|as in|or the like|takes)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WHOLE])
def test_a_model_that_cannot_be_is_refused_in_one_sentence_where_it_is_built(name: str, world: World) -> None:
    case = MODELS[name]
    arrange(case, world)
    given = recipe("text_cls").settings() | {"model": world.bert}
    if case.command == "image":
        given = recipe("image_cls").settings() | {"model": world.cnn}
    asked = cli.merge(Recipe(**given), words(case, world))
    with pytest.raises(UserError) as refused:
        asked.part(task_class(asked.task)).build(source_of(asked), Labels("single_label_classification", ["no", "yes"]))
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert all(piece in sentence for piece in case.says), sentence
    assert CURE.search(sentence), sentence
    assert not (world.here / "owned").exists()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_answered_with_one_sentence_and_earlier_results_stay(
    name: str, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    arrange(case, world)
    before = listing(world.here)
    with pytest.raises(SystemExit) as left:
        run(case.command, words(case, world), world)
    err = capfd.readouterr().err
    last = err.rstrip().splitlines()[-1]
    assert left.value.code == case.code, err
    assert "Traceback" not in err
    assert err.count("error: ") == (case.code == 2)
    assert last.startswith("error: " if case.code == 2 else "Stopped by "), err
    assert all(piece in last for piece in case.says), last
    assert CURE.search(last), last
    after = {path: content for path, content in listing(world.here).items() if not path.startswith(case.leaves or "\0")}
    assert after == before


# --- odd, and yet good ---


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(world: World) -> None:
    (world.here / "a.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    run("text", ["--data", "a.csv"], world)
    report = report_of(world.here / "earlier")
    assert report["labels"] == ["negative", "positive"]
    assert sum(report["data"]["rows"].values()) == 40


def test_a_label_cannot_act_on_the_page_nor_become_a_path(world: World) -> None:
    label = "../<script>alert(1)</script>\n"
    (world.here / "a.csv").write_text(GOOD.replace("negative", f'"{label}"'))
    before = set(listing(world.here))
    run("text", ["--data", "a.csv"], world)
    page = (world.here / "earlier" / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert report_of(world.here / "earlier")["labels"] == [label.strip(), "positive"]
    assert set(listing(world.here)) == before


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(world: World) -> None:
    (world.here / "a.csv").write_text(GOOD + " ,positive\nthe pan,\n")
    broken_jpeg(world)
    for command, data, sentence in (
        ("text", "a.csv", "2 of 42 rows of all splits were left out"),
        ("image", "photos", "1 of 21 rows of all splits was left out"),
    ):
        run(command, ["--data", data, "--on_bad_row", "skip"], world)
        report = report_of(world.here / "earlier")
        assert any(check["sentence"].startswith(sentence) for check in report["checks"])


def test_the_same_rows_in_train_and_test_are_a_warning(world: World) -> None:
    run("text", ["--test", world.csv], world)
    warned = [check for check in report_of(world.here / "earlier")["checks"] if check["name"] == "overlap"]
    assert warned[0]["level"] == "warn"
    assert "of test are in train too" in warned[0]["sentence"]


def test_unknown_words_and_a_very_long_text_train(world: World) -> None:
    long = "good " * 200_000
    (world.here / "a.csv").write_text(
        "text,label\n"
        + f"{long},positive\n"
        + "".join(f"qq{i} zz,{'positive' if i % 2 else 'negative'}\n" for i in range(40))
    )
    run("text", ["--data", "a.csv"], world)
    assert "1 of" in next(c["sentence"] for c in report_of(world.here / "earlier")["checks"] if c["name"] == "lengths")


def test_files_of_a_person_survive_a_run_in_their_folder(world: World) -> None:
    (world.here / "thesis.txt").write_text("x")
    (world.here / "checkpoints").mkdir()
    (world.here / "checkpoints" / "mine.pt").write_text("x")
    before = listing(world.here)
    for strategy in ("LoRA", "Full"):
        run("text", ["--output_dir", ".", "--strategy", strategy], world)
    after = listing(world.here)
    assert before.items() <= after.items()
    assert "adapter_config.json" not in after
    assert "report.json" in after


def test_a_run_is_taken_up_from_its_last_whole_checkpoint(world: World) -> None:
    interrupted(world)
    (world.here / "half" / "checkpoints" / "checkpoint-5").mkdir()
    (world.here / "half" / "checkpoints" / "checkpoint-5" / "model.safetensors").write_bytes(b"cut short")
    run("text", [*HALF.split(), *STOP.split(), "--resume"], world)
    assert report_of(world.here / "half")["history"][0]["step"] == 1
    assert not (world.here / "half" / "checkpoints").exists()


def test_a_run_whose_folder_did_not_fit_on_the_disk_is_finished_by_resuming_it(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail(transformers.PreTrainedTokenizerBase, "save_pretrained", no_space)(replace(world, patch=patch))
        with pytest.raises(SystemExit):
            run("text", HALF.split(), world)
    assert not (world.here / "half" / "report.json").exists()
    trained: list[int] = []
    world.patch.setattr(Trainer, "training_step", lambda *_: trained.append(1))
    run("text", [*HALF.split(), "--resume"], world)
    assert not trained
    assert report_of(world.here / "half")["test"]["accuracy"]["n"] == 16
