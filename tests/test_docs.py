"""What the texts say is so: their commands parse, their links lead somewhere, the README's own recipe runs."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from hftl import Recipe, load, testing
from hftl.cli import main as cli
from hftl.cli.commands import FLAGS, run
from hftl.errors import UserError
from hftl.results.report.card import markdown
from hftl.results.report.report import Report
from hftl.strategies import Strategy
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.text.classification import TextClassification

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
README = PAGES[0].read_text(encoding="utf-8")
COMMAND = re.compile(r"(?:^|[`|&] ?|#   )((?:accelerate launch|hftl|python) [^`\n]+)", re.MULTILINE)
OURS = re.compile(
    r"hftl (?:predict|push|merge|export|strategies|--)|(?:accelerate launch|python) .*\b(?:recipes/|my_recipe)"
)


def commands() -> Iterator[tuple[str, str]]:
    """Every command of ours in the texts, the recipes and the configs: in fences, in code spans, in docstrings."""
    for page in [*PAGES, *RECIPES, *CONFIGS]:
        text = re.sub(r"^ {4}", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for found in COMMAND.findall(text):
            if OURS.match(found):
                yield page.name, found.strip()


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def own_recipe(name: str = "NormsOnly") -> str:
    """The script of the README that defines a class of this name."""
    (block,) = (block for block in blocks("python") if f"class {name}(" in block)
    return block


def words_of(command: str) -> list[str]:
    """The words of one command, without a comment and without what it is piped into."""
    words = shlex.split(command, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", "&&")]
    return words[: ends[0]] if ends else words


def check_recipe(script: str, flags: list[str], folder: Path) -> None:
    """A recipe's flags must merge: known names, values of the right kind, a strategy that reads."""
    path = ROOT / script
    if script == "my_recipe.py":
        path = folder / script
        path.write_text(own_recipe())
    else:
        assert path in RECIPES
    made = runpy.run_path(str(path))
    recipe = made.get("RECIPE", Recipe())
    if "--config" in flags:
        at = flags.index("--config") + 1
        (folder / "recipe.yaml").write_text("learning_rate: 1e-4\n")
        flags = [*flags[:at], str(folder / "recipe.yaml"), *flags[at + 1 :]]
    if "--help" not in flags:
        cli.merge(recipe, flags)


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_a_command_in_the_texts_parses(page: str, command: str, tmp_path: Path) -> None:
    words = words_of(command)
    if words[0] == "hftl":
        own = words[3 if words[1] == "predict" else 4 :]  # after the folder, and where it goes
        if words[1] in FLAGS and "--help" not in words and len(words) > 2:
            read = cli.read_flags(own, FLAGS[words[1]])
            assert words[1] != "predict" or {"data", "output"} <= read.keys()
        elif words[1] not in FLAGS or "--help" in words:
            cli.hftl(words[1:])
    elif words[0] == "python" and words[1] != "-m":
        check_recipe(words[1], words[2:], tmp_path)
    else:
        assert words[:2] == ["accelerate", "launch"] or words[:3] == ["python", "-m", "hftl.cli.launch"]
        launched = launch_command_parser().parse_args(words[2 + (words[0] == "python") :])
        assert launched.config_file is None or (ROOT / launched.config_file).is_file()
        check_recipe(launched.training_script, launched.training_script_args, tmp_path)


def test_the_readme_opens_with_the_two_commands_word_for_word() -> None:
    first = README.partition("\n## ")[0]
    assert 'pip install -e ".[demo]" && accelerate launch recipes/text_cls.py\n' in first
    assert 'pip install -e ".[dev]" && pytest\n' in first
    assert len(list(commands())) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_link_between_the_texts_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            if anchor:
                heads = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], target


def test_every_strategy_has_its_own_command_on_its_page_and_a_row_in_the_readme() -> None:
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    typed = " ".join(command for name, command in commands() if name == "strategies.md")
    for name, kind in Strategy.known().items():
        if kind.__module__.startswith("hftl."):
            assert re.search(rf"^## .*\b{name}\b", page, re.MULTILINE), name
            assert re.search(rf"--strategy [\"']?{name}\b", typed), name
            assert re.search(rf"^\| .*`{name}\b", README, re.MULTILINE), name


def test_the_readme_loads_an_adapter_with_the_code_of_the_model_card() -> None:
    score = {"accuracy": Score(0.9, 0.8, 1.0, 100)}
    report = Report(
        task="text-classification",
        usage=TextClassification.usage,
        model="sentence-transformers/all-MiniLM-L6-v2",
        strategy="LoRA",
        adapter=True,
        folder="runs/lora",
        test=score,
        valid=score,
    )
    own, card = (
        ast.unparse(ast.parse(block))
        for text in (README, markdown(report))
        for block in blocks("python", text)
        if "PeftModel" in block
    )
    assert own in card


