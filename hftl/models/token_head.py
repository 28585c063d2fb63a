"""A head that says which token was hidden, for a model of another task: its checkpoint's own, or else a new one.

Knows models of transformers; no data and no loss.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

_FAILURES = (OSError, ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError, ImportError)


def token_head(model: Any) -> nn.Module:
    """Hidden states (tokens, width) -> logits (tokens, vocabulary).

    It is the head of masked-language modelling that lies in the model's checkpoint, with the checkpoint's weights, if
    it has a whole one and the model still has the checkpoint's embeddings. Else it is BERT's with random weights. The
    model's own embeddings decode, and are no part of the head.
    """
    own = _own(model)
    if own is not None:
        return own
    words, wide = model.get_input_embeddings().weight.shape
    bias = nn.Parameter(torch.zeros(words))
    return nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.LayerNorm(wide), Decoder(model, bias))


class Decoder(nn.Module):
    """The last layer of a head, whose weight is a model's embeddings."""

    def __init__(self, model: Any, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._of = [model]  # in a list, so that the model is no part of this module

    @property
    def weight(self) -> torch.Tensor:
        """(vocabulary, width)."""
        return self._of[0].get_input_embeddings().weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype), self.bias)


class OwnHead(nn.Module):
    """A model for masked tokens whose encoder gives what it is given: what is left of it is the head."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.given = Given()
        setattr(whole, whole.base_model_prefix, self.given)
        self.head = whole

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.given.states = states[None]
        nobody = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return self.head(input_ids=nobody)["logits"][0]


class Given(nn.Module):
    """Stands where the encoder was."""

    states: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.states)  # type: ignore[arg-type]


def _own(model: Any) -> nn.Module | None:
    """The head in the checkpoint that a model was loaded from; None where that has none that gives the same logits."""
    config: Any = getattr(model, "config", None)
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING or not config._name_or_path:
        return None
    try:
        whole, info = transformers.AutoModelForMaskedLM.from_pretrained(
            config._name_or_path,
            revision=getattr(config, "_commit_hash", None),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        here = model.get_input_embeddings().weight
        embeddings, out = whole.to(here.device).get_input_embeddings().weight, whole.get_output_embeddings()
        if info["missing_keys"] or not torch.equal(here, embeddings):
            return None
        seen: list[Any] = []
        hook = whole.base_model.register_forward_hook(lambda module, args, output: seen.append(output[0][0]))
        ids = torch.arange(4, device=here.device)[None] % len(embeddings)
        with torch.no_grad():
            logits = whole.eval()(input_ids=ids)["logits"][0]
            hook.remove()
            if out.weight is embeddings:
                whole.set_output_embeddings(Decoder(model, out.bias))
            head = OwnHead(whole)
            same = torch.allclose(head(seen[0]), logits, atol=1e-4)
    except _FAILURES:
        return None
    return head if same else None
