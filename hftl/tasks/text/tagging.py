"""Token classification: a tag for each word of a text that is given word by word. Knows tokenizers and sub-words."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.readings import Tags
from hftl.data.roles import Role
from hftl.data.types import IGNORED, Labels
from hftl.errors import UserError
from hftl.settings.fields import IN, RUN, flag
from hftl.tasks.base import Columns, Source
from hftl.tasks.sections import Example, Gallery, Section
from hftl.tasks.text.texts import Batched, cache_key, padded, rules

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn

    from hftl.tasks.metrics.accumulator import Accumulator


@dataclass
class TokenClassification(Batched):
    """A tag for each word, by any `AutoModelForTokenClassification`; a word's first sub-word bears it."""

    smooths: ClassVar[bool] = True
    name: ClassVar[str] = "token-classification"
    auto: ClassVar[str] = "AutoModelForTokenClassification"
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/token_cls.py",
        "new": "new.jsonl",
        "example": '"one text"',
        "processor": "tokenizer",
        "arguments": ', aggregation_strategy="first"',  # else a pipeline tags every sub-word
    }
    roles: ClassVar[dict[str, Role]] = {
        "tokens": Role("words", ("tokens", "words")),
        "label": Role(
            "label", ("tags", "ner_tags", "labels", "label", "pos_tags"), reads={"token_classification": Tags()}
        ),
    }

    tokens: str | None = flag(None, "the column that holds the words of a text, as a list", IN)
    label: str | None = flag(None, "the column that holds the tags of the words, as a list", IN)
    packing: bool = flag(False, "pack texts end to end in place of padding them", RUN, of_several="never")

    def processor(self, source: Source, model: nn.Module, **options: Any) -> Any:
        tokenizer = super().processor(source, model, **options)
        if getattr(tokenizer, "add_prefix_space", None) is False:  # words come without the space before them
            tokenizer = super().processor(source, model, add_prefix_space=True)
        if not tokenizer.is_fast:
            raise UserError(f"The tokenizer of {source.model} does not tell words apart. Pass another --model.")
        return tokenizer

    def encode(self, rows: datasets.Dataset, processor: Any, train: bool = False) -> datasets.Dataset:
        """Tokenise in batches, on disk: `input_ids`, `attention_mask` ..., `length`, and `labels` of the tokens.

        Rows without tags get labels too: 0 on the first sub-word of each word, by which predictions are read.
        """
        return rows.map(
            self.encoder(processor, rows.column_names, train),
            batched=True,
            remove_columns=rows.column_names,
            new_fingerprint=cache_key(rows, rules(processor), self.limit(processor, False), "words, each with a token"),
            desc=f"Tokenising {len(rows):,} rows",
        )

    def encoder(self, processor: Any, columns: Collection[str], train: bool = False) -> Callable[[Columns], Columns]:
        limit = self.limit(processor, train)

        def tokenise(batch: Columns) -> Columns:
            words = [one.split() if isinstance(one, str) else one for one in batch["tokens"]]
            whole = processor(words, is_split_into_words=True, truncation=False, verbose=False)
            spelt = [visible_words(one, whole.word_ids(i), processor) for i, one in enumerate(words)]
            if spelt != words:
                words, whole = spelt, processor(spelt, is_split_into_words=True, truncation=False, verbose=False)
            made = processor(words, is_split_into_words=True, truncation=True, max_length=limit)
            tags = batch.get("label") or [[0] * len(one) for one in words]
            # rows to predict alone may have more tags than words, or less: -1 has none of them scored
            tags = [tag if len(tag) == len(w) else [-1] * len(w) for tag, w in zip(tags, words, strict=True)]
            labels = [on_first(made.word_ids(i), one) for i, one in enumerate(tags)]
            return dict(made) | {"length": [len(ids) for ids in whole["input_ids"]], "labels": labels}

        return tokenise

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.entities import Entities

        return Entities(labels.names)

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        from hftl.tasks.networks.masking import wide

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            made = padded(rows, processor)
            width, left = made["input_ids"].shape[1], processor.padding_side == "left"
            return made | {"labels": wide([row["labels"] for row in rows], width, IGNORED, left)}

        return batch

    def unbatch(self, logits: np.ndarray, batch: dict[str, torch.Tensor]) -> list[np.ndarray]:
        """The logits of each row's words, (words, tags); words past the longest input are not there."""
        first = batch["labels"].cpu().numpy() != IGNORED
        return [row[kept] for row, kept in zip(logits, first, strict=True)]

    def sections(self, metric: Accumulator, scores: Any, read: Any) -> list[Section]:
        """As any task; a wrong sentence has its words marked by what they are and what was said of them."""
        made = super().sections(metric, scores, read)
        for one in (one for part in made if isinstance(part, Gallery) for one in part.examples):
            true, said = one.label.split(" "), (one.prediction or "").split(" ")
            words = [word for word, _, _ in one.tagged[: len(true)]]
            one.tagged = [[word if len(word) else "␣", *tags] for word, *tags in zip(words, true, said, strict=False)]
            one.label, one.prediction, one.texts = "", None, []
        return made

    def answers(self, outputs: list[np.ndarray], rows: list[dict[str, Any]], labels: Labels) -> list[dict[str, Any]]:
        """`label`: the tag of each word, fewer than words where the text was cut."""
        return [{"label": [labels.names[i] for i in one.argmax(axis=1)]} for one in outputs]

    def examples(self, n: int) -> list[dict[str, Any]]:
        words = ("Ada went from London to Paris and wrote to the Royal Society " * n).split()
        return [{"tokens": words[i : 2 + 4 * i]} for i in range(n)]

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        tokens = row["tokens"].split() if isinstance(row["tokens"], str) else row["tokens"]
        return Example(texts=[" ".join(tokens)], tagged=[[word, "", ""] for word in tokens])


def visible_words(words: list[str], found: list[int | None], processor: Any) -> list[str]:
    """Words of which each has a token, so that each gets a tag: one of which nothing is left is unknown.

    Args:
        found: the word of each token.
    """
    there, unknown = {*found}, processor.unk_token or "."
    return words if len(there - {None}) == len(words) else [w if i in there else unknown for i, w in enumerate(words)]


def on_first(words: list[int | None], tags: list[int]) -> list[int]:
    """The tag of each word on its first sub-word, and IGNORED on all others and on special tokens."""
    made, last = [], None
    for word in words:
        made.append(IGNORED if word is None or word == last else tags[word])
        last = word
    return made
