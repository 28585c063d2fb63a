"""Several adapters over one base model in memory, each called by its name. Knows loaded models and their storage.

PEFT itself can hold several adapters in one model and switch with `set_adapter`; that needs one method, one task and
heads of one size. Here each adapter stays the model that it is, and the tensors that are equal become the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hftl.errors import UserError
from hftl.models.wrapped import inside, out_of_peft, set_aside, trained_copy
from hftl.results.predict import Predictor, load


def load_adapters(folders: Mapping[str, str | Path]) -> dict[str, Predictor]:
    """Load adapters of one base model, which is in memory once; of any methods, tasks and labels.

    Example:
        read = hftl.load_adapters({"mood": "runs/mood", "topic": "you/topic"})
        read["mood"]("What a film.")

    Raises:
        UserError: a folder holds no adapter, or its base is another one.
    """
    if not folders:
        raise UserError("Expected adapters by name, such as {'mood': 'runs/mood'}; none came.")
    found: dict[str, Predictor] = {}
    first: dict[str, torch.Tensor] = {}
    for name, folder in folders.items():
        made = load(folder)
        if not hasattr(made.model, "peft_config"):
            raise UserError(f"{folder} holds a full model and no adapter. Load it alone, with hftl.load.")
        own = base_tensors(made.model)
        if first and share(own, first) < 0.5:
            raise UserError(f"{folder} adapts another base model than {next(iter(folders.values()))}. Load it alone.")
        first |= {path: value for path, value in own.items() if path not in first}
        found[name] = made
    return found


def base_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, by the name that those of the base have there; copies of whole modules are left out."""
    named: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = [path for path in named if not (set_aside(path) or trained_copy(path))]
    return {inside(out_of_peft(path)): named[path] for path in own}


def share(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    """Let tensors lie in the memory of equal ones of the same name; return their share of the bytes of such names."""
    common = shared = 0
    for path in tensors.keys() & others.keys():
        value, other = tensors[path], others[path]
        common += value.nbytes
        if value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other):
            value.data = other.data
            shared += value.nbytes
    return shared / max(common, 1)
