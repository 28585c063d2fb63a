"""What belongs to one machine or one person: its paths, shortened where they are shared, and its secrets, found.

Knows forms of text alone: no report, no Hub. What it does not find may still be secret.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftl.paths import expanded

TEXTS = {".json", ".yaml", ".yml", ".md", ".html", ".txt", ".jinja", ".csv", ".py", ".cfg", ".toml", ""}
"""Endings of files that are read as text."""

_HEADER_LIMIT = 100_000_000
_PATH = re.compile(r"(?<![\w/.:~\\-])(?:~(?=/)|/(?=[\w.@+-])|[A-Za-z]:\\(?=\w))[^\s,;'\"<>|)`]*")
HIDDEN = "(not written)"
_WORD = "(?:token|password|secret|api_key)"
_NAME, _FLAG = re.compile(rf"(^|_){_WORD}$", re.IGNORECASE), re.compile(rf"(--\w*{_WORD})(=|\s+)(?!--)(\S+)")
_HUB_TOKEN = r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"
_SECRETS = {
    "a Hugging Face token": _HUB_TOKEN,
    "an AWS access key": r"(?<![A-Za-z0-9+/])A(?:KIA|SIA)[0-9A-Z]{16}(?![A-Za-z0-9+/])",
    "an AWS secret key": r"(?i:aws_?secret_?(?:access_?)?key)\W{1,5}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "an API key": r"(?<![\w+/-])(?:sk-[A-Za-z0-9_-]{24,}|AIza[\w-]{35}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,})",
    "an Authorization header": r"(?i:authorization)\W{1,5}(?i:bearer|basic|token)\s+[\w.~+/=-]{8,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']{3,}@",
}


@dataclass(frozen=True)
class Finding:
    """Something that should not leave this machine. `line` counts from 1; in a binary file's header it is 0."""

    line: int
    what: str


def names_secret(name: str) -> bool:
    """Whether what stands under this key is a secret."""
    return bool(_NAME.search(name))


def without_secrets(text: str) -> str:
    """A text in which tokens of the Hub, and the values of flags that name a secret, are `HIDDEN`."""
    return re.sub(_HUB_TOKEN, HIDDEN, _FLAG.sub(rf"\1\2{HIDDEN}", text))


def shared(value: Any) -> Any:
    """Plain values in which no absolute path of this machine is left; all else stays as it is.

    A path under the working directory becomes relative to it, any other its last part; both begin with `./`, which
    keeps a folder's name from being taken for one of the Hub's.
    """
    if isinstance(value, str):
        whole = value[:1] in "/~" and (expanded(value).exists() or not re.search(r"[\s,;]", value))
        return _short(value) if whole and value else _PATH.sub(lambda found: _short(found[0]), value)
    if isinstance(value, dict):
        return {key: shared(item) for key, item in value.items()}
    return [shared(item) for item in value] if isinstance(value, list) else value


def shared_command(command: str) -> str:
    """A command line whose words, and values after `=`, are treated as `shared` does."""
    try:
        words = [word.partition("=") for word in shlex.split(command)]
    except ValueError:  # no shell could run it
        return shared(command)
    made = shlex.join(shared(head) + equals + shared(value) for head, equals, value in words)
    return command if made == shlex.join("".join(word) for word in words) else made  # as it was typed


def _short(path: str) -> str:
    """One absolute path without what comes before the working directory, or its last part; other text as it is."""
    end = path[len(path.rstrip(".:")) :]
    full = expanded(path.removesuffix(end))
    windows = re.match(r"[A-Za-z]:\\", path)
    if windows:
        return "./" + path.rstrip("\\").rpartition("\\")[2]
    if not full.is_absolute() or len(full.parts) < 3 or not Path(*full.parts[:2]).exists():
        return path  # `/m/01g317` is a label, not a place here
    here = Path.cwd()
    inside = len(here.parts) > 1 and full.is_relative_to(here)
    return f"./{full.relative_to(here).as_posix() if inside else full.name}{end}"


def findings(file: Path, folder: Path) -> Iterator[Finding]:
    """What in one file of a run's folder should not be shared: secrets, and paths and names of this machine.

    Args:
        file: a text, read line by line, or a .safetensors file, of which the header is read.
    """
    patterns = [(what, re.compile(pattern)) for what, pattern in _SECRETS.items()]
    patterns += [(what, re.compile(pattern)) for what, pattern in _own(folder)]
    for number, line in _lines(file):
        for what, pattern in patterns:
            if pattern.search(line):
                yield Finding(number, what)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            length = min(int.from_bytes(opened.read(8), "little"), _HEADER_LIMIT)
            yield 0, opened.read(length).decode("utf-8", "replace")
    elif file.suffix.lower() in TEXTS:
        with file.open(encoding="utf-8", errors="replace") as opened:
            yield from enumerate(opened, start=1)


def _own(folder: Path) -> Iterator[tuple[str, str]]:
    """Patterns of what names this machine and this person: places, the user, the host.

    A user's or host's bare name may be a word of the data: it counts inside a path or an address alone.
    """
    places = {"the home directory": Path.home(), "the working directory": Path.cwd(), "this folder": folder.resolve()}
    for what, place in places.items():
        if len(place.parts) > 1:
            yield f"a path of this machine ({what})", rf"(?<![\w/.:-]){re.escape(place.as_posix())}(?![\w-])"
    yield "a home directory", r"(?<![\w/.:-])(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[\w.-]+"
    if user := _user():
        yield "the user's name", rf"(?<![\w/.:-])/(?:[\w.+-]+/)*{re.escape(user)}/|(?<![\w.+-]){re.escape(user)}@[\w-]+"
    host = socket.gethostname()
    if len(host) > 3 and re.search(r"[\d.-]", host):
        yield "the name of this machine", rf"(?<![\w.-]){re.escape(host)}(?![\w-])"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return os.environ.get("USER", "")
