"""What the tests' Hub holds: repositories with commits and branches, faults and answers. Knows no connection."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

WRITER, READER, OTHER = ("hf_" + letter * 30 for letter in "wro")
"""Tokens of ada, who owns what the tests make, with and without the right to write, and of bob."""
LARGE = (".safetensors", ".parquet", ".arrow", ".onnx", ".model", ".bin")
"""Endings of files that go the way of large files, as a new repository's .gitattributes on the Hub says."""


@dataclass
class Repository:
    """`commits` is commit -> path -> content; `branches` is name -> commit."""

    name: str
    kind: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        told = repr((self.name, branch, len(self.commits), message, sorted(files))).encode()
        made = hashlib.sha1(told).hexdigest()
        self.commits[made], self.branches[branch] = files, made
        self.messages.append(message)
        return made

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """An answer that goes wrong, for the next `times` requests of a method whose path fits.

    Attributes:
        status: is answered in place of the right answer.
        cut: the connection is closed before any answer ("before"), after the work is done ("after"), or in the middle
            of the content ("middle").
        slow: seconds before the right answer.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    cut: str = ""
    slow: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class Answer(Exception):  # noqa: N818, an answer is no error
    """What a request is answered with."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def blob(content: bytes) -> str:
    """The name that git has for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a tree."""
    told: dict[str, Any] = {"type": "file", "oid": blob(content), "size": len(content), "path": path}
    if path.endswith(LARGE):
        told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return told
