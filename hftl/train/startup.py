"""How long a run takes to start, stage by stage, and imports without the cost that can be spared. Knows no run."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator


class Clock:
    """Seconds of each stage of a start, in order.

    The first stage counts from the start of the process; where torch was loaded before, so that the process has done
    other things, from now.

    Attributes:
        seconds: stage -> wall time. They add up to the time from the start to the last mark.
    """

    def __init__(self) -> None:
        # The processor time so far, because the system's note of when a process began is off by up to a second.
        before = 0.0 if "torch" in sys.modules else time.process_time()
        self._last = time.perf_counter() - before
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """End a stage here. One that ends twice gets both times."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import torch and all that comes with it without garbage collection, which takes a sixth of the time.

    The million objects that imports make are all kept, and searched for garbage again and again. They are left out of
    later collections, too: accelerate asks for one before the first step. `gc.unfreeze` takes that back.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()  # what a program made before must not be kept with the rest
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
