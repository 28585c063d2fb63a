"""What the Hub or the way to it refused -> one sentence that says how to go on. Knows huggingface_hub's errors."""

from __future__ import annotations

from huggingface_hub import errors

LOG_IN = "log in with `hf auth login`"
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed later."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that an error, or what it was raised from, stands for; None where none came."""
    for one in causes(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain = [error]
    while chain[-1].__cause__ is not None and len(chain) < 20:
        chain.append(chain[-1].__cause__)
    return chain


def is_offline(error: BaseException) -> bool:
    """Whether HF_HUB_OFFLINE kept the request from being sent."""
    return any(isinstance(one, errors.OfflineModeIsEnabled) for one in causes(error))


def is_network(error: BaseException) -> bool:
    """Whether no answer came: the connection was refused, cut, or too slow."""
    kinds = {kind.__name__ for one in causes(error) for kind in type(one).__mro__}
    return status_of(error) is None and bool({"TransportError", "ConnectionError", "TimeoutError"} & kinds)


def is_hubs(error: BaseException) -> bool:
    """Whether an error came of talking to the Hub, and not of this machine or of a defect."""
    if any(isinstance(one, OSError) and one.errno is not None and not is_network(one) for one in causes(error)):
        return False  # the disk's
    refused = (errors.HFValidationError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    return status_of(error) is not None or is_network(error) or any(isinstance(one, refused) for one in causes(error))


def may_pass(error: BaseException) -> bool:
    """Whether trying again later may help."""
    return status_of(error) in TRANSIENT or is_network(error)


def not_read(name: str, revision: str | None, error: BaseException) -> str:
    """Why a repository could not be read, and what to do."""
    status = status_of(error)
    if any(isinstance(one, errors.RevisionNotFoundError) for one in causes(error)):
        return f"{name} on the Hub has no revision {revision!r}. Check the branch, tag or commit."
    if any(isinstance(one, errors.GatedRepoError) for one in causes(error)):
        return f"{name} on the Hub is gated. Accept its terms on its page, and {LOG_IN}."
    if status == 401 or any(isinstance(one, errors.RepositoryNotFoundError) for one in causes(error)):
        return f"There is no {name} on the Hub that can be read: check the spelling, or {LOG_IN} where it is private."
    if status == 403:
        return f"The Hub does not let this account read {name}. Ask its owner, or {LOG_IN} as another user."
    if is_offline(error):
        return f"{name} is no folder, and HF_HUB_OFFLINE keeps the Hub from being asked. Check the name, or unset it."
    if status is not None or is_network(error) or isinstance(error, errors.LocalEntryNotFoundError):
        what = f"answered {status}" if status is not None else "cannot be reached"
        return f"{name} is no folder, and the Hub {what}. Check the name and the network, or try again later."
    return f"{name} is neither a folder nor the name of a repository (owner/name): check it."


def not_sent(name: str, error: BaseException) -> str:
    """Why a repository could not be written; how to go on is the caller's to say."""
    status, said = status_of(error), _said(error)
    if status == 401:
        return f"The Hub does not know this token: {LOG_IN}"
    if status == 403:
        return f"This account may not write to {name}{said}: check the owner's name, or log in with a token that writes"
    if status == 404:
        return f"There is no {name} on the Hub that this account may see: check the spelling"
    if status in (409, 412):
        return f"{name} was changed by someone else at the same time{said}: look at it"
    if status == 429:
        return "The Hub asks for fewer requests (429): wait some minutes"
    if status is not None and status >= 500:
        return f"The Hub is not well ({status}): wait some minutes"
    if status is not None:
        return f"The Hub refused this ({status}){said}: correct it"
    if is_offline(error):
        return "HF_HUB_OFFLINE is set, so nothing is sent: unset it"
    if is_network(error):
        return "The connection to the Hub failed: check the network"
    return f"Uploading failed ({' '.join(str(error).split())[:200].rstrip('.')})"


def _said(error: BaseException) -> str:
    heard = [getattr(one, "server_message", None) for one in causes(error)]
    said = next((one for one in heard if one), None)
    return f" ({' '.join(said.split())[:160].rstrip('.')})" if said else ""
