"""A tokenizer's vocabulary extended by the words of a new domain. Knows tokenizers and embeddings, and no task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken

from hftl.errors import UserError

_WORD = re.compile(r"[^\W\d_]{2,}")  # letters alone: numbers and names of files would fill the vocabulary


def new_words(tokenizer: Any, texts: Iterable[str], count: int) -> list[str]:
    """The `count` most frequent words of the texts that the tokenizer splits into several pieces; of equals by letter.

    Words are runs of letters, lower case where the tokenizer lowers them.

    Raises:
        UserError: the tokenizer is no fast one, so what it does with a text cannot be asked of it.
    """
    if not tokenizer.is_fast:
        raise UserError("--add_tokens needs a fast tokenizer; this model has none. Leave it out.")
    normalizer = tokenizer.backend_tokenizer.normalizer
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_WORD.findall(normalizer.normalize_str(text) if normalizer is not None else text))
    ranked = sorted(found, key=lambda word: (-found[word], word))
    chosen: list[str] = []
    for word in ranked:
        if len(chosen) == count:
            break
        if len(pieces(tokenizer, word)) > 1:
            chosen.append(word)
    return chosen


def pieces(tokenizer: Any, word: str) -> list[int]:
    """The ids of a word within a text, without special tokens."""
    return tokenizer(f" {word}", add_special_tokens=False)["input_ids"]


def extend(model: Any, tokenizer: Any, words: list[str]) -> None:
    """Add words to the tokenizer; the embedding of each is the mean of its pieces' embeddings, in and out.

    After Gee et al. 2022 (Fast Vocabulary Transfer, section 3). Changes both in place. The words go after the
    tokenizer's last id; rows that the model has beyond it are used first.
    """
    parts = [torch.tensor(pieces(tokenizer, word)) for word in words]
    # a space before the word goes with it: most vocabularies make it a part of the token, the others drop it
    tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=True) for word in words])
    ids = tokenizer.convert_tokens_to_ids(words)
    if missed := [word for word, new in zip(words, ids, strict=True) if pieces(tokenizer, word) != [new]]:
        raise UserError(f"This tokenizer does not find added words, such as {missed[0]!r}. Leave --add_tokens out.")
    if not words:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None:
        tables += [w for w in (output.weight, output.bias) if w is not None and w is not tables[0]]
    with torch.no_grad():
        for table in tables:
            for new, old in zip(ids, parts, strict=True):
                table[new] = table[old].mean(0)
