"""Sharing through the Hub: the real clients against the server of `hub_server`; methods and tasks, there and back."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client, Said
from hub_server import HubServer
from hub_store import OTHER, READER, WRITER, Fault

from hftl import testing

RECIPES = Path(__file__).parents[1] / "recipes"
pytestmark = pytest.mark.launch

TRAIN = """
from pathlib import Path
import torch
from hftl import testing
for name, settings in runs.items():
    common = {"learning_rate": 0.02, "max_steps": 8, "per_device_train_batch_size": 8, "weight_decay": 0.0}
    testing.train_tiny(settings.pop("strategy"), common | settings, Path(folder) / name)
"""
"""Trains each run and notes inputs and logits beside its folder, before it is written."""
BACK = """
import io, contextlib, torch
import hftl
result = {}
for run, name in names.items():
    loaded = hftl.load(name)
    probe = torch.load(f"{folder}/{run}.probe.pt", weights_only=True)
    logits = probe.pop("logits")
    with torch.inference_mode():
        far = (loaded.model(**probe).logits - logits).abs().max().item()
    result[run] = {"far": far, "spread": logits.std().item(), "labels": loaded.labels.names, "task": loaded.task.name}
"""


class World:
    """The server, a client of it, and the folders of runs that the client has trained on models of the server."""

    def __init__(self, server: HubServer, client: Client, folder: Path) -> None:
        self.server, self.client, self.folder = server, client, folder

    def run(self, name: str) -> Path:
        return self.folder / name

    def asked(self) -> list[tuple[str, str, int]]:
        """What the server has been asked since it was asked for this last."""
        log, self.server.log = self.server.log, []
        return log


def sent(folder: Path) -> dict[str, bytes]:
    """The files of a run's folder as they should lie on the Hub; the card is compared apart."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_tags(path: Path) -> Path:
    names = ("Ada", "Kurt", "Emmy", "Alan")
    with path.open("w", encoding="utf-8") as file:
        for i in range(60):
            words = ["the", "film", "of", names[i % 4], "is", "good"][: 4 + i % 3]
            tags = ["O", "O", "O", "B-PER", "O", "O"]
            file.write(json.dumps({"tokens": words, "tags": tags[: len(words)]}) + "\n")
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str, tiny_cnn: str) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hub")
    server = HubServer().start()
    for name, model in (("ada/tiny-bert", tiny_bert), ("ada/tiny-cnn", tiny_cnn)):
        server.make(name, sent(Path(model)))
    client = Client(server.url, folder / "home")
    world = World(server, client, folder)
    try:
        train_all(world)
        yield world
    finally:
        client.stop()
        server.stop()


def train_all(world: World) -> None:
    data = world.folder / "data"
    text = {"task": "text-classification", "model": "ada/tiny-bert", "data": testing.reviews_csv(data / "reviews.csv")}
    tags = {"task": "token-classification", "model": "ada/tiny-bert", "data": str(write_tags(data / "tags.jsonl"))}
    image = {"task": "image-classification", "model": "ada/tiny-cnn", "data": testing.colour_images(data / "colours")}
    runs = {
        "text-full": text | {"strategy": "Full"},
        "text-lora": text | {"strategy": "LoRA(r=4)"},
        "text-ia3": text | {"strategy": "PEFT('IA3')"},
        "text-prompt": text | {"strategy": "PEFT('PROMPT_TUNING', num_virtual_tokens=4)"},
        "token-full": tags | {"strategy": "Full"},
        "token-lora": tags | {"strategy": "LoRA(r=4)"},
        "image-full": image | {"strategy": "Full"},
        "image-lora": image | {"strategy": "LoRA(r=4)"},
        "image-probe": image | {"strategy": "LinearProbe"},
    }
    done = world.client.python(TRAIN, runs=runs, folder=str(world.folder))
    assert done.code == 0, done.err[-3000:]


METHODS = (
    *("text-full", "text-lora", "text-ia3", "text-prompt", "token-full", "token-lora"),
    *("image-full", "image-lora", "image-probe"),
)


