"""Who may import whom: the table of docs/design.md, section 4, held against the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "hftl").rglob("*.py"))

TABLE = {
    "errors paths bootstrap devices frozen kernels layout manifest packed progress stopping": "",
    "failures": "stopping wording",
    "replay sampling shards startup untouched wording": "",
    "launch": "",
    "settings spec recipe_file": "",
    "values": "settings spec",
    "anatomy": "layout",
    "accumulator calibration": "bootstrap",
    "extra": "accumulator",
    "pretext entities segments": "accumulator bootstrap",
    "metrics": "accumulator bootstrap calibration entities extra pretext segments",
    "alignment checkpoints head": "",
    "domains": "accumulator",
    "strategies strategies.base strategies.layers strategies.mixstyle strategies.peft": "anatomy strategies.base",
    "strategies.align": "alignment anatomy strategies.base token_head",
    "token_head": "",
    "augment augment.base augment.image augment.text augment.pixels augment.models": "augment spec",
    "tasks tasks.base tasks.text tasks.image": "accumulator augment metrics data tasks.base tasks.failures "
    "tasks.origin",
    "tasks.failures tasks.origin tasks.vocabulary tasks.over": "",
    "tasks.views": "tasks.over",
    "tasks.hidden_tokens": "tasks.over untouched",
    "tasks.token": "data tasks.base tasks.origin tasks.text",
    "tasks.dense": "",
    "tasks.segmentation": "augment data segments tasks.base tasks.dense tasks.failures tasks.image tasks.origin",
    "tasks.masked_text": "data tasks.base tasks.hidden_tokens tasks.text tasks.vocabulary",
    "tasks.masked_image": "data tasks.base tasks.failures tasks.image tasks.origin tasks.over tasks.views",
    "data": "data wording",
    "rates": "anatomy strategies.base",
    "packing": "packed untouched",
    "rows": "sampling",
    "writer": "shards",
    "store": "shards writer",
    "cut": "replay untouched",
    "cache": "cut replay rows store",
    "resuming": "checkpoints manifest stopping",
    "reading": "cache devices resuming rows sampling",
    "streams": "head sampling strategies.base untouched",
    "trainer": "anatomy cache checkpoints devices frozen packing rates reading stopping strategies.base streams",
    "plots plain verdict": "wording",
    "privacy hub_failures": "",
    "page": "plots segments verdict wording",
    "card": "page verdict wording",
    "report": "card metrics page plain privacy verdict wording",
    "adaptation": "accumulator domains head metrics streams trainer",
    "folder": "manifest recipe_file stopping",
    "hub": "feature_model folder hub_failures tasks data",
    "predict": "hub progress sampling tasks data",
    "publish": "card folder hub_failures privacy report wording",
    "merging": "folder hub predict recipe_file report",
    "adapters": "predict",
    "export": "merging predict",
    "outcome": "adaptation data metrics report spec trainer wording",
    "arguments": "devices domains kernels outcome strategies wording",
    "memory": "untouched",
    "run": "adaptation anatomy arguments cache data folder kernels memory outcome progress rows settings spec startup "
    "strategies streams tasks trainer",
    "feature_model": "",
    "classical": "feature_model",
    "feature_run": "cache classical feature_model head outcome store wording",
    "mixing": "sampling",
    "pcgrad multitask_model": "",
    "task_adapters": "anatomy strategies.base strategies.peft",
    "multitask_trainer": "mixing pcgrad rows sampling trainer",
    "multitask_run": "anatomy arguments folder multitask_model multitask_trainer outcome recipe run settings spec "
    "startup strategies task_adapters values",
    "multitask_outcome": "anatomy folder metrics multitask_trainer outcome report run spec task_adapters",
    "comparison": "arguments bootstrap metrics outcome run wording",
    "multitask": "comparison folder multitask_outcome multitask_run progress publish recipe settings startup",
    "features": "feature_run folder progress publish recipe settings startup",
    "pretrain": "cli recipe run settings startup",
    "recipe": "anatomy arguments folder kernels memory outcome privacy progress publish run settings spec startup "
    "strategies values",
    "help": "augment settings spec strategies.base values",
    "flags": "settings spec values",
    "commands": "export flags help merging predict publish settings startup",
    "cli": "augment commands failures flags folder help recipe_file settings spec stopping strategies.base values",
    "testing": "folder hub outcome recipe report run spec strategies",
}
"""Modules of hftl -> modules of hftl that they may import; a package stands for all of it. errors, paths: free."""

MAY = {module: f"errors paths {allowed}".split() for modules, allowed in TABLE.items() for module in modules.split()}

HOMES = {
    "peft": {"strategies.peft", "task_adapters", "hub"},
    "timm": {"tasks.image", "anatomy", "layout"},
}
"""Packages of others -> the only modules that may import them."""

NEVER = {
    "data": {"torch", "transformers"},
    "trainer": {"peft", "datasets", "huggingface_hub"},
    "values settings spec recipe_file help flags commands cli failures": {"torch", "transformers"},
    "privacy augment.base augment.text augment.pixels": {"torch", "transformers"},
    "accumulator calibration bootstrap entities extra metrics pretext segments": {"torch", "transformers"},
    "report page card plots plain verdict wording": {"torch", "transformers"},
}


def name_of(path: Path) -> str:
    """hftl/tasks/text.py -> tasks.text; a package by its own name, hftl itself by an empty one."""
    return ".".join(path.relative_to(ROOT / "hftl").with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too; what only annotations need is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    guarded = {id(inner) for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def row_of(module: str) -> list[str] | None:
    return MAY.get(module, MAY["data"] if under(module, "data") else None)


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p)], ids=name_of)
def test_a_module_imports_only_what_its_row_names(path: Path) -> None:
    allowed = row_of(name_of(path))
    assert allowed is not None, f"{name_of(path)} has no row; add it here and to docs/design.md"
    inner = {found.removeprefix("hftl.") for found in imports(path) if under(found, "hftl")}
    beyond = sorted(name for name in inner if not any(under(name, one) for one in allowed))
    assert not beyond


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_package_of_others_is_imported_only_where_it_belongs(path: Path) -> None:
    module, outer = name_of(path), {found.split(".")[0] for found in imports(path)}
    strangers = {package for package, homes in HOMES.items() if package in outer and module not in homes}
    assert not strangers
    for modules, banned in NEVER.items():
        if any(under(module, one) for one in modules.split()):
            assert not outer & banned


def test_every_row_is_in_the_design() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    lines = design.partition("## 4.")[2].partition("## 5.")[0].splitlines()
    rows = [line.replace("/*", "").replace("/", ".").split(" | ") for line in lines if line.startswith("| ")]
    written = {name: allowed for names, allowed, *_ in rows for name in names.removeprefix("| ").split(", ")}
    for module, allowed in MAY.items():
        row = written.get(module) or written[module.partition(".")[0]]
        missing = [one for one in allowed if one not in ("errors", "paths") and one not in row]
        assert not missing, f"the row of {module} in docs/design.md lacks {missing}"


def test_no_module_outside_tasks_asks_which_task_it_serves() -> None:
    banned = ("isinstance(task,", "if modality", "task.startswith(", 'hasattr(model, "vit")')
    found = [
        (name_of(path), phrase)
        for path in SOURCES
        for phrase in banned
        if not under(name_of(path), "tasks") and phrase in path.read_text(encoding="utf-8")
    ]
    assert not found


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_imports_from_hftl_itself_only(recipe: Path) -> None:
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"hftl"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_importing_hftl_and_its_command_line_costs_no_torch() -> None:
    code = "import hftl, hftl.cli, hftl.recipe, hftl.strategies, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "peft", "timm", "numpy"} & set(loaded)