def test_the_readme_recipe_is_short_and_runs(
    tiny_bert: str, reviews_csv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(own_recipe().splitlines()) <= 20
    script, folder = tmp_path / "my_recipe.py", tmp_path / "run"
    script.write_text(own_recipe())
    flags = [
        "--model",
        tiny_bert,
        "--data",
        reviews_csv,
        "--output_dir",
        str(folder),
        "--num_train_epochs",
        "1",
        "--head",
        "random",
    ]
    monkeypatch.setattr(sys, "argv", [str(script), *flags, "--disable_tqdm"])
    runpy.run_path(str(script), run_name="__main__")
    report = json.loads((folder / "report.json").read_text())
    assert report["strategy"] == "NormsOnly"
    trained = [row["module"] for row in report["rates"] if max(row["rates"]) > 0]
    assert len(trained) == 5, "embeddings' norm, two blocks' norms, pooler, classifier"
    assert all("(fresh)" in module or "LayerNorm" in module for module in trained)


@pytest.mark.launch
def test_the_readme_strategy_keeps_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    (lines,) = (block for block in blocks("python") if "check_strategy" in block)
    assert len(lines.split("\n\n")) == 2
    (tmp_path / "my_recipe.py").write_text(own_recipe())
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path("my_recipe.py")
    exec(lines, made)


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """A folder with the README's task, rows of counts for it, and a tiny model.

    The task is imported in processes of its own: in this one it would be a task of hftl's for every test to come.
    """
    testing.tiny_bert(tmp_path / "tiny")
    rows = [(text, sum(word in testing.GOOD for word in text.split())) for text, _ in testing.sentences(160)]
    with (tmp_path / "upvotes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "count"), *rows])
    (tmp_path / "count_cls.py").write_text(own_recipe("CountRegression"))
    return tmp_path


def said(words: list[str], folder: Path) -> str:
    """What a Python process prints that runs in a folder with one thread."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stdout


USED = """
import hftl, count_cls
from hftl.results.predict import predict_file
count = hftl.load("runs/counts")
print(*(count(text)["count"] for text in ("bad sad cold", "good great fine")))
predict_file("runs/counts", "upvotes.csv", "predicted.csv")
"""


@pytest.mark.launch
def test_the_readme_task_is_short_trains_by_its_own_script_and_is_loaded_where_it_is_imported(counted: Path) -> None:
    assert len(own_recipe("CountRegression").splitlines()) <= 60
    flags = "--model tiny --label count --max_length 32 --num_train_epochs 8 --learning_rate 0.01 --strategy"
    said(["count_cls.py", *flags.split(), "Full | LayerDecay(0.9)", "--disable_tqdm"], counted)
    report = json.loads((counted / "runs/counts/report.json").read_text())
    assert (report["task"], report["labels"], report["lower"][0]) == ("count-regression", [], "deviance")
    few, many = map(float, said(["-c", USED], counted).splitlines()[0].split())
    assert 0 < few < 1 < 2 < many
    assert report["test"]["pearson"]["value"] > 0.9
    with (counted / "predicted.csv").open(encoding="utf-8") as file:
        assert all(float(row["prediction"]) > 0 for row in csv.DictReader(file))
    refusal = r"'count-regression', which hftl does not have\. Import the module"
    with pytest.raises(UserError, match=refusal):
        load(counted / "runs" / "counts")
    words = [str(counted / "runs" / "counts"), *f"--data {counted}/upvotes.csv --output {counted}/p.csv".split()]
    with pytest.raises(UserError, match=refusal):
        run("predict", words)


def test_a_task_of_a_script_that_runs_is_sent_to_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextClassification, "__module__", "__main__")
    with pytest.raises(UserError, match="Save it as a module"):
        testing.check_task({"task": TextClassification.name})


LAWS = """
import numpy, pytest, sklearn.metrics
from hftl import Recipe, load, testing
from hftl.errors import UserError
logs, counts = numpy.linspace(-1, 2, 20)[:, None], numpy.arange(20.0) % 5
metric = count_cls.Counts()
metric.update(logs, counts)
expected = sklearn.metrics.mean_poisson_deviance(counts, numpy.exp(logs[:, 0]))
assert metric.values()["deviance"] == pytest.approx(expected, abs=1e-6)
with open("upvotes.csv", "a") as file:
    file.write("a bad film,-2\\n")
with pytest.raises(UserError, match="Expected counts from 0; -2 came"):
    Recipe(task="count-regression", data="upvotes.csv", model="tiny", output_dir="refused").prepare()
"""


@pytest.mark.launch
def test_the_readme_task_keeps_the_laws_and_refuses_what_is_no_count(counted: Path) -> None:
    (lines,) = (block for block in blocks("python") if "check_task(" in block)
    assert len(lines.split("\n\n")) == 2
    said(["-c", lines + LAWS], counted)


def test_no_text_names_a_place_of_the_machine_it_was_written_on() -> None:
    places = ["/work" + "/", "../" + "shared", "shared/" + "data", "/tmp" + "/v/", "/root" + "/"]
    kinds = {".py", ".md", ".yaml", ".toml", ".j2", ".css", ".csv", ".json", ".txt", ""}
    skipped = {"build", "dist", "runs", "venv", "__pycache__"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        if path.is_file() and path.suffix in kinds and not hidden and not skipped & {*parts}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not [place for place in places if place in text], path
