"""A server that speaks the Hub's API to the real `huggingface_hub` client, in memory: connections, faults and a log.

What it answers is in `hub_routes`, what it holds in `hub_store`.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import Routes
from hub_store import OTHER, READER, WRITER, Answer, Fault, Repository


class HubServer(ThreadingHTTPServer):
    """Serves on a free port of this machine from `start` to `stop`.

    Attributes:
        users: token -> (user, whether it may write).
        log: method, path and status of each request, in order.
        faults: what goes wrong next.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.users = {WRITER: ("ada", True), READER: ("ada", False), OTHER: ("bob", True)}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.store = f"http://localhost:{self.server_address[1]}"  # another host: the client shows it no token

    def start(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def make(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repository:
        """A repository that holds these files from the start."""
        made = self.repositories[kind, name] = Repository(name, kind, private)
        made.commit("main", files, "initial commit")
        return made

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The content of a repository."""
        found = self.repositories[kind, name]
        return found.commits[found.branches[revision]]

    def fault(self, method: str, path: str) -> Fault | None:
        """The next fault that fits a request, used up once."""
        with self.lock:
            for one in self.faults:
                if one.times > 0 and one.method in (method, "*") and re.search(one.path, path):
                    one.times -= 1
                    return one
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Request(BaseHTTPRequestHandler, Routes):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        """`HubServer.log` has it."""

    def _any(self) -> None:
        address = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        path, fault = unquote(address.path), self.server.fault(self.command, unquote(address.path))
        self.content = self._read()
        if fault and fault.cut == "before":
            return self._cut(path)
        if fault and fault.slow:
            time.sleep(fault.slow)
        try:
            if fault and fault.status:
                raise Answer(fault.status, {"error": f"made to fail with {fault.status}"}, **fault.headers)
            self.route(address.path)
            raise Answer(404, {"error": "no such route"})
        except Answer as answer:
            if fault and fault.cut == "after":
                return self._cut(path)
            self._give(path, answer, fault is not None and fault.cut == "middle")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _any  # noqa: N815, the names that http.server calls

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _cut(self, path: str) -> None:
        self.server.log.append((self.command, path, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _give(self, path: str, answer: Answer, cut: bool) -> None:
        self.server.log.append((self.command, path, answer.status))
        self.send_response(answer.status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))} | answer.headers
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
