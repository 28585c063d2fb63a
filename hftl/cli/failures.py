"""How a run ends when something goes wrong: one sentence and an exit code, or a traceback where the fault is ours.

Knows the failures of a person, a machine and the libraries beneath by name, and imports none of them.

Exit codes: 2 bad input or a machine that gave out; 130 Ctrl-C; 75 (EX_TEMPFAIL) SIGTERM or SIGUSR1 where `--resume`
goes on from a checkpoint, 143 or 138 where there is none yet; 1 a defect of hftl (with its traceback).
`accelerate launch` answers each with 1 and, unless it is given `-q`, a traceback of its own below the sentence;
`hftl.cli.launch` passes them on.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from hftl.errors import UserError
from hftl.settings.visible import visible
from hftl.train.resume.stopping import REQUEST, SIGNALS, Left

BUG = "This is a defect of hftl, not of your input. Please report it with this traceback and `hftl --version`."
MEMORY = "halve --per_device_train_batch_size and double --gradient_accumulation_steps, or lower --max_length"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What safetensors (the first three) and torch.save say of a full disk
_FULL_TEXT = ("os error 27", "os error 28", "os error 122", "PytorchStreamWriter failed writing", "unexpected pos")
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
# What gloo, NCCL and torch's store say where the process at the other end has gone
_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "failed to recv")
_NOT_INSTALLED = ("to be installed", "need to install", "install it with", "distribution was not found")
_CONNECTIONS = ("httpx", "httpx2", "requests", "urllib3", "huggingface_hub")
_HUB = {
    "GatedRepoError": "accept its terms on its page, and log in with `hf auth login`",
    "RepositoryNotFoundError": "check the spelling, or log in with `hf auth login` where it is private",
    "RevisionNotFoundError": "check --revision",
    "OfflineModeIsEnabled": "name a local folder or file, or unset HF_HUB_OFFLINE",
    "LocalEntryNotFoundError": "check the network, or name a local folder",
    "EntryNotFoundError": "check that --model names a model of the right kind",
    "HFValidationError": "name a local folder that exists, or owner/name on the Hub",
    "DatasetNotFoundError": "check the spelling of --data, or log in with `hf auth login` where it is private",
    "HfHubHTTPError": "try again later, or name a local folder",
    "ConnectionError": "check the network, or name a local folder",
    "TransportError": "check the network, or name a local folder",
}


class say_errors:  # noqa: N801, reads as `with say_errors():`
    """Around a command: turns what went wrong into one sentence on stderr and an exit code.

    In a distributed run the first process of each machine speaks, and the launcher ends the others. What concerns one
    process alone (memory, disk, a file that it alone cannot read) is said by the process that it befell.

    Args:
        left: asked once the command was cut short.
        memory: what to lower where memory ran out.
    """

    def __init__(self, left: Callable[[], Left] = Left, memory: str = MEMORY) -> None:
        self.left = left
        self.memory = memory

    def __enter__(self) -> say_errors:
        self.listening = REQUEST.listening()
        self.listening.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.listening.__exit__(None, None, None)
        if error is None or isinstance(error, SystemExit):
            return
        if isinstance(error, KeyboardInterrupt):
            by, left = str(error) or "Ctrl-C", self.left()
            number = next(number for number, name in SIGNALS.items() if name == by)
            code = os.EX_TEMPFAIL if left.resumable and by != "Ctrl-C" else 128 + number
            _leave(f"Stopped by {by}. {left.sentence}", code)
        if isinstance(error, UserError):
            _leave(f"error: {error}", 2)
        if type(error).__name__.startswith("Dist") or any(sign in str(error) for sign in _GONE):
            time.sleep(5)  # so that the launcher sees the one that ended first, whose code is the run's, and ends this
            _leave(f"Another process of this run has ended, and this one with it. {self.left().sentence}", 2)
        own = _machine(error, self.memory)
        if own and (left := self.left()).resumable:
            own = f"{own} {left.sentence}"
        if own or (foreign := _library(error)):
            _leave(f"error: {own or foreign}", 2, everyone=bool(own))
        if BUG not in getattr(error, "__notes__", ()):
            error.add_note(BUG)
        if isinstance(error, Exception) and os.environ.get("WORLD_SIZE", "1") != "1":
            sys.excepthook(type(error), error, trace)
            _exit_from_others(1)


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


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain = [error]
    while chain[-1].__cause__ is not None and len(chain) < 20:
        chain.append(chain[-1].__cause__)
    return chain


def _machine(error: BaseException, memory: str) -> str:
    """The sentence for a machine that gave out: disk, permissions, memory. Empty for anything else."""
    for cause in _causes(error):
        text = str(cause)
        path = f" at {cause.filename}" if isinstance(cause, OSError) and cause.filename else ""
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL or any(sign in text for sign in _FULL_TEXT):
            cure = "free some, or pass --output_dir (of hftl predict: --output) on another disk"
            return f"No space is left on the disk{path}: {cure}."
        if number in _REFUSED and path:
            return (
                f"The system refused{path[3:]} ({os.strerror(number or 0)}): pass another path, or change its rights."
            )
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return f"Memory ran out: {memory}."
        if type(cause).__name__ == "OutOfMemoryError" or (
            isinstance(cause, RuntimeError) and any(sign in text for sign in _NO_MEMORY)
        ):
            return f"The device's memory ran out: {memory}."
    return ""


def _library(error: BaseException) -> str:
    """The sentence for what transformers, accelerate or the Hub refused. Empty for anything else."""
    for cause in _causes(error):
        for kind in type(cause).__mro__:
            if kind.__name__ in _HUB and (kind is not ConnectionError or _is_network(type(cause))):
                return f"{_brief(error)}: {_HUB[kind.__name__]}."
        if isinstance(cause, ValueError) and "trust_remote_code" in str(cause):
            return f"{_brief(cause)}: read that code, then pass --trust_remote_code."
        if type(cause).__name__ == "SafetensorError":
            return f"A .safetensors file is damaged ({_brief(cause)}): fetch it again."
        if isinstance(cause, ImportError | RuntimeError) and any(sign in str(cause) for sign in _NOT_INSTALLED):
            return f"{_brief(cause)}: install it, or leave out what asks for it."
    if isinstance(error, ValueError | TypeError) and _raised_in(error, "optimizer"):
        cure = "check --optim, --optim_args, --lr_scheduler_type and --lr_scheduler_kwargs"
        return f"The optimizer or schedule cannot be made ({_brief(error)}): {cure}."
    if isinstance(error, ValueError | ImportError) and _raised_in(error, "TrainingArguments"):
        return f"These settings do not work together: {_brief(error)}. Change one of them."
    if isinstance(error, OSError | ValueError) and _raised_in(error, "from_pretrained") and not _number(error):
        return f"{_brief(error)}: check --model."
    return ""


def _raised_in(error: BaseException, what: str) -> bool:
    """Whether the error came out of transformers' reading of settings, or of its reading of a checkpoint."""
    places = {
        "TrainingArguments": (
            "transformers/training_args.py",
            "transformers/trainer.py:__init__",
            "create_accelerator_and_postprocess",
        ),
        "optimizer": ("transformers/trainer_optimizer.py", "transformers/optimization.py"),
        "from_pretrained": ("transformers/models/auto/", "transformers/configuration_utils.py"),
    }[what]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        spot = f"{code.co_filename.replace(os.sep, '/')}:{code.co_name}"
        if any(place in spot for place in places):
            return True
        trace = trace.tb_next
    return False


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _is_network(kind: type) -> bool:
    """Python's own ConnectionError stands above broken pipes, too: take it bare, or from a library that speaks HTTP."""
    return kind is ConnectionError or kind.__module__.partition(".")[0] in _CONNECTIONS


def _brief(error: BaseException) -> str:
    """A library's message on one line: all of it where it is short, else its first line, 240 characters at most."""
    words = " ".join(str(error).split()) or type(error).__name__
    if len(words) > 240:
        words = " ".join(str(error).strip().splitlines()[0].split())
    return (words if len(words) <= 240 else words[:237] + "...").rstrip(".: ")
