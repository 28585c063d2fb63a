"""Read off a model which of its parameters the checkpoint supplied: `from_pretrained` marks those that it loads."""

from __future__ import annotations

from torch import nn

LOADED = "_is_hf_initialized"
"""transformers' mark on a parameter, since 5.0; tests/test_private.py says so when it goes."""


def says_what_came(model: nn.Module) -> bool:
    """Whether any parameter is marked, so that those without a mark are known to be fresh."""
    return any(getattr(parameter, LOADED, False) for parameter in model.parameters())


def came_fresh(model: nn.Module) -> list[str]:
    """Names of the parameters that the checkpoint did not supply; [] where the model does not say.

    An adapter that the model holds already is no head: of such a model nothing is fresh.
    """
    if not says_what_came(model) or hasattr(model, "peft_config"):
        return []
    return [name for name, parameter in model.named_parameters() if not getattr(parameter, LOADED, False)]
