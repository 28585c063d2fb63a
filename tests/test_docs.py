"""What the texts say is so: their commands parse, their links lead somewhere, the README's own recipe runs."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from hftl import Recipe
from hftl.cli import main as cli
from hftl.cli.commands import FLAGS
from hftl.results.report.card import markdown
from hftl.results.report.report import Report
from hftl.strategies import Strategy
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.text.classification import TextClassification

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
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


def own_recipe() -> str:
    (block,) = (block for block in blocks("python") if "class NormsOnly" in block)
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
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--output_dir", str(folder), "--num_train_epochs", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), *flags, "--disable_tqdm"])
    runpy.run_path(str(script), run_name="__main__")
    report = json.loads((folder / "report.json").read_text())
    assert report["strategy"] == "NormsOnly"
    trained = [row["module"] for row in report["rates"] if max(row["rates"]) > 0]
    assert len(trained) == 5, "embeddings' norm, two blocks' norms, pooler, classifier"
    assert all("(fresh)" in module or "LayerNorm" in module for module in trained)


def test_the_readme_strategy_keeps_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    (lines,) = (block for block in blocks("python") if "check_strategy" in block)
    assert len(lines.split("\n\n")) == 2
    (tmp_path / "my_recipe.py").write_text(own_recipe())
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path("my_recipe.py")
    exec(lines, made)


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
