"""A finished run's folder -> a repository on the Hub: what is sent, what stays, and one commit. Knows the Hub client.

Nothing is sent before the folder has been searched for secrets. It is one commit: what fails leaves no half of it.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from hftl.errors import NETWORK, UserError, causes, explain, kinds_of, status_of
from hftl.paths import expanded
from hftl.results import privacy
from hftl.results.folder import REPLACED
from hftl.settings.visible import cut

T = TypeVar("T")

KNOWN = (
    *("README.md", "report.json", "report.html", "recipe.yaml", "LICENSE", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "adapter_config.json"),
    *("adapter_model.safetensors", "features.json", "features.safetensors", "model.onnx", "model.onnx.data"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "*.spm"),
    *("preprocessor_config.json", "processor_config.json", "sentencepiece.model", "bpe.codes"),
)
"""Names of files that a run writes and a reader needs. No other is sent: no checkpoint, pickle or hidden file."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed later."""
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between tries of what the Hub's client does not try again by itself: making a repository, the commit."""


@dataclass(frozen=True)
class Parcel:
    """What of a folder is sent: paths inside it -> a file, or the content that is sent in its place."""

    files: dict[str, Path | bytes]
    left: list[str]
    """Paths that stay."""

    def table(self) -> str:
        """Each file with its size in bytes, and what stays."""
        sizes = {n: len(held) if isinstance(held, bytes) else held.stat().st_size for n, held in self.files.items()}
        wide = max(map(len, [*sizes, "file"])) + 2
        lines = ["file".ljust(wide) + f"{'bytes':>15}", *(f"{n.ljust(wide)}{size:>15,}" for n, size in sizes.items())]
        lines.append(f"{f'{len(sizes)} files'.ljust(wide)}{sum(sizes.values()):>15,}")
        return "\n".join(lines + ([f"not sent: {', '.join(self.left)}"] if self.left else []))


