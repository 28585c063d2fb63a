"""Who may import whom: the ten rooms of docs/design.md, held against the source, annotations included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "hftl").rglob("*.py"))
FREE = {"errors", "paths"}
BESIDE = {"", "testing", *FREE}
"""Modules that are no room: the package itself and `testing` stand above all, `errors` and `paths` below."""

ROOMS = {
    "settings": "",
    "models": "",
    "data": "settings",
    "strategies": "models",
    "tasks": "settings models data",
    "train": "models strategies",
    "results": "settings models data tasks train",
    "run": "settings models data strategies tasks train results",
    "studies": "settings models data strategies tasks train results run",
    "cli": "settings models data strategies tasks train results run studies",
}
"""Rooms of hftl -> rooms that they may import."""

HOMES = {"peft": ("strategies.", "results.load"), "timm": ("models.", "tasks.networks.")}
"""Packages of others -> where alone they may be imported."""

NEVER = {
    "data": {"torch", "transformers"},
    "settings": {"torch", "transformers"},
    "tasks.metrics": {"torch", "transformers"},
    "tasks.augment.base": {"torch", "transformers"},
    "results.report": {"torch", "transformers"},
    "train.trainer": {"peft", "datasets", "huggingface_hub"},
}
"""What must answer before a heavy package is loaded, or must not know it."""


TASKS = {
    *("text-classification", "token-classification", "image-classification", "image-segmentation", "multiple-choice"),
    *("fill-mask", "image-feature-extraction", "problem_type", "single_label_classification", "regression"),
    *("multi_label_classification", "token_classification", "image_segmentation", "masked_tokens", "pretext"),
}
"""Names of tasks and words for a kind of label."""
WORDED = TASKS | {"PIXELS", "TAGS", "SINGLE", "MULTI", "REGRESSION", "PROBLEM_TYPES"}
"""The same, and constants that stood for them."""


def name_of(path: Path) -> str:
    """hftl/tasks/base.py -> tasks.base; a package by its own name, hftl itself by an empty one."""
    return ".".join(path.relative_to(ROOT / "hftl").with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path) for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions and for annotations too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(path: Path) -> set[str]:
    """The modules of hftl that a file imports; a name that is imported from a module stands for the module."""
    found = {name.removeprefix("hftl.") for name in imports(path) if name.startswith("hftl.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).partition(".")[0] not in BESIDE], ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = name_of(path).partition(".")[0]
    beyond = {name for name in inner(path) if name.partition(".")[0] not in {room, *ROOMS[room].split(), *FREE}}
    assert not beyond, f"{name_of(path)} imports {sorted(beyond)}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    ways = {name_of(path): inner(path) for path in SOURCES}
    left = dict(ways)
    while leaves := [name for name, found in left.items() if not found & (left.keys() - {name})]:
        for name in leaves:
            del left[name]
    assert not left, f"a circle runs through {sorted(left)}"


def test_the_rooms_are_ten_and_nothing_lies_beside_them() -> None:
    assert {name.partition(".")[0] for name in MODULES} == {*ROOMS, *BESIDE}
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert [room for room in ROOMS if f"| `{room}/` |" not in design] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_package_of_others_is_imported_only_where_it_belongs(path: Path) -> None:
    module, outer = name_of(path), {found.split(".")[0] for found in imports(path)}
    strangers = {p for p, homes in HOMES.items() if p in outer and not module.startswith(homes)}
    assert not strangers
    for place, banned in NEVER.items():
        if under(module, place):
            assert not outer & banned


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300, "a file that outgrows 300 lines is usually two ideas"
    made = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in made if n.end_lineno is not None and n.end_lineno - n.lineno >= 50] == []


def words(path: Path) -> Iterator[str]:
    """All names that a file uses, and all strings in it but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        yield from (str(value) for _, value in ast.iter_fields(node) if isinstance(value, str) and id(node) not in docs)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_tasks_know_which_tasks_there_are(path: Path) -> None:
    if not under(name_of(path), "tasks"):
        assert not WORDED & set(words(path))
        assert not [name for name in inner(path) if under(name, "tasks.text") or under(name, "tasks.image")]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_recipe_imports_from_hftl_itself_only(recipe: Path) -> None:
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"hftl"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_importing_hftl_its_command_line_and_all_tasks_costs_no_torch() -> None:
    code = (
        "import hftl, hftl.cli.main, hftl.run.recipe, hftl.strategies, sys; from hftl.tasks.base import Task; "
        "assert len(Task.known()) >= 6; print(*sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "peft", "timm", "numpy"} & set(loaded)
