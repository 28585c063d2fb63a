"""Padded texts as one row of tokens: where each token lies, and attention within each text. Knows masks; no model.

The masks are the model's own, made by transformers, so that causal and local attention keep their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.masking_utils import bidirectional_mask_function

NAME = "hftl_packed"
"""What transformers calls this attention, once `register` has run."""


def register() -> None:
    """Tell transformers of this attention and of its masks."""
    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, make_mask)


def packs(tokens: torch.Tensor) -> bool:
    """Whether a batch (B, L), True where a token is, has padding to save.

    Its row is longer than L then, so that packed and padded values never have one shape.
    """
    return bool(tokens.any(1).all()) and tokens.shape[1] < int(tokens.sum()) < tokens.numel()


@dataclass(frozen=True)
class _Group:
    """Texts that one call of attention takes: `texts` of them, `length` tokens each once padded."""

    texts: int
    length: int
    slots: torch.Tensor | None = None
    """Where the tokens lie in the padded (texts * length); None: there is no padding."""
    mask: torch.Tensor | None = None
    """(texts, 1, length, length), True where a token (third dimension) sees another; None: all see all."""

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, size) -> (texts, heads, length, size)."""
        if self.slots is not None:
            packed = packed.new_zeros(self.texts * self.length, *packed.shape[1:]).index_copy(0, self.slots, packed)
        return packed.view(self.texts, self.length, *packed.shape[1:]).transpose(1, 2)

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """(texts, length, heads, size) -> (tokens, heads, size)."""
        flat = padded.flatten(0, 1)
        return flat if self.slots is None else flat.index_select(0, self.slots)


class PackedRow:
    """Where the tokens of one padded batch lie in its packed row.

    On a CPU the texts are sorted by length, and those of one length attended to together, without padding or mask: that
    was faster there than padded attention and than a loop over texts. Elsewhere, where each call has its price, all
    texts are one group.

    Args:
        tokens: (B, L), True where a token is, False where padding is.
        mask: (B, 1, L, L), the model's own attention mask.
        full: whether the mask hides nothing but padding.
        together: whether all texts are one group.
    """

    def __init__(self, tokens: torch.Tensor, mask: torch.Tensor, full: bool, together: bool) -> None:
        self.batch, self.length = tokens.shape
        self.together = together
        self.attended = False
        """Whether attention has met this row."""
        lengths = tokens.sum(1)
        order = torch.arange(self.batch, device=tokens.device) if together else lengths.argsort(stable=True)
        text, self._column = tokens[order].nonzero(as_tuple=True)
        self.places = order[text] * self.length + self._column
        """For each token of the row its place in the flattened (B * L)."""
        self.total = len(self.places)
        if together:
            self.sizes = [self.total]
            self.groups = [_Group(self.batch, self.length, self.places)]
            return
        values, counts = lengths[order].unique_consecutive(return_counts=True)
        self.sizes = (values * counts).tolist()
        """Tokens of each group; the groups lie in the row one after another."""
        texts, columns = order.split(counts.tolist()), self._column.split(self.sizes)
        self.groups = [
            _Group(len(text), length, None, None if full else _cut(mask, text, column.view(-1, length)))
            for text, length, column in zip(texts, values.tolist(), columns, strict=True)
        ]

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(B or 1, L, ..) -> (1, T, ..)."""
        if len(padded) == 1:
            return padded.index_select(1, self._column)
        return padded.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, T, ..) -> (B, L, ..), zeros where padding is."""
        empty = packed.new_zeros(self.batch * self.length, *packed.shape[2:])
        return empty.index_copy(0, self.places, packed[0]).unflatten(0, (self.batch, self.length))


def _cut(mask: torch.Tensor, texts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor | None:
    """The mask among the tokens (n, length) of some texts (n,); None where it hides nothing."""
    cut = mask[texts[:, None, None], 0, columns[:, :, None], columns[:, None, :]]
    return None if cut.all() else cut.unsqueeze(1)


def make_mask(**wanted: Any) -> torch.Tensor | None:
    """transformers' own mask (B, 1, L, L); where texts are padded, it carries a `PackedRow` to blocks and attention.

    It is the one thing that the model itself hands to every block, also when a block runs again for its gradient.
    """
    mask = transformers.AttentionMaskInterface()["sdpa"](**wanted)
    padding = wanted.get("attention_mask")
    if mask is None or padding is None or padding.shape != (mask.shape[0], mask.shape[2]):
        return mask
    tokens = padding.bool()
    if packs(tokens):
        full = wanted.get("mask_function") is bidirectional_mask_function
        mask.packed_row = PackedRow(tokens, mask, full, together=tokens.device.type != "cpu")
    return mask


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention, within each text where q, k and v (1, heads, T, size) are packed.

    Returns:
        (1, T, heads, size), as transformers' own functions do, and no attention weights.
    """
    sdpa = transformers.AttentionInterface()["sdpa"]
    row: PackedRow | None = getattr(attention_mask, "packed_row", None)
    if row is None or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == row.total:
        return sdpa(module, query, key, value, attention_mask, **options)
    if options.get("position_bias") is not None:
        raise ValueError("a bias by position is computed for padded texts")
    row.attended = True
    options["is_causal"] = False  # what is causal is in the mask
    parts = [part[0].transpose(0, 1).split(row.sizes) for part in (query, key, value)]
    found = []
    for group, *own in zip(row.groups, *parts, strict=True):
        mask = attention_mask if row.together else group.mask
        made, _ = sdpa(module, *(group.spread(part) for part in own), mask, **options)
        found.append(group.gather(made))
    return torch.cat(found)[None], None
