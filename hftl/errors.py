"""Say what went wrong in one sentence: the exception that a mistake raises, and a table of what libraries raise.

Classes are known by their names, so that nothing heavy is imported to tell one from another.
"""

from __future__ import annotations

import difflib
import errno
import os
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FAILURES: tuple[type[Exception], ...] = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError)
FAILURES += (RuntimeError, TypeError, ValueError)
"""What a model raises on a batch, and PEFT's methods on a model, that they do not fit."""


class UserError(Exception):
    """Bad input. Its text is one sentence: what was expected, what came, what to type."""

    def __init__(self, sentence: object = "") -> None:
        told, _, own = str(sentence).rpartition("UserError: ")  # torch puts a loader worker's whole traceback before it
        super().__init__(own.rstrip() if told.startswith("Caught UserError in ") else sentence)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(word.lower(), folded := {name.lower(): name for name in known}, n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


class Cause(NamedTuple):
    """A row of the table: how an error is known, and what is said of it."""

    sentence: str
    """Takes the fields of `explain`; one that needs {path} is for errors that name a file. Empty: nothing is said."""
    kinds: str = ""
    """Names of its class or one above, of its errno (ENOSPC), or its HTTP status (404, 4xx): any of them,"""
    text: tuple[str, ...] = ()
    """or something that its message holds."""
    within: tuple[str, ...] = ()
    when: Callable[[Path], bool] | None = None
    """And it was raised under one of `within`, file:function, and `when` holds of what was to be read."""

    def fits(self, error: BaseException, name: str) -> bool:
        known = not kinds_of(error).isdisjoint(self.kinds.split()) or any(sign in str(error) for sign in self.text)
        return (
            (known or (not self.kinds and not self.text))
            and ("{path}" not in self.sentence or bool(getattr(error, "filename", None)))
            and (not self.within or any(place in spot for spot in _spots(error) for place in self.within))
            and (self.when is None or self.when(Path(name)))
        )


LOG_IN = "log in with `hf auth login`"
NETWORK = "TransportError ConnectionError TimeoutError"
UNREAD = "OSError ValueError KeyError ImportError UnpicklingError SafetensorError StrictDataclassError"
"""What transformers raises on a checkpoint that it cannot read."""
NO_WEIGHTS = (
    "{name} holds no readable model.safetensors. Convert its weights to safetensors; where it has a pickle file from a "
    "source you trust, pass --allow_pickle."
)

CAUSES = {
    "machine": (
        Cause(
            "No space is left on the disk{at}: free some, or pass --output_dir (of hftl predict: --output) on another "
            "disk.",
            "ENOSPC EDQUOT EFBIG",
            # safetensors says the first three, torch.save the others
            ("os error 27", "os error 28", "os error 122", "PytorchStreamWriter failed writing", "unexpected pos"),
        ),
        Cause(
            "The system refused {path} ({why}): pass another path, or change its rights.",
            "EACCES EPERM EROFS ENOTDIR EEXIST EISDIR ENAMETOOLONG",
        ),
        Cause("Memory ran out: {memory}.", "MemoryError ENOMEM"),
        Cause(
            "The device's memory ran out: {memory}.",
            "OutOfMemoryError",
            ("out of memory", "can't allocate memory", "not enough memory"),
        ),
    ),
    "library": (
        Cause(f"{{outer}}: accept its terms on its page, and {LOG_IN}.", "GatedRepoError"),
        Cause(f"{{outer}}: check the spelling, or {LOG_IN} where it is private.", "RepositoryNotFoundError"),
        Cause("{outer}: check --revision.", "RevisionNotFoundError"),
        Cause("{outer}: name a local folder or file, or unset HF_HUB_OFFLINE.", "OfflineModeIsEnabled"),
        Cause("{outer}: check the network, or name a local folder.", "LocalEntryNotFoundError"),
        Cause("{outer}: check that --model names a model of the right kind.", "EntryNotFoundError"),
        Cause("{outer}: name a local folder that exists, or owner/name on the Hub.", "HFValidationError"),
        Cause(f"{{outer}}: check the spelling of --data, or {LOG_IN} where it is private.", "DatasetNotFoundError"),
        Cause("{outer}: try again later, or name a local folder.", "HfHubHTTPError"),
        Cause("{brief}: read that code, then pass --trust_remote_code.", text=("trust_remote_code",)),
        Cause("A .safetensors file is damaged ({brief}): fetch it again.", "SafetensorError"),
        Cause(
            "{brief}: install it, or leave out what asks for it.",
            text=("to be installed", "need to install", "install it with", "distribution was not found"),
        ),
        Cause("", "EPIPE ECONNRESET ECONNABORTED EOFError"),  # a worker's or a pipe's, no network's
        Cause("{outer}: check the network, or name a local folder.", "ConnectionError TransportError"),
        Cause(
            "The optimizer or schedule cannot be made ({brief}): check --optim, --optim_args, --lr_scheduler_type and "
            "--lr_scheduler_kwargs.",
            "ValueError TypeError",
            within=("transformers/trainer_optimizer.py", "transformers/optimization.py"),
        ),
        Cause(
            "These settings do not work together: {brief}. Change one of them.",
            "ValueError ImportError",
            within=("transformers/training_args.py", "transformers/trainer.py:__init__", "create_accelerator_and_post"),
        ),
        Cause(
            "{brief}: check --model.",
            "OSError ValueError",
            within=("transformers/models/auto/", "transformers/configuration_utils.py"),
        ),
    ),
    "load": (
        Cause("", "EACCES EPERM EROFS EIO EMFILE ENFILE ENOMEM ENOSPC EDQUOT ENOTDIR EISDIR ENAMETOOLONG ELOOP"),
        Cause(
            "{name} comes with its own code. Read it, then pass --trust_remote_code to run it.",
            text=("trust_remote_code",),
        ),
        Cause(
            "{name} has no head for this task: transformers' {auto} does not know its architecture. Pass another "
            "--model, or use the recipe that reads what this one reads.",
            text=("Unrecognized configuration class",),
        ),
        Cause(
            "--model {name} is a file. Pass the folder that holds its config.json and weights.",
            UNREAD,
            when=Path.is_file,
        ),
        Cause(
            "{name} holds an adapter. Pass --model with its base model, or merge the two first.",
            UNREAD,
            when=lambda path: (path / "adapter_config.json").is_file(),
        ),
        Cause(
            "{name} holds no config.json. Pass --model with a folder that save_pretrained has written.",
            UNREAD,
            when=lambda path: path.is_dir() and not (path / "config.json").is_file(),
        ),
        Cause(
            "{name} holds a pickle file with more than tensors in it, which is not opened even with --allow_pickle. "
            "Convert its weights to safetensors.",
            "UnpicklingError",
        ),
        Cause(NO_WEIGHTS, text=("not appear to have a file named model.safetensors",)),
        Cause(NO_WEIGHTS, text=("safetensors",), when=Path.is_dir),
        Cause(
            "{name} does not load as {what}: {short}. Fetch or save it again, or pass another --model.",
            UNREAD,
            when=Path.exists,
        ),
        Cause(
            "{name} is neither a local folder nor in the Hugging Face cache, and the Hub cannot be reached. Check the "
            "name and the network, or pass --model with a local folder.",
            text=("offline", "Offline", "OFFLINE", "couldn't connect", "cached files"),
        ),
        Cause("{name} is neither a local folder nor a model that the Hub gives out. Check --model for typos.", UNREAD),
        Cause("{name} names a pickle file to load, which is not opened. Pass another --model.", text=("weights_only",)),
    ),
    "resume": (
        Cause("", "OutOfMemoryError UserError"),
        Cause(
            "Under FSDP a run whose optimizer remembers nothing, such as sgd, cannot be resumed. Pass --overwrite to "
            "start again, with another --optim.",
            text=("device to be set",),
        ),
        Cause(
            "{name} holds a file that is damaged, or is a pickle with more than tensors in it, which is not opened. "
            "Delete that folder to go on from the checkpoint before, or pass --overwrite to start again.",
            "UnpicklingError",
        ),
        Cause(
            "The run cannot go on from {name}: {short}. Pass the --model, --data and --strategy that it was started "
            "with, or --overwrite to start again.",
            "RuntimeError ValueError KeyError OSError SafetensorError",
        ),
    ),
    "read": (
        Cause(
            "{name} on the Hub has no revision {revision!r}. Check the branch, tag or commit.", "RevisionNotFoundError"
        ),
        Cause(f"{{name}} on the Hub is gated. Accept its terms on its page, and {LOG_IN}.", "GatedRepoError"),
        Cause(
            f"There is no {{name}} on the Hub that can be read: check the spelling, or {LOG_IN} where it is private.",
            "401 RepositoryNotFoundError",
        ),
        Cause(f"The Hub does not let this account read {{name}}. Ask its owner, or {LOG_IN} as another user.", "403"),
        Cause(
            "{name} is no folder, and HF_HUB_OFFLINE keeps the Hub from being asked. Check the name, or unset it.",
            "OfflineModeIsEnabled",
        ),
        Cause(
            "{name} is no folder, and the Hub answered {status}. Check the name and the network, or try again later.",
            "3xx 4xx 5xx",
        ),
        Cause(
            "{name} is no folder, and the Hub cannot be reached. Check the name and the network, or try again later.",
            f"{NETWORK} LocalEntryNotFoundError",
        ),
        Cause("{name} is neither a folder nor the name of a repository (owner/name): check it.", "HFValidationError"),
    ),
    "send": (
        Cause(f"The Hub does not know this token: {LOG_IN}", "401"),
        Cause("This account may not write to {name}{said}: check the owner, or log in with a token that writes", "403"),
        Cause("There is no {name} on the Hub that this account may see: check the spelling", "404"),
        Cause("{name} was changed by someone else at the same time{said}: look at it", "409 412"),
        Cause("The Hub asks for fewer requests (429): wait some minutes", "429"),
        Cause("The Hub is not well ({status}): wait some minutes", "5xx"),
        Cause("The Hub refused this ({status}){said}: correct it", "3xx 4xx"),
        Cause("HF_HUB_OFFLINE is set, so nothing is sent: unset it", "OfflineModeIsEnabled"),
        Cause("The connection to the Hub failed: check the network", NETWORK),
        Cause("Uploading failed ({short})", "ValueError RuntimeError"),  # of the card, of hf_xet
    ),
}
"""What an error means when the machine or a library gives out, when a model is loaded, a run resumed, a repository read
or sent. The first row that fits is said."""


def explain(moment: str, error: BaseException, name: str = "", chain: bool = True, **fields: Any) -> str:
    """The sentence for an error; empty for one that is not in the table of that moment.

    Args:
        moment: which table of CAUSES is asked.
        name: what was to be read or sent.
        chain: whether what the error was raised from is looked at, too.
        fields: what else sentences of that moment take.
    """
    for cause in CAUSES[moment]:
        for one in causes(error) if chain else [error]:
            if cause.fits(one, name):
                path, number = getattr(one, "filename", None), getattr(one, "errno", None)
                heard = next((said for e in causes(error) if (said := getattr(e, "server_message", None))), None)
                return cause.sentence.format(
                    name=name,
                    path=path,
                    at=f" at {path}" if path else "",
                    why=os.strerror(number or 0),
                    outer=brief(error),
                    brief=brief(one),
                    short=textwrap.shorten(str(one), 200, placeholder=" ...").rstrip("."),
                    status=status_of(one),
                    said=f" ({textwrap.shorten(heard, 160, placeholder=' ...').rstrip('.')})" if heard else "",
                    **fields,
                )
    return ""


@contextmanager
def explained(moment: str, name: str | None, **fields: Any) -> Iterator[None]:
    """While this lasts an error of that moment's table becomes a `UserError` that says what it means."""
    try:
        yield
    except Exception as failure:
        if sentence := explain(moment, failure, name or "", chain=False, **fields):
            raise UserError(sentence) from failure
        raise


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain = [error]
    while chain[-1].__cause__ is not None and len(chain) < 20:
        chain.append(chain[-1].__cause__)
    return chain


def kinds_of(error: BaseException) -> set[str]:
    """Names of its class and of those above; of its errno; its HTTP status, as 404 and as 4xx."""
    number, status = getattr(error, "errno", None) or 0, status_of(error) or 0
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return kinds | {errno.errorcode.get(number, ""), str(status), f"{status // 100}xx"}


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error stands for; None where none came."""
    return getattr(getattr(error, "response", None), "status_code", None)


def brief(error: BaseException) -> str:
    """A library's message on one line: all of it where it is short, else its first line, 240 characters at most."""
    words = " ".join(str(error).split()) or type(error).__name__
    if len(words) > 240:
        words = " ".join(str(error).strip().splitlines()[0].split())
    return (words if len(words) <= 240 else words[:237] + "...").rstrip(".: ")


def _spots(error: BaseException) -> Iterator[str]:
    """file:function of all that an error came through."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield f"{frame.f_code.co_filename.replace(os.sep, '/')}:{frame.f_code.co_name}"
