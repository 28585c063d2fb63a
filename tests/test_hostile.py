"""Hostile input: nothing in it is executed, leaves its folder, acts on a reader or takes memory without bound.

One table of what is refused (exit code 2, one sentence, nothing written) and one of what is taken, and stays inert.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from bad_inputs import GOOD, RECIPES, Case, World, arrange, listing, run, words
from hostile_inputs import (
    EPS,
    ESCAPE,
    LIES,
    SMALL,
    adapter,
    among_photos,
    archive,
    class_named,
    index_outside,
    interrupted_with,
    laughs,
    many_frames,
    own_code,
    parquet_naming,
    pickles_beside,
    png,
    target_images,
    timm_checkpoint,
    weights,
)
from test_report_page import Page

from hftl.errors import UserError
from hftl.results.load import base_of

ACTS = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What acts on a terminal or turns its text round; lines and the carriage returns of a bar are its own."""
MODEL = "--model model"
HALF = f"--no_overwrite --output_dir half --resume {SMALL}"
ADAPT = "--data photos --unlabelled target --strategy DANN"
NAME = f"a{ESCAPE}\n<script>.csv"


def settings(content: str) -> dict[str, str | bytes]:
    return {"c.yaml": content}


REFUSED = {
    **{f"weights: {lie}": Case(MODEL, ("does not load as",), given=weights(LIES[lie])) for lie in LIES},
    "weights of timm: a tensor past the end": Case(
        "--model timm:test_resnet --weights w.safetensors",
        ("is not a safetensors file",),
        {"w.safetensors": LIES["a tensor past the end"]},
        command="image",
    ),
    "an index of weights that leads outside": Case(MODEL, ("'../outside.safetensors'",), given=index_outside),
    "a config with code of its own": Case(
        MODEL,
        ("Read it, then pass --trust_remote_code",),
        given=own_code("config.json", model_type="mine", trust_remote_code=True, auto_map={"AutoConfig": "mine.Mine"}),
    ),
    "a timm config that names a pickle": Case(MODEL, ("model",), given=timm_checkpoint, command="image"),
    "an adapter on a model that is elsewhere": Case(
        "predict model --data {csv} --output p.csv", ("../gone",), given=adapter("../gone"), command="hftl"
    ),
    "an adapter on an address": Case(
        "predict model --data {csv} --output p.csv",
        ("https://evil.example/x is neither",),
        given=adapter("https://evil.example/x"),
        command="hftl",
    ),
    "an adapter on nothing": Case(
        "predict model --data {csv} --output p.csv", ("names no base model",), given=adapter(None), command="hftl"
    ),
    "an adapter on a list": Case(
        "predict model --data {csv} --output p.csv", ("names no base model",), given=adapter(["a"]), command="hftl"
    ),
    "a config that is a list of lists": Case(
        "predict d --data {csv} --output p.csv",
        ("config.json",),
        {"d/config.json": "[" * 100_000 + "]" * 100_000},
        command="hftl",
    ),
    "labels that are a list": Case(
        "predict d --data {csv} --output p.csv",
        ("config.json without labels",),
        {"d/config.json": '{"architectures": ["BertForSequenceClassification"], "id2label": ["a"]}'},
        command="hftl",
    ),
    **{
        f"a pickle in a checkpoint: {name}": Case(HALF, ("pickle",), given=interrupted_with(name))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")
    },
    **{
        f"an archive: {name}": Case(f"--data {name}", ("is packed. Unpack it",), given=archive(name), command="image")
        for name in ("photos.zip", "photos.tar", "photos.tar.gz", "photos.csv")
    },
    "an image of 3.6 thousand million pixels": Case(
        "--data photos", ("bad.png (Image size",), given=among_photos(png(60_000, 60_000, rows=1)), command="image"
    ),
    "an image with a comment that unpacks": Case(
        "--data photos",
        ("MAX_TEXT_CHUNK",),
        given=among_photos(png(32, 32, rows=32, text=bytes(100 << 20))),
        command="image",
    ),
    "a program in PostScript": Case(
        "--data photos", ("bad.png (not an image)",), given=among_photos(EPS), command="image"
    ),
    "an image beside the folder": Case(
        "--data a.parquet", ("inside the folder",), given=parquet_naming("/etc/hostname"), command="image"
    ),
    "an image at an address": Case(
        "--data a.parquet",
        ("the unreadable image http:",),
        given=parquet_naming("http://127.0.0.1:9/x.png"),
        command="image",
    ),
    "an image beside the folder, to predict": Case(
        "predict {cnn} --data a.parquet --output p.csv",
        ("inside the folder",),
        given=parquet_naming("/etc/hostname"),
        command="hftl",
    ),
    "a broken image without a label": Case(
        ADAPT,
        ("the unreadable image", "cut.png", "--on_bad_row skip"),
        given=target_images(broken=True),
        command="image",
    ),
    "an unlabelled image beside the folder": Case(
        ADAPT,
        ("a row names '../photos/cat/0.jpg'",),
        given=target_images(table="file_name\n0.png\n../photos/cat/0.jpg\n"),
        command="image",
    ),
    "an empty text without a label": Case(
        "--unlabelled u.csv --strategy DANN", ("u.csv; it has an empty text",), {"u.csv": "text,n\nfine,1\n ,2\n"}
    ),
    "a script for data": Case("--data d.py", ("Expected a file that ends in .csv",), {"d.py": "import os\n"}),
    "escapes in a column": Case("--data a.csv", ("Pass --label",), {"a.csv": GOOD.replace("label", ESCAPE, 1)}),
    "escapes in a label of test": Case(
        "--data a.csv --test t.csv", ("test also has",), {"a.csv": GOOD, "t.csv": GOOD.replace("positive", ESCAPE)}
    ),
    "escapes in a flag": Case(f"'--{ESCAPE}' 1", ("There is no flag",)),
    "escapes in the name of an image": Case(
        "--data photos", ("the unreadable image",), given=among_photos(b"x", f"{ESCAPE}.png"), command="image"
    ),
    "a header of 50 MB": Case(
        "--data a.csv --label gone",
        ("has 50,000,000 characters",),
        {"a.csv": f"text,label,{'y' * 50_000_000}\na,b,c\n"},
    ),
    "settings that call Python": Case(
        "--config c.yaml", ("python/object",), settings("seed: !!python/object/apply:os.mkdir [owned]\n")
    ),
    "settings that name Python": Case("--config c.yaml", ("python/name",), settings("seed: !!python/name:os.mkdir\n")),
    "settings that unfold": Case("--config c.yaml", ("unfold",), settings("metrics:\n" + laughs(" - "))),
    "settings that hold themselves": Case("--config c.yaml", ("unfold",), settings("metrics: &a [*a]\n")),
    "settings of brackets": Case("--config c.yaml", ("cannot be read",), settings(f"seed: {'[' * 99_999}\n")),
    "settings with a number of 5,000 digits": Case(
        "--config c.yaml", ("cannot be read",), settings(f"seed: {'9' * 5000}")
    ),
    "settings of 50 MB": Case("--config c.yaml", ("too large",), settings("x" * 50_000_000)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_do_harm_is_refused_in_one_sentence(
    name: str, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    case = REFUSED[name]
    arrange(case, world)
    before = listing(world.here)
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        run(case.command, words(case, world), world)
    out, err = capfd.readouterr()
    last = err.rstrip().splitlines()[-1]
    assert left.value.code == 2, err
    assert last.startswith("error: ")
    assert "Traceback" not in err
    assert all(piece in last for piece in case.says), last
    assert len(last) < 600
    assert not ACTS.search(out + err)
    assert listing(world.here) == before
    assert not list(world.here.parent.glob("evil*"))


def test_an_adapter_from_the_hub_cannot_name_a_folder_of_this_machine(world: World) -> None:
    adapter(world.bert)(world)
    assert base_of(world.here / "model", world.here / "model").model == world.bert
    with pytest.raises(UserError, match="names the folder"):
        base_of(world.here / "model", "someone/adapter")


# --- taken, and inert ---

TAKEN: dict[str, Case] = {
    "a model with code that it does not need": Case(
        MODEL, (), given=own_code("config.json", auto_map={"AutoModelForSequenceClassification": "mine.Mine"})
    ),
    "a tokenizer with code that it does not need": Case(
        MODEL, (), given=own_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]})
    ),
    "pickles beside good weights": Case(MODEL, (), given=pickles_beside),
    "a pickle of arguments in a checkpoint": Case(HALF, (), given=interrupted_with("training_args.bin")),
    "an image of 100,000 frames": Case(
        "--data photos", (), given=among_photos(many_frames(100_000), "bad.gif"), command="image"
    ),
    "a bad image without a label, skipped": Case(
        f"{ADAPT} --on_bad_row skip", (), given=target_images(broken=True), command="image"
    ),
    "columns called as a model's inputs": Case(
        "--data a.csv --text loss --label labels",
        (),
        {
            "a.csv": "loss,labels,input_ids,idx,__index__,train,length,attention_mask\n"
            + "".join(f"{row},1,2,3,train,4,5\n" for row in GOOD.splitlines()[1:])
        },
    ),
    "a label that closes the card's head": Case(
        "--data a.csv", (), {"a.csv": GOOD.replace("positive", '"p\n---\nlicense: evil\n<script>alert(1)</script>"')}
    ),
    "escapes in a label": Case("--data a.csv", (), {"a.csv": GOOD.replace("positive", f"x{ESCAPE}y")}),
    "escapes in a text that is there twice": Case("--data a.csv", (), {"a.csv": GOOD + f"{ESCAPE} x,positive\n" * 3}),
    "a file called like code": Case(f"--data '{NAME}'", (), {NAME: GOOD}),
    "a class called like code": Case("--data photos", (), given=class_named(f"{ESCAPE}<b onload=x>"), command="image"),
    "a NUL in a text": Case("--data a.csv", (), {"a.csv": GOOD + "a\0b,positive\n"}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_looks_like_code_stays_text(name: str, world: World, capfd: pytest.CaptureFixture[str]) -> None:
    case = TAKEN[name]
    arrange(case, world)
    before = set(listing(world.here))
    capfd.readouterr()
    run(case.command, words(case, world), world)
    out, err = capfd.readouterr()
    assert not ACTS.search(out + err)
    assert {path for path in set(listing(world.here)) - before if not path.startswith("half")} == set()
    folder = world.here / ("half" if "half" in case.argv else "earlier")
    page = Page((folder / "report.html").read_text())
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "href"]
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    allowed = ("library_name", "pipeline_tag", "tags", "metrics", "model-index", "base_model", "base_model_relation")
    assert set(head) <= set(allowed)
    assert not ACTS.search((folder / "README.md").read_text())
    assert json.loads((folder / "report.json").read_text())["unsafe"] == []


def test_a_text_like_a_formula_is_written_as_it_came_and_named(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2.5", "plain", "a,b", 'say "x"\nin two lines', "\t=1+1"]
    with (world.here / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *[[text] for text in texts]])
    run("hftl", ["predict", "earlier", "--data", "new.csv", "--output", "p.csv"], world)
    with (world.here / "p.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == texts
    assert "4 cells would be formulas to a spreadsheet" in capfd.readouterr().out


# --- memory ---


def peak_of(command: list[str], folder: Path) -> int:
    """MB that a command, which must succeed, held at its peak."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "assert done.returncode == 0, done.stderr[-2000:]\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    found = subprocess.run([sys.executable, "-c", code, *command], cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


@pytest.mark.launch
def test_a_cell_of_50_mb_is_trained_on_in_bounded_memory(world: World) -> None:
    (world.here / "a.csv").write_text(GOOD + f"{'x ' * 25_000_000},positive\n")
    flags = f"--num_train_epochs 1 --model {world.bert} --data a.csv --output_dir out".split()
    assert peak_of([sys.executable, str(RECIPES / "text_cls.py"), *flags], world.here) < 2_000  # 1,035 for short texts
    assert (world.here / "out" / "report.json").stat().st_size < 1_000_000


@pytest.mark.launch
def test_images_that_unpack_to_much_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(6_000, 6_000, rows=6_000))  # 110 KB that unpack to 108 MB
    code = (
        "import datasets; from hftl.data.scan import scan\n"
        "rows = [{'image': {'bytes': None, 'path': 'large.png'}}] * 8\n"
        "data = datasets.Dataset.from_list(rows).cast_column('image', datasets.Image(decode=False))\n"
        "assert PLAIN or set(scan(data, {'image': 'image'}, None).rows['width'].tolist()) == {6000}"
    )
    usual, peak = (peak_of([sys.executable, "-c", f"PLAIN = {plain}\n{code}"], tmp_path) for plain in (True, False))
    assert peak < usual + 300