@pytest.fixture(scope="module")
def pushed(hub: World) -> dict[str, Said]:
    """Every run, pushed as ada/NAME."""
    return {name: hub.client.hftl("push", hub.run(name), f"ada/{name}") for name in METHODS}


def test_every_method_and_task_comes_back_with_the_same_logits_and_labels(hub: World, pushed: dict[str, Said]) -> None:
    assert {name: said.code for name, said in pushed.items()} == dict.fromkeys(METHODS, 0)
    back = hub.client.python(BACK, names={name: f"ada/{name}" for name in METHODS}, folder=str(hub.folder))
    assert back.code == 0, back.err[-3000:]
    labels = {"text": ["negative", "positive"], "token": ["B-PER", "O"], "image": ["blue", "red"]}
    print("\n| run | largest difference of logits | bytes sent |\n|---|---|---|")
    for name, found in back.result.items():
        print(f"| {name} | {found['far']:.1g} | {sum(map(len, hub.server.files(f'ada/{name}').values())):,} |")
        assert found["far"] < 1e-6, name
        assert found["spread"] > 1e-4, f"{name} gives the same for all, so nothing was compared"
        assert found["labels"] == labels[name.partition("-")[0]], name


def test_what_is_pushed_lies_there_byte_for_byte_and_the_card_names_the_repository(
    hub: World, pushed: dict[str, Said]
) -> None:
    for name in METHODS:
        there, here = hub.server.files(f"ada/{name}"), sent(hub.run(name))
        assert there.keys() == here.keys()
        assert {path for path in here if here[path] != there[path]} == {"README.md"}
        assert f'hftl.load("ada/{name}")' in there["README.md"].decode()
        sizes = re.findall(r"^(\S+) +([\d,]+)$", pushed[name].out, re.MULTILINE)
        assert {path: int(size.replace(",", "")) for path, size in sizes if path != "file"} == {
            path: len(content) for path, content in there.items()
        }
    assert hub.server.repositories["model", "ada/text-full"].messages == ["initial commit", "Full, trained with hftl"]


