"""The processes of a run and what stands between them: shards, buffers, and one that is gone. Knows no model by name.

A process that ends takes the others of its machine along: its launcher sees to that. A machine that loses its power,
or a process that stands still, says nothing to anyone; the others would wait for it until `--ddp_timeout` (30 minutes).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import torch.distributed as dist
from accelerate.state import DistributedType, PartialState

LOST_AFTER = "HFTL_LOST_AFTER"
"""Seconds without a sign of life after which a process counts as lost; 0 for never."""

MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where the processes met, as every launcher tells torch."""


def shard_on_cpu() -> None:
    """Make accelerate's FSDP mean FSDP without a GPU, too; must come before the Trainer is made.

    accelerate reads an FSDP config for every kind of device but the CPU: there its processes would each hold the whole
    model, under DDP, and nothing would be said (`AcceleratorState.__init__`, 1.15). It has no setting for that.
    """
    asked, state = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true", PartialState()
    if asked and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # of its kinds, one that it shards


def shard_by_block(plugin: Any, classes: Collection[str]) -> None:
    """Let FSDP gather the blocks one at a time, unless the config names other classes.

    transformers' own names (`_no_split_modules`) hold BertEmbeddings beside BertLayer, and accelerate 1.15 shards the
    table of words in it once more, which torch refuses; timm's networks have the whole of themselves for a block.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(classes)


def share_buffers(model: Any) -> None:
    """Give every process the first one's buffers, which are those that are saved.

    BatchNorm's statistics follow the rows that a process has seen: DDP evens them out at the next step alone, FSDP
    never, and an evaluation would measure as many models as there are processes.
    """
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, 0)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Around what processes do together: where one of them is lost, end this one with exit code 75 and a sentence."""
    patience = float(os.environ.get(LOST_AFTER) or 30)
    met = dist.is_initialized() and dist.get_world_size() > 1 and all(name in os.environ for name in MEETING)
    if not met or patience <= 0 or _Watch.on:
        yield
        return
    watch = _Watch(patience)
    watch.start()
    try:
        yield
        watch.leave()
    finally:
        watch.stop()


class _Watch(threading.Thread):
    """Signs of life: each process writes its own and reads its neighbour's, and all read who was found to be lost."""

    on = False
    turn = 0

    def __init__(self, patience: float) -> None:
        super().__init__(daemon=True)
        self.patience, self.ended = patience, threading.Event()
        self.rank, self.of = dist.get_rank(), dist.get_world_size()
        self.neighbour = (self.rank + 1) % self.of
        # The store that the processes met at, by a connection of our own: theirs is held by whoever waits for another.
        address, port = (os.environ[name] for name in MEETING)
        self.store: Any = dist.TCPStore(address, int(port), is_master=False, wait_for_workers=False)
        _Watch.on, _Watch.turn = True, _Watch.turn + 1
        self.space = f"hftl/{_Watch.turn}"
        self.store.set(f"{self.space}/{self.rank}", "0")

    def run(self) -> None:
        last, heard, beats = b"", time.monotonic(), 0
        while not self.ended.wait(min(5, self.patience / 5)):
            beats += 1
            try:
                self.store.set(f"{self.space}/{self.rank}", str(beats))
                found = self._read(self.neighbour)
                lost = self._read("lost")
            except RuntimeError:  # dist.DistError, too: the store went with the first machine
                found, lost = last, b"0" if time.monotonic() - heard > self.patience else b""
            if found != last or found in (b"", b"left"):  # not yet here: it may be reading the data still
                last, heard = found, time.monotonic()
            if not lost and time.monotonic() - heard > self.patience:
                lost = str(self.neighbour).encode()
                with contextlib.suppress(RuntimeError):
                    self.store.set(f"{self.space}/lost", lost)
            if lost and not self.ended.is_set():
                self._end(lost.decode())

    def leave(self) -> None:
        """Say that silence means no harm from here on."""
        self.ended.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{self.space}/{self.rank}", "left")

    def stop(self) -> None:
        self.ended.set()
        _Watch.on = False

    def _read(self, what: Any) -> bytes:
        key = f"{self.space}/{what}"
        return self.store.get(key) if self.store.check([key]) else b""

    def _end(self, lost: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0" or self.neighbour == int(lost):
            told = f"Process {lost} gave no sign of life for {self.patience:.0f} s, so the run ends here."
            print(f"\n{told} Add --resume to go on from the last checkpoint.", file=sys.stderr, flush=True)
        os._exit(os.EX_TEMPFAIL)  # the other threads may wait for the lost one for ever
