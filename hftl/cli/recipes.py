"""`hftl train NAME` and `hftl recipes`: run, list and copy out the recipes that come with the package."""

from __future__ import annotations

import ast
import importlib.util
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

from hftl.cli import help as pages
from hftl.cli.flags import asks_help
from hftl.errors import UserError, suggest
from hftl.paths import expanded


def recipes() -> dict[str, Path]:
    """Name -> file, of the recipes as they are installed; in a checkout that is not, those beside the package."""
    spec = importlib.util.find_spec("hftl.recipes")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def named(words: list[str]) -> Any:
    """The recipe of `hftl train NAME ...`, with the command line as if its file had been started; None for the list.

    Raises:
        UserError: no such recipe.
    """
    if not words or words[0] in ("-h", "--help"):
        return pages.say(listing())
    found = runpy.run_path(str(_path(words[0])))
    sys.modules["__main__"].__doc__ = found["__doc__"]
    sys.argv = [f"hftl train {words[0]}", *words[1:]]
    return found["RECIPE"]


def show(words: list[str]) -> None:
    """`hftl recipes`: list them; `hftl recipes NAME FILE`: copy one out, to be changed.

    Raises:
        UserError: no such recipe, or the file exists.
    """
    if not words or asks_help(words):
        return pages.say(listing())
    path, out = _path(words[0]), expanded(words[1]) if len(words) == 2 else None
    if out is None:
        raise UserError(f"hftl recipes takes a name and a file to copy it to: hftl recipes {path.stem} mine.py.")
    out = out / path.name if out.is_dir() else out
    if out.exists() or not out.parent.is_dir():
        what = "exists" if out.exists() else "lies in no folder that exists"
        raise UserError(f"{out} {what}. Pass another file.")
    shutil.copyfile(path, out)
    return pages.say(f"{out}: change it, and start it with accelerate launch {out}")


def listing() -> str:
    """Each recipe in one line, and how one is run."""
    lines = [f"  {f'hftl train {name}'.ljust(30)}  {_about(path)}" for name, path in recipes().items()]
    foot = [
        "  hftl train NAME --help            its flags",
        "  hftl recipes NAME mine.py         copy one out, to change it",
        "  accelerate launch -m hftl.recipes.NAME   on several devices",
    ]
    return "\n".join(["Recipes: a model, data and settings to start from", "", *lines, "", *foot])


def _about(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def _path(name: str) -> Path:
    known = recipes()
    if name not in known:
        raise UserError(f"There is no recipe {name!r}; there is {', '.join(known)}.{suggest(name, known)}")
    return known[name]
