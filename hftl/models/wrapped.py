"""Name a model and its parameters as they were before accelerate, torch or peft wrapped them.

What hftl knows of the names that these give to modules around a model stands here alone (accelerate 1.15, torch 2.15,
peft 0.21).
"""

from __future__ import annotations

import re
from typing import Any

from accelerate.utils import extract_model_from_parallel

PEFT = "base_model.model."
OUTER = (PEFT, "module.", "_orig_mod.")
"""What peft, DDP and torch.compile put before the names of a whole model."""
_INNER = re.compile(
    r"(?<![^.])(?:modules_to_save\.[^.]+|original_module|base_layer"
    r"|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def bare(model: Any) -> Any:
    """The model itself, out of DDP, FSDP, torch.compile and peft."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "peft_config") else model


def out_of_peft(name: str) -> str:
    """The name of a parameter or module in the model that a PeftModel holds."""
    return name.removeprefix(PEFT)


def out_of_torch(name: str) -> str:
    """The name of a parameter without DDP, FSDP and torch.compile."""
    return name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "").removeprefix("module.")


def inside(name: str) -> str:
    """A name without what stands around single modules of a model: adapters, copies to train, shards."""
    return _INNER.sub("", name)
