"""Masked-language modelling: tokens are hidden and guessed, without labels. Knows tokenizers, nothing of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import torch
import transformers
from torch import nn

from hftl.data import Check, Labels, Role
from hftl.errors import UserError
from hftl.tasks.base import Pretrained, Source, Task, load_pretrained
from hftl.tasks.text.classification import TextClassification, read_part
from hftl.tasks.text.hidden_tokens import HiddenTokens
from hftl.tasks.text.vocabulary import extend, new_words

if TYPE_CHECKING:
    from hftl.tasks.metrics.accumulator import Accumulator

_MASKING = 1  # part of the cache key of rows with fixed masks: raise it when a mask would fall elsewhere


class MaskedText(Task):
    """The tokens that were hidden in a text, by any `AutoModelForMaskedLM` (Devlin et al. 2019, section 3.1).

    Training texts are masked anew whenever they are read; those of valid and test keep one mask each, which their
    content decides, so that all evaluations compare.
    """

    name: ClassVar[str] = "fill-mask"
    auto: ClassVar[str] = "AutoModelForMaskedLM"
    problem_type: ClassVar[str | None] = "masked_tokens"
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/mlm.py",
        "new": "new.csv",
        "example": 'f"It is a {classify.tokenizer.mask_token}."',
        "processor": "tokenizer",
        "next": "recipes/text_cls.py",
    }
    options: ClassVar[tuple[str, ...]] = ("max_length",)
    settings: ClassVar[tuple[str, ...]] = ("mask", "whole_words", "add_tokens")
    roles: ClassVar[dict[str, Role]] = {"text": TextClassification.roles["text"]}

    def __init__(self) -> None:
        self.reading = TextClassification()
        self.share, self.whole_words, self.add_tokens = 0.15, False, 0
        self.texts: Sequence[str] = []

    def settle(self, settings: dict[str, Any], train: Any) -> None:
        self.share = 0.15 if settings["mask"] is None else settings["mask"]
        self.whole_words, self.add_tokens = settings["whole_words"], settings["add_tokens"]
        self.texts = train["text"]
        if not 0 < self.share < 1:
            raise UserError(f"--mask is the share of tokens to hide, between 0 and 1; {self.share:g} came. Try 0.15.")
        if self.add_tokens < 0:
            raise UserError(f"--add_tokens expected a whole number of 0 or more; {self.add_tokens} came.")

    def build(self, source: Source, labels: Labels) -> Pretrained:
        model, fresh, revision = load_pretrained(self.auto, source, labels)
        tokenizer = self.processor(source, model)
        checks = []
        if fresh:
            shapes = dict(model.named_parameters())
            sentence = (
                "the checkpoint has no whole head for masked tokens: "
                f"{sum(shapes[name].numel() for name in fresh):,} parameters of it start at random and have to be "
                "learned first, so that early perplexities say little"
            )
            checks.append(Check("head", "note", sentence))
        if self.add_tokens:
            words = new_words(tokenizer, self.texts, self.add_tokens)
            extend(model, tokenizer, words)
            shown = ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")
            sentence = f"{len(words):,} words of train were added to the vocabulary: {shown}"
            checks.append(Check("vocabulary", "note", sentence if words else "no word of train is split into pieces"))
        HiddenTokens.over(model, self.reading.collate(tokenizer)([tokenizer("one two three"), tokenizer("four")]))
        return Pretrained(model, tokenizer, fresh, revision, checks)

    def processor(self, source: Source, model: nn.Module) -> Any:
        tokenizer = self.reading.processor(source, model)
        if tokenizer.mask_token is None:
            raise UserError(
                f"The tokenizer of {source.model} has no mask token, so nothing can be hidden. Pass a --model that was "
                "made for masked-language modelling, such as one of BERT's family."
            )
        if self.whole_words and not tokenizer.is_fast:
            raise UserError(f"--whole_words needs a fast tokenizer; {source.model} has none. Leave it out.")
        return tokenizer

    def encode(
        self, rows: datasets.Dataset, processor: Any, train: bool = False, max_length: int | None = None
    ) -> datasets.Dataset:
        """Tokenise as for classification, and mask valid and test. Columns: `input_ids` ..., `length`;
        `word` in training on whole words (the number of each token's word, -1 beside words); `labels` where masked.
        """
        encoded = self.reading.encode(rows, processor, train, max_length)
        limit = min(max_length or processor.model_max_length, processor.model_max_length)
        if self.whole_words:
            encoded = datasets.concatenate_datasets([encoded, self._words(rows, processor, limit)], axis=1)
        if train:
            return encoded
        masking = self.masking(processor)
        parts = (encoded._fingerprint, self.share, self.whole_words, processor.mask_token_id, len(processor), _MASKING)
        return encoded.map(
            masking.fixed,
            remove_columns=["word"] if self.whole_words else [],
            new_fingerprint=hashlib.sha256(repr(parts).encode()).hexdigest()[:32],
            desc=f"Masking {len(rows):,} rows",
        )

    def _words(self, rows: datasets.Dataset, tokenizer: Any, limit: int) -> datasets.Dataset:
        def numbered(batch: dict[str, list]) -> dict[str, list]:
            made = tokenizer(read_part(batch["text"]), truncation=True, max_length=limit)
            words = (made.word_ids(i) for i in range(len(batch["text"])))
            return {"word": [[-1 if word is None else word for word in row] for row in words]}

        rules = tokenizer.backend_tokenizer.to_str()
        mark = hashlib.sha256(repr((rows._fingerprint, rules, limit, "words")).encode()).hexdigest()[:32]
        features = datasets.Features({"word": datasets.List(datasets.Value("int32"))})
        return rows.map(
            numbered, batched=True, remove_columns=rows.column_names, features=features, new_fingerprint=mark
        )

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.pretext import MaskedTokens

        return MaskedTokens()

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        masking, padded = self.masking(processor), self.reading.collate(processor)

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            inputs = padded([{name: ids for name, ids in row.items() if name != "labels"} for row in rows])
            width, left = inputs["input_ids"].shape[1], processor.padding_side == "left"
            if "labels" in rows[0]:
                return inputs | {"labels": _wide([row["labels"] for row in rows], width, -100, left)}
            words = _wide([row["word"] for row in rows], width, -1, left) if "word" in rows[0] else None
            ids, labels = masking(inputs["input_ids"], words)
            return inputs | {"input_ids": ids, "labels": labels}

        return batch

    def masking(self, tokenizer: Any) -> Masking:
        """How this task hides tokens."""
        return Masking(tokenizer, self.share)

    def changed(self, options: dict[str, Any]) -> bool:
        return True

    def identify(self, rows: datasets.Dataset, processor: Any) -> list[bytes]:
        return self.reading.identify(rows, processor)

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """The whole model; an adapter is merged into it, so that any recipe can go on from there."""
        model = model.merge_and_unload() if hasattr(model, "peft_config") else model
        HiddenTokens.off(model)
        return model, weights

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return self.reading.show(row)


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


def _wide(rows: list[list[int]], width: int, fill: int, left: bool) -> torch.Tensor:
    """Rows padded to one width, on the side where the tokenizer pads: (rows, width)."""
    return torch.tensor([[fill] * (width - len(r)) + r if left else r + [fill] * (width - len(r)) for r in rows])