def push(
    folder: str | Path,
    name: str,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Send a finished run's folder to the Hub in one commit; return a line that says what has happened.

    Raises:
        UserError: no finished run, a name that is none, a secret in a file, an adapter whose base model nobody else
            has, or the Hub refused; the folder is as it was.
    """
    folder = expanded(folder)
    check_name(name)
    parcel = packed(folder, name)
    print(parcel.table())
    refuse_secrets(parcel, folder)
    if dry_run:
        return f"Nothing was sent: --dry_run. Without it, this goes to {name}."
    check_login(f"The run is kept in {folder}. ")

    strategy = cut(str(json.loads((folder / "report.json").read_text("utf-8")).get("strategy") or "A model"), 60)
    message = commit_message or f"{strategy}, trained with hftl"
    try:
        with _quiet_client():
            url = _send(parcel, name, private, revision, message)
    except Exception as failure:  # the HTTP library's errors have no common base with the Hub's
        if why := explain("send", failure, name):
            kept = f"the run is kept in {folder}, then `hftl push {folder} {name}` sends it."
            raise UserError(f"{why}; {kept}") from failure
        raise
    return f"Pushed to {url}"


def check_name(name: str) -> None:
    """Raise `UserError` unless a name can be one of a repository, with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise UserError("Expected the repository as owner/name, of letters, digits, - _ and dots, such as you/reviews.")


def check_login(before: str = "") -> None:
    """Raise `UserError` where no token is known here, or the Hub is switched off; nothing is asked of the Hub."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise UserError(f"{before}HF_HUB_OFFLINE is set, so nothing can be sent to the Hub: unset it, then try again.")
    if get_token() is None:
        raise UserError(f"{before}Pushing needs a token of the Hub: log in with `hf auth login`, then try again.")


def packed(folder: Path, name: str) -> Parcel:
    """What of a folder goes to the repository of this name; the card's examples will say that name.

    Raises:
        UserError: it is no finished run, or an adapter whose base model is a folder of this machine.
    """
    if not (folder / "report.json").is_file():
        raise UserError(f"{folder} holds no finished run (no report.json). Pass the folder of one.")
    tasks = [str(row.get("folder")) for row in json.loads((folder / "report.json").read_text("utf-8")).get("tasks", [])]
    inner = [Path(), *(Path(task) for task in tasks), *(Path(task) / "base" for task in ("", *tasks))]
    files: dict[str, Path | bytes] = {}
    left = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink()):
        inside = path.relative_to(folder)
        if inside.parent in inner and matches(path.name, KNOWN) and not path.is_symlink():
            files[inside.as_posix()] = path
        elif inside.parts[0] not in left:
            left.append(inside.as_posix() if inside.parent in inner else inside.parts[0])
    for settings in [name for name in files if Path(name).name == "adapter_config.json"]:
        _refuse_lost_base(folder / settings, name)
    for card in [name for name in files if Path(name).name == "README.md"]:
        where = Path(card).parent.as_posix()
        files[card] = _card(folder / card, name if where == "." else f"{name}/{where}") or files[card]
    return Parcel(files, sorted(set(left)))


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def refuse_secrets(parcel: Parcel, folder: Path) -> None:
    """Raise `UserError` where a file that is to be sent holds what should stay here."""
    for name in parcel.files:
        found = next(privacy.findings(folder / name, folder), None)
        if found is not None:
            where = f"line {found.line} of {name}" if found.line else f"the header of {name}"
            raise UserError(
                f"Nothing was sent: {where} in {folder} holds {found.what}. Take it out of the file, then push again."
            )


def _refuse_lost_base(settings: Path, name: str) -> None:
    base = str(json.loads(settings.read_text("utf-8")).get("base_model_name_or_path") or "")
    folder = settings.parent
    if base != "base" and (expanded(base).is_absolute() or expanded(base).exists() or base[:1] == "."):
        raise UserError(
            f"{folder} holds an adapter whose base model is a folder of this machine, so nobody else could load it. "
            f"Fold it in with `hftl merge {folder} {folder}-merged`, and push that; or train on a model of the Hub."
        )


def _card(path: Path, name: str) -> bytes | None:
    """The card with examples that name the repository; None for a card that a person has changed."""
    from hftl.results.report import card
    from hftl.results.report.report import Report

    report = Report.from_dict(json.loads((path.parent / "report.json").read_text("utf-8")))  # as it was written
    if card.markdown(report) != path.read_text("utf-8"):
        return None
    return card.markdown(replace(report, folder=name)).encode()


def _send(parcel: Parcel, name: str, private: bool, revision: str | None, message: str) -> str:
    """Make the repository where there is none, and commit everything at once; return the commit's address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="hftl")
    _again(lambda: api.create_repo(name, private=private or None, exist_ok=True))
    if revision is not None:
        _again(lambda: api.create_branch(name, branch=revision, exist_ok=True))

    def commit() -> Any:  # operations are made anew: one that was sent cannot be used again
        held = {path: what if isinstance(what, bytes) else str(what) for path, what in parcel.files.items()}
        operations: list[Any] = [CommitOperationAdd(path, what) for path, what in held.items()]
        there = set(api.list_repo_files(name, revision=revision)) - held.keys()
        # files of a run that was pushed before, which would be read with the new one
        operations += [CommitOperationDelete(old) for old in sorted(there) if matches(Path(old).name, REPLACED)]
        return api.create_commit(name, operations, commit_message=message, revision=revision)

    return str(_again(commit).commit_url)


def _again(act: Callable[[], T]) -> T:
    """What an act gives, tried again where the Hub was busy or did not answer.

    A commit whose answer was lost is not made twice: files that are there already make an empty one, which is skipped.
    """
    for wait in (*WAITS, None):
        try:
            return act()
        except Exception as failure:
            status = next((found for one in causes(failure) if (found := status_of(one))), None)
            lost = status is None and any(kinds_of(one) & set(NETWORK.split()) for one in causes(failure))
            if wait is None or not (lost or status in TRANSIENT):
                raise
            why = status or "no answer"
            print(f"The Hub did not take it ({why}); again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait * random.uniform(1, 1.25))
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Let the client's own notes of each retry not stand between ours."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
