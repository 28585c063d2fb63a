"""`timm:NAME`: an architecture of timm's as a transformers model, with weights from a file or at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hftl.data.types import Labels
from hftl.errors import UserError, suggest
from hftl.tasks.base import Pretrained, Source
from hftl.tasks.loading import label_settings
from hftl.tasks.origin import revision_of


def bare_timm(source: Source, labels: Labels, make: Callable[[Any], Any] | None = None) -> Pretrained:
    """`timm:NAME`: an architecture of timm's, with `weights` from a safetensors file or else at random.

    Args:
        make: config -> model; else the classifier.
    """
    name = source.model.removeprefix("timm:")
    if not timm.is_model(name):
        guess = suggest(name, timm.list_models()) or " Check --model; timm.list_models() has them all."
        raise UserError(f"timm has no architecture called {name!r}.{guess}")
    cfg = timm.get_pretrained_cfg(name)
    config = transformers.TimmWrapperConfig(  # type: ignore[call-arg]  # its base takes more than it declares
        architecture=name, pretrained_cfg=cfg.to_dict() if cfg else {}, **label_settings(labels)
    )
    model = (make or transformers.TimmWrapperForImageClassification)(config)
    parameters = {key for key, _ in model.named_parameters()}
    fresh = parameters - load_weights(model, source.weights) if source.weights else parameters
    processor = transformers.TimmWrapperImageProcessor(config.pretrained_cfg, architecture=name)
    revision = revision_of(str(Path(source.weights).parent)) if source.weights else "random weights"
    return Pretrained(model, processor, fresh, revision)


def load_weights(model: nn.Module, file: str) -> set[str]:
    """Copy what fits from a safetensors file of a timm model; return the names that were copied.

    Raises:
        UserError: no such file, not safetensors, or weights of another architecture.
    """
    try:
        stored = load_file(file)
    except OSError as failure:
        raise UserError(f"--weights {file} cannot be read: {failure.strerror or failure}.") from failure
    except SafetensorError as failure:
        raise UserError(f"--weights {file} is not a safetensors file: {failure}.") from failure
    own = model.state_dict()
    prefixed = {key if key in own else f"timm_model.{key}": value for key, value in stored.items()}
    fitting = {key: value for key, value in prefixed.items() if key in own and own[key].shape == value.shape}
    if len(fitting) < len(own) // 2:
        raise UserError(
            f"--weights {file} fits another architecture: {len(fitting)} of {len(own)} tensors match. Check --model."
        )
    model.load_state_dict(fitting, strict=False)
    return set(fitting)
