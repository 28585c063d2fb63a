"""How a run ends when something goes wrong: one sentence and an exit code, or a traceback where the fault is ours.

Exit codes: 2 bad input or a machine that gave out; 130 Ctrl-C; 75 (EX_TEMPFAIL) SIGTERM or SIGUSR1 where `--resume`
goes on from a checkpoint, 143 or 138 where there is none yet; 1 a defect of hftl (with its traceback).
`accelerate launch` answers each with 1 and, unless it is given `-q`, a traceback of its own below the sentence;
`hftl.cli.launch` passes them on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hftl.errors import UserError, explain
from hftl.settings.visible import visible
from hftl.train.resume.stopping import REQUEST, SIGNALS, Left

BUG = "This is a defect of hftl, not of your input. Please report it with this traceback and `hftl --version`."
MEMORY = "halve --per_device_train_batch_size and double --gradient_accumulation_steps, or lower --max_length"
# What gloo, NCCL and torch's store say where the process at the other end has gone
_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "failed to recv")


@contextmanager
def say_errors(left: Callable[[], Left] = Left, memory: str = MEMORY) -> Iterator[None]:
    """Around a command: turns what went wrong into one sentence on stderr and an exit code.

    In a distributed run the first process of each machine speaks, and the launcher ends the others. What concerns one
    process alone (memory, disk, a file that it alone cannot read) is said by the process that it befell.

    Args:
        left: asked once the command was cut short.
        memory: what to lower where memory ran out.
    """
    try:
        with REQUEST.listening():
            yield
    except KeyboardInterrupt as stop:
        by, found = str(stop) or "Ctrl-C", left()
        number = next(number for number, name in SIGNALS.items() if name == by)
        code = os.EX_TEMPFAIL if found.resumable and by != "Ctrl-C" else 128 + number
        _leave(f"Stopped by {by}. {found.sentence}", code)
    except UserError as error:
        _leave(f"error: {error}", 2)
    except Exception as error:
        if type(error).__name__.startswith("Dist") or any(sign in str(error) for sign in _GONE):
            time.sleep(5)  # so that the launcher sees the one that ended first, whose code is the run's, and ends this
            _leave(f"Another process of this run has ended, and this one with it. {left().sentence}", 2)
        own = explain("machine", error, memory=memory)
        if own and (found := left()).resumable:
            own = f"{own} {found.sentence}"
        if own or (foreign := explain("library", error)):
            _leave(f"error: {own or foreign}", 2, everyone=bool(own))
        if BUG not in getattr(error, "__notes__", ()):
            error.add_note(BUG)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            sys.excepthook(type(error), error, error.__traceback__)
            _exit_from_others(1)
        raise


def _leave(sentence: str, code: int, everyone: bool = False) -> None:
    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))
    speaks = rank in ("0", "-1", "")
    if not speaks and not everyone:
        time.sleep(5)  # the launcher ends everyone once one has left; who is still here met something of its own
    bar = "\n" if "tqdm" in sys.modules and sys.stderr.isatty() else ""  # a progress bar leaves its line open
    who = "" if speaks else f"process {rank}: "
    print(f"{bar}{who}{visible(sentence).strip()}", file=sys.stderr, flush=True)
    _exit_from_others(code)
    raise SystemExit(code)


def _exit_from_others(code: int) -> None:
    """End at once where other processes wait for this one: torch takes half a minute to take down what joins them."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
