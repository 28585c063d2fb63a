"""`accelerate launch` that ends as its processes end: their exit code, and no traceback of the launcher's own.

    python -m hftl.cli.launch --config_file accelerate_configs/ddp.yaml recipes/text_cls.py

Takes what `accelerate launch` takes. Knows the launchers of accelerate and torch; nothing of a recipe.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from accelerate.commands import launch as accelerate
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

GRACE = 300
"""Seconds that processes have, once told to stop, for writing a checkpoint; torchrun's own 30 cut a large one off."""


def launch(words: Sequence[str]) -> None:
    """Start the processes that `words`, a command line of `accelerate launch`, ask for, and wait for them.

    Raises:
        SystemExit: with the code of the process that failed first; 128 and the number of the signal that ended it;
            75 (resume me) where this launcher was told to stop.
    """
    accelerate.simple_launcher = _become
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    args = accelerate.launch_command_parser().parse_args(list(words))
    args.shutdown_timeout = GRACE
    try:
        accelerate.launch_command(args)
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode < 0:
            name = first.signal_name()
            told = f"Process {rank} was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
            print(f"{told}; the others were stopped. Add --resume to go on.", file=sys.stderr, flush=True)
        raise SystemExit(first.exitcode if first.exitcode >= 0 else 128 - first.exitcode) from None
    except ImportError as missing:
        print(f"error: {missing}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except SignalException as stop:
        raise SystemExit(130 if stop.sigval == signal.SIGINT else os.EX_TEMPFAIL) from None


def _become(args: Any) -> NoReturn:
    """Let a lone process take this one's place, so that signals and exit codes are its own."""
    command, environment = prepare_simple_launcher_cmd_env(args)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    launch(sys.argv[1:])
