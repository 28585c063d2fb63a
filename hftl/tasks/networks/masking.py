"""Tokens of a text hidden at random, or as its content decides. Knows tokenizers; no model, no data set."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import transformers


class Masking:
    """Hides a share of tokens: of these 80 % become the mask, 10 % another token, and 10 % stay (Devlin et al. 2019).

    Which tokens are hidden is drawn here, by token or by whole word; what becomes of them is transformers' own
    `DataCollatorForLanguageModeling`, told to hide exactly these. Special tokens and padding are never hidden.
    """

    def __init__(self, tokenizer: Any, share: float) -> None:
        self.share = share
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        self.collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=1.0)

    def __call__(
        self, ids: torch.Tensor, words: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hide tokens of `ids`, (rows, width); `words` has the number of each token's word.

        Returns:
            The changed ids, and the labels: the true ids where something was hidden, -100 elsewhere. Where chance
            would hide nothing in the whole batch, one token or word is hidden, so that its loss is a number.
        """
        free = ~torch.isin(ids, self.special)
        draws = torch.rand(ids.shape, generator=generator)
        if words is not None:  # all pieces of a word share the draw of one
            free &= words >= 0
            draws = draws.gather(1, words.clamp(min=0).long().clamp(max=ids.shape[1] - 1))
        draws = draws.masked_fill(~free, 2.0)
        hidden = draws < max(self.share, float(draws.min()) + 1e-7 if free.any() else 0.0)
        self.collator.generator = generator
        return self.collator.torch_mask_tokens(ids.clone(), special_tokens_mask=~hidden)

    def fixed(self, row: dict[str, Any]) -> dict[str, list[int]]:
        """One encoded row with a mask that its own content decides."""
        ids = torch.tensor([row["input_ids"]])
        seed = hashlib.blake2b(repr(row["input_ids"]).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        words = torch.tensor([row["word"]]) if "word" in row else None
        masked, labels = self(ids, words, generator)
        return {"input_ids": masked[0].tolist(), "labels": labels[0].tolist()}


def wide(rows: list[list[int]], width: int, fill: int, left: bool) -> torch.Tensor:
    """Rows padded to one width, on the side where the tokenizer pads: (rows, width)."""
    return torch.tensor([[fill] * (width - len(r)) + r if left else r + [fill] * (width - len(r)) for r in rows])
