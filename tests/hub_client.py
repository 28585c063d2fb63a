"""A process that talks to the tests' Hub as a person's would, with the real clients: HF_ENDPOINT is read at import.

Run as a script it carries out what it reads from stdin, a JSON line each, and answers on stdout. `Client` is the other
end of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_store import WRITER


@dataclass
class Said:
    """What one request has come to: an exit code, what was printed, and the value of `result`."""

    code: int
    out: str
    err: str
    result: Any = None


class Client:
    """A started process; its caches are in a folder of their own.

    Args:
        url: of the server.
        home: for HF_HOME and everything else that is written.
    """

    def __init__(self, url: str, home: Path) -> None:
        own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
        own |= {"HFTL_CACHE": str(home / "hftl"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        own |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | own
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def python(self, code: str, token: str | None = WRITER, **given: Any) -> Said:
        """Run code in which `given` are names; it may set `result`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"code": code, "given": given, "token": token}) + "\n")
        self.process.stdin.flush()
        return Said(**json.loads(self.process.stdout.readline()))

    def hftl(self, *words: str | Path, token: str | None = WRITER) -> Said:
        """The `hftl` command."""
        return self.python("from hftl.cli.main import hftl\nhftl(words)", token, words=list(map(str, words)))

    def recipe(self, script: Path, *words: str | Path, token: str | None = WRITER) -> Said:
        """A recipe's file with flags."""
        code = "import runpy, sys\nsys.argv = words\nrunpy.run_path(words[0], run_name='__main__')"
        return self.python(code, token, words=[str(script), *map(str, words)])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def carry_out(asked: dict[str, Any]) -> dict[str, Any]:
    """One request, with what it prints."""
    scope, out, err, code = {**asked["given"], "result": None}, io.StringIO(), io.StringIO(), 0
    os.environ.pop("HF_TOKEN", None)
    if asked["token"]:
        os.environ["HF_TOKEN"] = asked["token"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(asked["code"], scope)
        except SystemExit as left:
            code = int(left.code or 0)
        except BaseException:
            code = 1
            traceback.print_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "result": scope["result"]}


if __name__ == "__main__":
    answers = sys.stdout
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), file=answers, flush=True)