def test_an_adapter_names_its_base_by_id_and_commit_and_loads_that_commit(hub: World, pushed: dict[str, Said]) -> None:
    base = hub.server.repositories["model", "ada/tiny-bert"]
    commit = base.branches["main"]
    settings = json.loads(hub.server.files("ada/text-lora")["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("ada/tiny-bert", commit)
    code = "from huggingface_hub import ModelCard\nresult = ModelCard.load('ada/text-lora').data.to_dict()"
    card = hub.client.python(code).result
    assert (card["base_model"], card["base_model_revision"]) == ("ada/tiny-bert", commit)
    assert (card["base_model_relation"], card["library_name"]) == ("adapter", "peft")
    assert card["pipeline_tag"] == "text-classification"
    assert card["metrics"][0] == "accuracy"
    # the base moves on; the adapter stays with the weights that it was trained on
    base.commit("main", {"config.json": b"{}"}, "broken")
    try:
        back = hub.client.python(BACK, names={"text-lora": "ada/text-lora"}, folder=str(hub.folder))
        assert back.result["text-lora"]["far"] < 1e-6
    finally:
        base.branches["main"] = commit


OTHERS = """
import torch, transformers, peft, timm
from PIL import Image
def probe(run):
    found = torch.load(f"{folder}/{run}.probe.pt", weights_only=True)
    return found.pop("logits"), found
def far(run, model, kind=dict):
    logits, inputs = probe(run)
    with torch.inference_mode():
        made = model.eval()(**inputs) if kind is dict else model.eval()(inputs["pixel_values"])
    return ((made.logits if kind is dict else made) - logits).abs().max().item()
auto = transformers.AutoModelForSequenceClassification
result = {"AutoModel": far("text-full", auto.from_pretrained("ada/text-full"))}
result["AutoModelForTokenClassification"] = far(
    "token-full", transformers.AutoModelForTokenClassification.from_pretrained("ada/token-full")
)
image = transformers.AutoModelForImageClassification.from_pretrained("ada/image-full")
result["AutoModelForImageClassification"] = far("image-full", image)
config = transformers.AutoConfig.from_pretrained("ada/text-lora")
base = auto.from_pretrained("ada/tiny-bert", config=config)
result["PeftModel"] = far("text-lora", peft.PeftModel.from_pretrained(base, "ada/text-lora"))
result["timm"] = far("image-full", timm.create_model("hf-hub:ada/image-full", pretrained=True), "timm")
said = transformers.pipeline("text-classification", model="ada/text-full")("a good film", top_k=None)
import hftl
own = hftl.load("ada/text-full")("a good film")
result["pipeline"] = max(abs(own["scores"][row["label"]] - row["score"]) for row in said)
tagged = transformers.pipeline("token-classification", model="ada/token-full")("the film of Ada is good")
result["tagger"] = 0.0 if {row["entity"] for row in tagged} <= {"B-PER", "O"} else 1.0
seen = transformers.pipeline("image-classification", model="ada/image-full")(Image.new("RGB", (32, 32), "red"))
result["looker"] = 0.0 if {row["label"] for row in seen} == {"blue", "red"} else 1.0
"""


def test_what_people_already_use_reads_the_pushed_folders(hub: World, pushed: dict[str, Said]) -> None:
    found = hub.client.python(OTHERS, folder=str(hub.folder))
    assert found.code == 0, found.err[-3000:]
    assert len(found.result) == 8
    assert {name: far for name, far in found.result.items() if far > 1e-6} == {}


def test_a_branch_is_made_and_read_by_its_name(hub: World) -> None:
    flags = ["--revision", "v2", "--commit_message", "second"]
    said = hub.client.hftl("push", hub.run("text-full"), "ada/branched", *flags)
    assert said.code == 0, said.err
    assert hub.server.files("ada/branched") == {}
    assert hub.server.repositories["model", "ada/branched"].messages[-1] == "second"
    code = "import hftl\nresult = hftl.load('ada/branched', revision='v2').labels.names"
    assert hub.client.python(code).result == ["negative", "positive"]
    missing = hub.client.python("import hftl\nhftl.load('ada/branched', revision='v3')")
    assert "ada/branched on the Hub has no revision 'v3'" in missing.err


def test_a_new_push_takes_the_old_weights_away_in_the_same_commit(hub: World) -> None:
    for name in ("text-full", "text-lora"):
        assert hub.client.hftl("push", hub.run(name), "ada/changed").code == 0
    assert "model.safetensors" not in hub.server.files("ada/changed")
    assert len(hub.server.repositories["model", "ada/changed"].messages) == 3
    hub.asked()
    assert hub.client.hftl("push", hub.run("text-lora"), "ada/changed").code == 0  # nothing new: no commit
    assert not [path for _, path, _ in hub.asked() if "/commit/" in path]


def test_a_private_repository_is_read_with_a_token_only(hub: World) -> None:
    assert hub.client.hftl("push", hub.run("text-full"), "ada/secret", "--private").code == 0
    assert hub.server.repositories["model", "ada/secret"].private
    load = "import hftl\nresult = hftl.load('ada/secret').labels.names"
    for token in (None, OTHER):
        said = hub.client.python(load, token)
        assert "There is no ada/secret on the Hub that can be read" in said.err
        assert "log in with `hf auth login` where it is private" in said.err
    assert hub.client.python(load, READER).result == ["negative", "positive"]


def test_a_dry_run_asks_the_hub_nothing(hub: World) -> None:
    hub.asked()
    said = hub.client.hftl("push", hub.run("text-full"), "ada/dry", "--dry_run", token=None)
    assert said.code == 0
    assert "model.safetensors" in said.out
    assert "Nothing was sent" in said.out
    assert hub.asked() == []


ERRORS = {
    "no token": (Fault("*", "never"), None, "log in with `hf auth login`"),
    "a token that is none": (Fault("*", "never"), "hf_" + "x" * 30, "The Hub does not know this token: log in with"),
    "a token that only reads": (Fault("*", "never"), READER, "may not write to ada/refused"),
    "another's name": (Fault("*", "never"), OTHER, "may not write to ada/refused"),
    "a conflict": (Fault("POST", "/commit/", 1, 409), WRITER, "changed by someone else at the same time"),
    "a lost branch": (Fault("POST", "/preupload/", 1, 404), WRITER, "There is no ada/refused on the Hub"),
    "too many requests": (Fault("POST", "/commit/", 99, 429), WRITER, "fewer requests (429): wait some minutes"),
    "a broken Hub": (Fault("POST", "/commit/", 99, 500), WRITER, "The Hub is not well (500): wait some minutes"),
    "a lost connection": (Fault("POST", "/commit/", 99, cut="before"), WRITER, "The connection to the Hub failed"),
    "a bad request": (Fault("POST", "/commit/", 1, 400), WRITER, "The Hub refused this (400) (made to fail"),
}
QUICK = "from hftl.results import publish\npublish.WAITS = (0.01, 0.01)\n"


@pytest.mark.parametrize("case", ERRORS)
def test_a_refused_push_says_how_to_go_on_and_publishes_nothing(hub: World, case: str) -> None:
    fault, token, sentence = ERRORS[case]
    hub.server.faults = [Fault(**vars(fault))]
    folder = hub.run("text-lora")
    before = sent(folder)
    try:
        said = hub.client.python(QUICK + "from hftl.cli.main import hftl\nhftl(words)", token, words=push_words(folder))
    finally:
        hub.server.faults = []
    assert said.code == 2, said.err[-2000:]
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert sentence in last
    assert str(folder) in last
    found = hub.server.repositories.pop(("model", "ada/refused"), None)
    assert found is None or found.commits[found.branches["main"]] == {}
    assert sent(folder) == before


def push_words(folder: Path, name: str = "ada/refused") -> list[str]:
    return ["push", str(folder), name]


def test_what_fails_for_a_moment_is_tried_again_and_makes_one_commit(hub: World) -> None:
    hub.server.faults = [
        Fault("POST", "/api/repos/create", 1, 503),
        Fault("POST", "/objects/batch", 1, 503),  # the client's own wait: one second
        Fault("POST", "/commit/", 1, 503),
        Fault("POST", "/commit/", 1, cut="after"),  # the commit is made, and its answer is lost
    ]
    hub.server.large.clear()
    hub.asked()
    code = QUICK + "from hftl.cli.main import hftl\nhftl(words)"
    said = hub.client.python(code, words=push_words(hub.run("text-full"), "ada/again"))
    assert said.code == 0, said.err[-2000:]
    assert "The Hub did not take it (503); again in" in said.err
    assert "(no answer); again in" in said.err
    assert sum("/commit/" in path for _, path, _ in hub.asked()) == 2
    assert hub.server.repositories["model", "ada/again"].messages == ["initial commit", "Full, trained with hftl"]
    assert hub.server.files("ada/again").keys() == sent(hub.run("text-full")).keys()


def test_an_upload_that_is_cut_leaves_no_commit_and_the_next_push_completes_it(hub: World) -> None:
    hub.server.large.clear()  # what is there is not sent again
    hub.server.faults = [Fault("PUT", "/large/", 99, 404)]
    said = hub.client.hftl(*push_words(hub.run("image-full"), "ada/cut"))
    hub.server.faults = []
    assert said.code == 2
    assert hub.server.repositories["model", "ada/cut"].messages == ["initial commit"]
    assert hub.server.files("ada/cut") == {}
    assert f"`hftl push {hub.run('image-full')} ada/cut` sends it" in said.err
    hub.asked()
    hub.server.faults = [Fault("PUT", "/large/", 1, cut="before")]
    assert hub.client.hftl(*push_words(hub.run("image-full"), "ada/cut")).code == 0
    assert [status for method, _, status in hub.asked() if method == "PUT"] == [0, 200]  # the client tried again
    assert hub.server.files("ada/cut").keys() == sent(hub.run("image-full")).keys()


def test_a_download_that_is_slow_or_cut_comes_whole(hub: World, pushed: dict[str, Said]) -> None:
    hub.server.faults = [Fault("GET", "/large/", 1, cut="middle"), Fault("GET", "/tree/", 1, slow=0.3)]
    forget = "import shutil, huggingface_hub\nshutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)\n"
    back = hub.client.python(forget + BACK, names={"text-full": "ada/text-full"}, folder=str(hub.folder))
    assert back.code == 0, back.err[-2000:]
    assert back.result["text-full"]["far"] < 1e-6
    assert hub.server.faults[0].times == 0


# --- from a recipe ---

STEPS = ("--max_steps", "4", "--per_device_train_batch_size", "8", "--learning_rate", "0.02", "--disable_tqdm")


def test_a_recipe_reads_model_and_data_by_id_and_revision_and_pushes_what_came_of_them(hub: World) -> None:
    model = hub.server.repositories["model", "ada/tiny-bert"]
    model.branches["small"] = model.branches["main"]
    csv = (hub.folder / "data" / "reviews.csv").read_bytes()
    data = hub.server.make("ada/reviews", {"train.csv": csv}, kind="dataset")
    data.branches["v1"] = data.branches["main"]
    data.commit("main", {"train.csv": b"nothing,here\n1,2\n"}, "broken")
    hub.asked()
    flags = ["--model", "ada/tiny-bert", "--revision", "small", "--data", "ada/reviews", "--data_revision", "v1"]
    where = ["--push_to_hub", "--hub_model_id", "ada/direct", "--hub_private_repo", "--output_dir", hub.run("direct")]
    said = hub.client.recipe(RECIPES / "text_cls.py", *flags, *where, *STEPS)
    assert said.code == 0, said.err[-3000:]
    report = json.loads(hub.server.files("ada/direct")["report.json"])
    assert report["revision"] == model.branches["small"]
    assert report["data"]["source"] == "ada/reviews"
    assert "push_to_hub" not in report["settings"]
    card = hub.server.files("ada/direct")["README.md"].decode()
    assert "datasets:\n- ada/reviews\n" in card
    assert hub.server.repositories["model", "ada/direct"].private
    asked = hub.asked()
    assert any("/datasets/ada/reviews" in path for _, path, _ in asked)
    assert sum("/commit/" in path for _, path, _ in asked) == 1  # no checkpoint was pushed on the way
    assert said.out.strip().splitlines()[-1].startswith("Pushed to ")


def test_rows_on_the_hub_that_pyarrow_would_not_survive_are_refused(hub: World) -> None:
    rows = b'null\n{"text": "good", "label": "yes"}\n'
    hub.server.make("ada/nothing", {"train.jsonl": rows}, kind="dataset")
    where = ["--model", "ada/tiny-bert", "--data", "ada/nothing", "--output_dir", hub.run("nothing")]
    said = hub.client.recipe(RECIPES / "text_cls.py", *where, *STEPS)
    assert said.code == 2, said.err[-3000:]
    assert "The files of ada/nothing on the Hub cannot be read: a row is null, and not an object." in said.err


def test_a_run_whose_push_fails_is_finished_and_saved_and_its_exit_code_says_so(hub: World) -> None:
    data = hub.folder / "data" / "reviews.csv"
    where = ["--push_to_hub", "--hub_model_id", "bob/taken", "--output_dir", hub.run("unpushed")]
    said = hub.client.recipe(RECIPES / "text_cls.py", "--model", "ada/tiny-bert", "--data", data, *where, *STEPS)
    assert said.code == 2
    last = said.err.strip().splitlines()[-1]
    assert last.startswith(f"error: The run is finished and saved in {hub.run('unpushed')}, but was not pushed.")
    assert "may not write to bob/taken" in last
    assert f"`hftl push {hub.run('unpushed')} bob/taken` sends it" in last
    assert hub.client.hftl("push", hub.run("unpushed"), "ada/taken").code == 0


@pytest.mark.parametrize(
    ("flags", "token", "sentence"),
    [
        (["--push_to_hub"], WRITER, "pass --hub_model_id you/name"),
        (["--push_to_hub", "--hub_model_id", "name"], WRITER, "Expected the repository as owner/name"),
        (["--push_to_hub", "--hub_model_id", "ada/x"], None, "log in with `hf auth login`"),
        (["--hub_model_id", "ada/x"], WRITER, "Pass --push_to_hub too"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_training(
    hub: World, flags: list[str], token: str | None, sentence: str
) -> None:
    where = ["--data", hub.folder / "data" / "reviews.csv", "--output_dir", hub.run("never")]
    said = hub.client.recipe(RECIPES / "text_cls.py", "--model", "ada/tiny-bert", *where, *flags, token=token)
    assert said.code == 2
    assert sentence in said.err
    assert not hub.run("never").exists()


SAME = """
import hftl, numpy
one, other = hftl.load(folder), hftl.load(name)
rows = one.task.examples(6)
pairs = zip(one.logits(rows), other.logits(rows), strict=True)
result = [max(float(numpy.abs(a - b).max()) for a, b in pairs), one.labels.names == other.labels.names]
"""


def test_features_and_their_classifier_come_back(hub: World) -> None:
    flags = [
        "--model",
        "ada/tiny-bert",
        "--data",
        hub.folder / "data" / "reviews.csv",
        "--strategy",
        "Features(classifier='knn')",
    ]
    where = ["--output_dir", hub.run("features"), "--push_to_hub", "--hub_model_id", "ada/features"]
    said = hub.client.recipe(RECIPES / "features.py", *flags, *where, "--disable_tqdm")
    assert said.code == 0, said.err[-3000:]
    assert "features.safetensors" in hub.server.files("ada/features")
    same = hub.client.python(SAME, folder=str(hub.run("features")), name="ada/features")
    assert same.result == [0.0, True], same.err[-2000:]


def test_each_task_of_several_comes_back_by_its_own_name(hub: World) -> None:
    data = hub.folder / "data" / "reviews.csv"
    flags = ["--model", "ada/tiny-bert", "--tasks", f"mood={data}", f"tone={data}", "--no_compare", "--adapters"]
    where = ["--output_dir", hub.run("several"), "--push_to_hub", "--hub_model_id", "ada/several"]
    said = hub.client.recipe(RECIPES / "multitask.py", *flags, *where, *STEPS)
    assert said.code == 0, said.err[-3000:]
    for task in ("mood", "tone"):
        same = hub.client.python(SAME, folder=str(hub.run("several") / task), name=f"ada/several/{task}")
        assert same.result == [0.0, True], same.err[-2000:]
        assert f'hftl.load("ada/several/{task}")' in hub.server.files("ada/several")["README.md"].decode()
    both = hub.client.python("import hftl\nhftl.load('ada/several')")
    assert "holds 2 tasks, which load one at a time. Pass ada/several/mood or ada/several/tone." in both.err
    assert "has no folder third" in hub.client.python("import hftl\nhftl.load('ada/several/third')").err


def test_a_pre_trained_encoder_is_pushed_and_says_what_reads_it(hub: World) -> None:
    flags = ["--model", "ada/tiny-bert", "--data", hub.folder / "data" / "reviews.csv", "--text", "text"]
    where = ["--output_dir", hub.run("mlm"), "--push_to_hub", "--hub_model_id", "ada/mlm"]
    said = hub.client.recipe(RECIPES / "mlm.py", *flags, *where, *STEPS)
    assert said.code == 0, said.err[-3000:]
    refused = hub.client.python("import hftl\nhftl.load('ada/mlm')")
    assert "holds a pre-trained encoder, which predicts no label" in refused.err
    code = "import transformers\nresult = type(transformers.AutoModelForMaskedLM.from_pretrained('ada/mlm')).__name__"
    assert hub.client.python(code).result == "BertForMaskedLM"


def test_no_network_is_said_in_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    from hftl.errors import explain

    with pytest.raises(ConnectionError) as refused:
        socket.create_connection(("127.0.0.1", port))
    assert "connection to the Hub failed: check the network" in explain("send", refused.value, "you/x")
    assert "the Hub cannot be reached" in explain("read", refused.value, "you/x", revision=None)
