"""A run that is asked from outside to stop. Knows signals and processes; no trainer, no file and no torch.

Ctrl-C, SIGTERM and SIGUSR1 stop a command at once. While a run trains they are noted, so that it can end its step and
write a checkpoint first; a second one stops it at once there, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
NAMES = ("", *SIGNALS.values())
ECHO = 2.0
"""Seconds in which a launcher passes on what has reached its processes already."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; the argument is its name."""


class Left(NamedTuple):
    """What a command that was cut short has left: how to go on, and whether `--resume` does."""

    sentence: str = ""
    resumable: bool = False


class Request:
    """What the signals of this process have asked for, and whether it may wait."""

    def __init__(self) -> None:
        self.by = ""
        self._patient = False
        self._when = 0.0
        self._process = os.getpid()

    def heard(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of all three signals."""
        if os.getpid() != self._process:
            self._heard_by_child(number)
            return
        name, now = SIGNALS[signal.Signals(number)], time.monotonic()
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if self.by and launched and now - self._when < ECHO:
            return
        again, self.by, self._when = bool(self.by), name, now
        if again or not self._patient:
            raise Stopped(name)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # by the number: what is buffered may be in the middle of a write
            os.write(
                2, f"\n{name}: a checkpoint is written at the end of this step. Once more stops at once.\n".encode()
            )

    def _heard_by_child(self, number: int) -> None:
        """A worker that reads rows goes on until its run lets it go; any other child dies as children do."""
        readers = sys.modules.get("torch.utils.data")
        if readers is not None and readers.get_worker_info() is not None and not self.by:
            self.by = SIGNALS[signal.Signals(number)] if number == signal.SIGTERM else ""
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over for a while; only the main thread can."""
        before: dict[Any, Any] = {}
        self.by, self._process = "", os.getpid()
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self.heard) for number in SIGNALS}
        try:
            yield
        finally:
            self.by = ""
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def patient(self, yes: bool = True) -> Iterator[None]:
        """Let a signal wait for the end of the step, or, inside, no longer.

        Raises:
            Stopped: at the end, where one came that nobody acted on.
        """
        before, self._patient = self._patient, yes
        try:
            yield
        finally:
            self._patient = before
        if self.by and not before:
            raise Stopped(self.by)


REQUEST = Request()
"""Signals are a process's, so there is one."""
