"""Name a model and its parameters as they were before accelerate, torch or peft wrapped them.

What hftl knows of the names that these give to modules around a model stands here alone (accelerate 1.15, torch 2.15,
peft 0.21).
"""

from __future__ import annotations

import re
from typing import Any

PEFT = "base_model.model."
OUTER = (PEFT, "module.", "_orig_mod.")
"""What peft, DDP and torch.compile put before the names of a whole model."""
_COPY, _ORIGINAL, _ADAPTED, _DEFAULT = "modules_to_save", "original_module", "base_layer", "default"
"""In peft's names: the copy of a module that trains whole, by adapter; what it stands in for; what an adapter is laid
around; the adapter that nobody has named."""
_WRAP = rf"(?:{_COPY}\.[^.]+|{_ORIGINAL}|{_ADAPTED}|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
_INNER = re.compile(rf"(?<![^.]){_WRAP}\.|\.{_WRAP}$")


def bare(model: Any) -> Any:
    """The model itself, out of DDP, FSDP, torch.compile and peft."""
    from accelerate.utils import extract_model_from_parallel  # here: strategies read names, and import no torch

    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "peft_config") else model


def out_of_peft(name: str) -> str:
    """The name of a parameter or module in the model that a PeftModel holds."""
    return name.removeprefix(PEFT).removeprefix("base_model.")  # the latter alone where the method is a prompt


def set_aside(name: str) -> bool:
    """Whether a name in a PeftModel is of a module that a trained copy stands in for."""
    return _ORIGINAL in name.split(".")


def trained_copy(name: str) -> str:
    """The module of which a name in a PeftModel lies in a copy that trains whole; "" for any other name."""
    return name.partition(f".{_COPY}.")[0] if f".{_COPY}." in name else ""


def adapted(name: str) -> bool:
    """Whether a name in a PeftModel is of a module that an adapter is laid around."""
    return _ADAPTED in name.split(".")


def of_adapter(name: str, adapter: str) -> str:
    """What is called `name` where peft's one adapter has no name of its own, where one of several is `adapter`.

    What trains whole is no part of an adapter there: hftl keeps heads by task itself.
    """
    return name.replace(f"{_COPY}.{_DEFAULT}.", "").replace(f".{_DEFAULT}.", f".{adapter}.")


def out_of_torch(name: str) -> str:
    """The name of a parameter without DDP, FSDP and torch.compile."""
    return name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "").removeprefix("module.")


def inside(name: str) -> str:
    """A name without what stands around single modules of a model: adapters, copies to train, shards."""
    return _INNER.sub("", name)
