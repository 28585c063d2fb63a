"""What each route of the tests' Hub answers, as the installed `huggingface_hub` client asks it. Knows no connection.

Routes and fields were read off the client (huggingface_hub 2.4).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from hub_store import LARGE, Answer, Repository, blob, entry

if TYPE_CHECKING:
    from hub_server import HubServer


class Routes:
    """One request: who asks, what, and with which content."""

    server: HubServer
    command: str
    headers: Any
    content: bytes
    query: dict[str, str]

    def _user(self) -> tuple[str, bool]:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if scheme and token not in self.server.users:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        return self.server.users.get(token, ("", False))

    def _repository(self, kind: str, name: str, writes: bool = False) -> Repository:
        user, may_write = self._user()
        found = self.server.repositories.get((kind, name))
        if found is None or (found.private and user != name.split("/")[0]):
            if user:
                raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            raise Answer(401, {"error": "Invalid username or password."})
        if writes and not user:
            raise Answer(401, {"error": "Invalid username or password."})
        if writes and not (may_write and user == name.split("/")[0]):
            raise Answer(403, {"error": "you must use a write token to upload to a repository"})
        return found

    def _files(self, found: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = found.find(unquote(revision))
        if commit is None:
            raise Answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return commit, found.commits[commit]

    def route(self, path: str) -> None:
        """Raise the answer to a request."""
        for method, pattern, act in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                act(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})

    def _whoami(self) -> None:
        user, may_write = self._user()
        if not user:
            raise Answer(401, {"error": "Invalid username or password."})
        role = {"accessToken": {"role": "write" if may_write else "read"}}
        raise Answer(200, {"type": "user", "name": user, "orgs": [], "auth": role})

    def _create(self) -> None:
        user, may_write = self._user()
        asked = json.loads(self.content)
        owner, kind = asked.get("organization") or user, asked.get("type") or "model"
        name = f"{owner}/{asked['name']}"
        told = {"url": f"{self.server.url}/{PREFIX[kind]}{name}", "name": name}
        if not user:
            raise Answer(401, {"error": "Invalid username or password."})
        if owner != user or not may_write:
            raise Answer(403, {"error": f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'})
        if (kind, name) in self.server.repositories:
            raise Answer(409, told | {"error": f"You already created this {kind} repo"})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.make(name, {}, kind, private)
        raise Answer(200, told)

    def _yaml(self) -> None:
        text = json.loads(self.content)["content"]
        if text.startswith("---\n") and "\n---\n" in text:
            raise Answer(200, {"errors": [], "warnings": []})
        raise Answer(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        _, files = self._files(self._repository(kind, name, writes=True), revision)
        told = []
        for one in json.loads(self.content)["files"]:
            large = one["path"].endswith(LARGE) or one["size"] > 10_000_000
            old = files.get(one["path"])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if large else blob(old)
            mode = "lfs" if large else "regular"
            told.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        raise Answer(200, {"files": told})

    def _batch(self, name: str, kind: str = "") -> None:
        self._repository(KINDS.get(kind, "model"), name, writes=True)
        objects = []
        for one in json.loads(self.content)["objects"]:
            put = {"upload": {"href": f"{self.server.store}/large/{one['oid']}"}}
            put["verify"] = {"href": f"{self.server.url}/verify/{one['oid']}"}
            objects.append(one if one["oid"] in self.server.large else one | {"actions": put})
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def _put_large(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Answer(400, {"error": "the content is not what its digest says"})
        self.server.large[oid] = self.content
        raise Answer(200)

    def _verify(self, oid: str) -> None:
        size = json.loads(self.content)["size"]
        raise Answer(200 if len(self.server.large.get(oid, b"")) == size else 404, {})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        found = self._repository(kind, name, writes=True)
        parent, before = self._files(found, revision)
        files, header = dict(before), {}
        for line in self.content.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise Answer(400, {"error": f"{value['path']} points to a large file that was not uploaded"})
                files[value["path"]] = self.server.large[value["oid"]]
            elif files.pop(value["path"], None) is None:
                raise Answer(404, {"error": "A file with this name doesn't exist"}, X_Error_Code="EntryNotFound")
        if header.get("parentCommit") not in (None, parent):
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        made = found.commit(revision, files, header["summary"])
        raise Answer(200, {"success": True, "commitOid": made, "commitUrl": f"{self.server.url}/{name}/commit/{made}"})

    def _branch(self, kind: str, name: str, branch: str) -> None:
        found = self._repository(kind, name, writes=True)
        if branch in found.branches:
            raise Answer(409, {"error": "Reference already exists"})
        found.branches[branch] = self._files(found, (json.loads(self.content or b"{}")).get("startingPoint", "main"))[0]
        raise Answer(200, {})

    def _info(self, kind: str, name: str, revision: str = "main") -> None:
        found = self._repository(kind, name)
        commit, files = self._files(found, revision or "main")
        told = {"_id": name, "id": name, "modelId": name, "sha": commit, "private": found.private, "tags": []}
        told |= {"siblings": [{"rfilename": path} for path in files], "lastModified": "2026-01-01T00:00:00.000Z"}
        raise Answer(200, told | {"author": name.split("/")[0], "downloads": 0, "likes": 0, "gated": False})

    def _refs(self, kind: str, name: str) -> None:
        found = self._repository(kind, name)
        heads = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in found.branches.items()]
        raise Answer(200, {"branches": heads, "converts": [], "tags": []})

    def _history(self, kind: str, name: str, revision: str) -> None:
        found = self._repository(kind, name)
        last, _ = self._files(found, revision)
        ids = list(found.commits)[: list(found.commits).index(last) + 1]
        told = {"message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
        titles = dict(zip(found.commits, found.messages, strict=True))
        raise Answer(200, [{"id": one, "title": titles[one]} | told for one in reversed(ids)])

    def _tree(self, kind: str, name: str, revision: str, inside: str) -> None:
        _, files = self._files(self._repository(kind, name), revision)
        within = {p: c for p, c in files.items() if not inside or p == inside or p.startswith(f"{inside}/")}
        if inside and not within:
            raise Answer(404, {"error": f"{inside} does not exist"}, X_Error_Code="EntryNotFound")
        deep = len(inside.split("/")) + 1 if inside else 1
        folders = {"/".join(p.split("/")[:n]) for p in within for n in range(deep, len(p.split("/")))}
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            folders = {f for f in folders if len(f.split("/")) == deep}
            within = {p: c for p, c in within.items() if len(p.split("/")) == deep}
        told = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in sorted(folders)]
        raise Answer(200, told + [entry(p, c) for p, c in sorted(within.items())])

    def _paths(self, kind: str, name: str, revision: str) -> None:
        _, files = self._files(self._repository(kind, name), revision)
        try:
            asked = json.loads(self.content)["paths"]
        except ValueError:  # the client sends a form
            asked = parse_qs(self.content.decode()).get("paths", [])
        told = [entry(p, files[p]) for p in asked if p in files]
        dirs = [p for p in asked if p not in files and any(f.startswith(f"{p.rstrip('/')}/") for f in files)]
        raise Answer(200, told + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in dirs])

    def _resolve(self, name: str, revision: str, path: str, kind: str = "") -> None:
        commit, files = self._files(self._repository(KINDS.get(kind, "model"), name), revision)
        told = {"X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if path not in files:
            raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **told)
        content, size = files[path], str(len(files[path]))
        if path.endswith(LARGE):  # is kept elsewhere: the client is sent on
            oid = hashlib.sha256(content).hexdigest()
            self.server.large[oid] = content
            told |= {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": size}
            raise Answer(302, b"", Location=f"{self.server.store}/large/{oid}", **told)
        raise self._part(content, ETag=f'"{blob(content)}"', **told)

    def _get_large(self, oid: str) -> None:
        if oid not in self.server.large:
            raise Answer(404)
        raise self._part(self.server.large[oid], ETag=f'"{oid}"')

    def _part(self, content: bytes, **headers: str) -> Answer:
        """The content, or the part of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers["Content_Type"] = "application/octet-stream"
        if self.command == "HEAD":
            return Answer(200, b"", Content_Length=str(len(content)), **headers)
        if not asked:
            return Answer(200, content, **headers)
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        where = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, content[first : last + 1], Content_Range=where, **headers)


PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
KINDS = {prefix: kind for kind, prefix in PREFIX.items()}
_API = r"/api/(?P<kind>model|dataset)s/(?P<name>[\w.-]+/[\w.-]+)"
_GIT = r"/(?P<kind>datasets/|spaces/)?(?P<name>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), r"/api/whoami-v2", Routes._whoami),
    (("POST",), r"/api/repos/create", Routes._create),
    (("POST",), r"/api/validate-yaml", Routes._yaml),
    (("POST",), rf"{_API}/preupload/(?P<revision>[^/]+)", Routes._preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>[^/]+)", Routes._commit),
    (("POST",), rf"{_API}/branch/(?P<branch>[^/]+)", Routes._branch),
    (("POST",), rf"{_API}/paths-info/(?P<revision>[^/]+)", Routes._paths),
    (("POST",), rf"{_GIT}\.git/info/lfs/objects/batch", Routes._batch),
    (("GET",), rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<inside>.+))?", Routes._tree),
    (("GET",), rf"{_API}/commits/(?P<revision>[^/]+)", Routes._history),
    (("GET",), rf"{_API}/refs", Routes._refs),
    (("GET",), rf"{_API}(?:/revision/(?P<revision>[^/]+))?", Routes._info),
    (("PUT",), r"/large/(?P<oid>[0-9a-f]{64})", Routes._put_large),
    (("GET", "HEAD"), r"/large/(?P<oid>[0-9a-f]{64})", Routes._get_large),
    (("POST",), r"/verify/(?P<oid>[0-9a-f]{64})", Routes._verify),
    (("GET", "HEAD"), rf"{_GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Routes._resolve),
]
