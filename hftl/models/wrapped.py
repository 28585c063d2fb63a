"""Name a model and its parameters as they were before accelerate, torch or peft wrapped them.

What hftl knows of the names that these give to modules stands here alone (accelerate 1.15, torch 2.15, peft 0.21).
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import extract_model_from_parallel


def bare(model: Any) -> Any:
    """The model itself, out of DDP, FSDP, torch.compile and peft."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "peft_config") else model
