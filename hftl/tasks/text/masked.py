"""Masked-language modelling: tokens are hidden and guessed, without labels. Knows tokenizers, nothing of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.roles import Role
from hftl.data.types import IGNORED, Check, Labels, Splits
from hftl.errors import UserError
from hftl.settings.fields import HOW, flag
from hftl.tasks.base import Pretrained, Source
from hftl.tasks.text.classification import TextClassification
from hftl.tasks.text.texts import Texts, cache_key, padded, read_part

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from hftl.tasks.metrics.accumulator import Accumulator
    from hftl.tasks.networks.masking import Masking

_MASKING = 1  # part of the cache key of rows with fixed masks: raise it when a mask would fall elsewhere


@dataclass
class MaskedText(Texts):
    """The tokens that were hidden in a text, by any `AutoModelForMaskedLM` (Devlin et al. 2019, section 3.1).

    Training texts are masked anew whenever they are read; those of valid and test keep one mask each, which their
    content decides, so that all evaluations compare.
    """

    name: ClassVar[str] = "fill-mask"
    auto: ClassVar[str] = "AutoModelForMaskedLM"
    read_as = "masked_tokens"
    whole: ClassVar[bool] = True
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/mlm.py",
        "new": "new.csv",
        "example": 'f"It is a {classify.tokenizer.mask_token}."',
        "processor": "tokenizer",
        "next": "recipes/text_cls.py",
    }
    roles: ClassVar[dict[str, Role]] = {"text": TextClassification.roles["text"]}

    mask: float = flag(0.15, "the share of tokens to hide", HOW, range="(0, 1)")
    whole_words: bool = flag(False, "hide whole words, never single pieces of one", HOW)
    add_tokens: int = flag(
        0, "add this many of the most frequent words that the tokenizer splits to the vocabulary", HOW, range="[0, inf)"
    )
    _texts: Sequence[str] = field(default=(), init=False, repr=False)
    """Of train; the words that are added come from there."""
    _learn: Any = field(default=None, init=False, repr=False, compare=False)

    def settle(self, splits: Splits) -> None:
        self._texts = splits.train["text"]

    def build(self, source: Source, labels: Labels) -> Pretrained:
        from hftl.tasks.networks.hidden_tokens import HiddenTokens
        from hftl.tasks.networks.vocabulary import extend, new_words

        made = super().build(source, labels)
        model, tokenizer = made.model, made.processor
        if made.fresh:
            count = sum(p.numel() for name, p in model.named_parameters() if name in made.fresh)
            sentence = (
                f"the checkpoint has no whole head for masked tokens: {count:,} parameters of it start at random and "
                "have to be learned first, so that early perplexities say little"
            )
            made.checks.append(Check("head", "note", sentence))
        if self.add_tokens:
            words = new_words(tokenizer, self._texts, self.add_tokens)
            extend(model, tokenizer, words)
            shown = ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")
            added = f"{len(words):,} words of train were added to the vocabulary: {shown}"
            sentence = added if words else "no word of train is split into pieces"
            made.checks.append(Check("vocabulary", "note", sentence))
        self._learn = HiddenTokens(model, padded([tokenizer("one two three"), tokenizer("four")], tokenizer))
        return made

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        return self._learn(model, inputs)

    def processor(self, source: Source, model: nn.Module, **options: Any) -> Any:
        tokenizer = super().processor(source, model, **options)
        if tokenizer.mask_token is None:
            raise UserError(
                f"The tokenizer of {source.model} has no mask token, so nothing can be hidden. Pass a --model that was "
                "made for masked-language modelling, such as one of BERT's family."
            )
        if self.whole_words and not tokenizer.is_fast:
            raise UserError(f"--whole_words needs a fast tokenizer; {source.model} has none. Leave it out.")
        return tokenizer

    def encode(self, rows: datasets.Dataset, processor: Any, train: bool = False) -> datasets.Dataset:
        """Tokenise as for classification, and mask valid and test. Columns: `input_ids` ..., `length`;
        `word` in training on whole words (the number of each token's word, -1 beside words); `labels` where masked.
        """
        import datasets

        encoded = super().encode(rows, processor, train)
        limit = min(self.max_length or processor.model_max_length, processor.model_max_length)
        if self.whole_words:
            encoded = datasets.concatenate_datasets([encoded, self._words(rows, processor, limit)], axis=1)
        if train:
            return encoded
        masking = self.masking(processor)
        how = (self.mask, self.whole_words, processor.mask_token_id, len(processor), _MASKING)
        return encoded.map(
            masking.fixed,
            remove_columns=["word"] if self.whole_words else [],
            new_fingerprint=cache_key(encoded, *how),
            desc=f"Masking {len(rows):,} rows",
        )

    def _words(self, rows: datasets.Dataset, tokenizer: Any, limit: int) -> datasets.Dataset:
        import datasets

        def numbered(batch: dict[str, list]) -> dict[str, list]:
            made = tokenizer(read_part(batch["text"]), truncation=True, max_length=limit)
            words = (made.word_ids(i) for i in range(len(batch["text"])))
            return {"word": [[-1 if word is None else word for word in row] for row in words]}

        mark = cache_key(rows, tokenizer.backend_tokenizer.to_str(), limit, "words")
        features = datasets.Features({"word": datasets.List(datasets.Value("int32"))})
        return rows.map(
            numbered, batched=True, remove_columns=rows.column_names, features=features, new_fingerprint=mark
        )

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.pretext import MaskedTokens

        return MaskedTokens()

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        from hftl.tasks.networks.masking import wide

        masking = self.masking(processor)

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            inputs = padded(rows, processor)
            width, left = inputs["input_ids"].shape[1], processor.padding_side == "left"
            if "labels" in rows[0]:
                return inputs | {"labels": wide([row["labels"] for row in rows], width, IGNORED, left)}
            words = wide([row["word"] for row in rows], width, -1, left) if "word" in rows[0] else None
            ids, labels = masking(inputs["input_ids"], words)
            return inputs | {"input_ids": ids, "labels": labels}

        return batch

    def masking(self, tokenizer: Any) -> Masking:
        """How this task hides tokens."""
        from hftl.tasks.networks.masking import Masking

        return Masking(tokenizer, self.mask)

    def changed(self) -> bool:
        return True
