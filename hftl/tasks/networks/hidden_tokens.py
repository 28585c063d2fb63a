"""Hidden tokens and what guessing them costs. Knows models for masked tokens; no tokenizer, no data.

Logits as wide as the vocabulary are computed where something was hidden, and nowhere else: the head reads some 15 % of
the tokens, which for a small model spares some 40 % of the time of a step, and most of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hftl.models.untouched import untouched
from hftl.tasks.networks.over import Pretext


class HiddenTokens(Pretext):
    """The tokens that were hidden (Devlin et al. 2019, section 3.1).

    `logits` are (rows, 3): of each row's hidden tokens the summed loss, how many are right, and their number.
    Without labels the model is itself.
    """

    base_model: Any
    apart: bool
    """Whether the head says of a token the same without the others."""

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return super().forward(**inputs)
        here = labels != -100
        logits, wanted = self.guesses(here, inputs, self.apart).float(), labels[here]
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        found = logits.new_zeros(*labels.shape, 3)
        found[here] = torch.stack(
            [losses.detach(), (logits.argmax(-1) == wanted).float(), torch.ones_like(losses)], dim=-1
        )
        return {"loss": losses.sum() / here.sum().clamp(min=1), "logits": found.sum(1)}

    def guesses(self, here: torch.Tensor, inputs: dict[str, Any], apart: bool) -> torch.Tensor:
        """(tokens, vocabulary): logits where `here`, (rows, width), is true; `apart` gives the head these alone."""
        if not apart:
            return super().forward(**inputs)["logits"][here]
        with _kept(self.base_model, here):
            return super().forward(**inputs)["logits"][0]

    @classmethod
    def over(cls, model: Any, example: dict[str, torch.Tensor] | None = None) -> None:
        """As the base class; whether the head can go without the other tokens is tried on an example, and compared.

        Args:
            example: a batch without labels; without one the head is given all tokens.
        """
        super().over(model)
        model.apart = example is not None and _agrees(model, example)


def _agrees(model: Any, example: dict[str, torch.Tensor]) -> bool:
    """Whether both ways give the same logits, to 1e-4 of the largest."""
    here = torch.ones_like(example["input_ids"], dtype=torch.bool)
    here[:, ::2] = False
    with untouched(model), torch.no_grad():
        model.eval()
        try:
            whole, some = (model.guesses(here, example, apart) for apart in (False, True))
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
