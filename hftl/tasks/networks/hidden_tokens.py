"""Hidden tokens and what guessing them costs. Knows models for masked tokens; no tokenizer, no data.

Logits as wide as the vocabulary are computed where something was hidden, and nowhere else: the head reads some 15 % of
the tokens, which for a small model spares some 40 % of the time of a step, and most of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import nn

from hftl.data.types import IGNORED
from hftl.models.untouched import untouched
from hftl.models.wrapped import bare


class HiddenTokens:
    """The loss of the tokens that were hidden (Devlin et al. 2019, section 3.1).

    Args:
        model: one for masked tokens.
        example: a batch without labels, on which is tried whether the head says of a token the same without the others.
    """

    def __init__(self, model: Any, example: dict[str, torch.Tensor]) -> None:
        self.apart = _agrees(model, example)

    def __call__(self, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`loss`, the mean over hidden tokens; `logits` (rows, 3): of each row the summed loss, right ones, number."""
        labels = inputs["labels"]
        here = labels != IGNORED
        given = {name: value for name, value in inputs.items() if name != "labels"}
        # torch.compile does not look again whether there is a hook
        logits = guesses(model, given, here, self.apart and not is_compiled_module(model)).float()
        losses = nn.functional.cross_entropy(logits, labels[here], reduction="none")
        found = logits.new_zeros(*labels.shape, 3)
        found[here] = torch.stack(
            [losses.detach(), (logits.argmax(-1) == labels[here]).float(), torch.ones_like(losses)], dim=-1
        )
        return {"loss": losses.sum() / here.sum().clamp(min=1), "logits": found.sum(1)}


def guesses(model: Any, inputs: dict[str, torch.Tensor], here: torch.Tensor, apart: bool) -> torch.Tensor:
    """(tokens, vocabulary): logits where `here`, (rows, width), is true; `apart` gives the head these alone."""
    if not apart:
        return model(**inputs)["logits"][here]
    with _kept(bare(model).base_model, here):
        return model(**inputs)["logits"][0]


def _agrees(model: Any, example: dict[str, torch.Tensor]) -> bool:
    """Whether both ways give the same logits, to 1e-4 of the largest."""
    here = torch.ones_like(example["input_ids"], dtype=torch.bool)
    here[:, ::2] = False
    with untouched(model), torch.no_grad():
        model.eval()
        try:
            whole, some = (guesses(model, example, here, apart) for apart in (False, True))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
            return False
    return whole.shape == some.shape and bool((whole - some).abs().max() <= 1e-4 * whole.abs().max())


@contextmanager
def _kept(encoder: nn.Module, here: torch.Tensor) -> Iterator[None]:
    """While this lasts an encoder gives one row, (1, tokens, width), of the hidden states where `here` is true."""

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = output["last_hidden_state"][here][None]
        return output

    hook = encoder.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()
