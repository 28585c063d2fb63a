"""What is said of a checkpoint that does not load. Knows the errors of transformers, safetensors and the Hub."""

from __future__ import annotations

import errno
import pickle
import textwrap
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hftl.errors import UserError

LOAD_FAILURES = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises on a checkpoint that it cannot read."""


def explain_load_failure(failure: Exception, model: str, auto: str) -> UserError:
    """One sentence for the many ways in which transformers says that it cannot load a model.

    Raises:
        OSError: the failure itself, where the machine refused (a full disk, no rights), worded by `hftl.cli.failures`.
    """
    if isinstance(failure, OSError) and failure.errno not in (None, errno.ENOENT):
        raise failure
    text = str(failure)
    if "trust_remote_code" in text:
        return UserError(f"{model} comes with its own code. Read it, then pass --trust_remote_code to run it.")
    if "Unrecognized configuration class" in text:
        return UserError(
            f"{model} has no head for this task: transformers' {auto} does not know its architecture. "
            "Pass another --model, or use the recipe that reads what this one reads."
        )
    if Path(model).is_file():
        return UserError(f"--model {model} is a file. Pass the folder that holds its config.json and weights.")
    if (Path(model) / "adapter_config.json").is_file():
        return UserError(f"{model} holds an adapter. Pass --model with its base model, or merge the two first.")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        return UserError(f"{model} holds no config.json. Pass --model with a folder that save_pretrained has written.")
    if isinstance(failure, pickle.UnpicklingError):
        return UserError(
            f"{model} holds a pickle file with more than tensors in it, which is not opened even with --allow_pickle. "
            "Convert its weights to safetensors."
        )
    absent = isinstance(failure, OSError) and "safetensors" in text and Path(model).is_dir()
    if absent or "not appear to have a file named model.safetensors" in text:
        return UserError(
            f"{model} holds no readable model.safetensors. Convert its weights to safetensors; where it has a pickle "
            "file from a source you trust, pass --allow_pickle."
        )
    if Path(model).exists():
        what = {"AutoTokenizer": "a tokenizer", "AutoImageProcessor": "an image processor"}.get(auto, "a model")
        reason = textwrap.shorten(text, 200, placeholder=" ...").rstrip(".")
        return UserError(f"{model} does not load as {what}: {reason}. Fetch or save it again, or pass another --model.")
    if "offline" in text.lower() or "couldn't connect" in text.lower() or "cached files" in text.lower():
        return UserError(
            f"{model} is neither a local folder nor in the Hugging Face cache, and the Hub cannot be reached. "
            "Check the name and the network, or pass --model with a local folder."
        )
    return UserError(f"{model} is neither a local folder nor a model that the Hub gives out. Check --model for typos.")
