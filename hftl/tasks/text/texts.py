"""Tokenise, pad, key and show texts: what tasks share that read them. Knows tokenizers, nothing of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hftl.data.types import Labels, Splits
from hftl.errors import UserError
from hftl.settings import spec
from hftl.settings.fields import HOW, IN, flag
from hftl.tasks.augment import Augmentation
from hftl.tasks.augment.text import changed
from hftl.tasks.base import Columns, Pretrained, Source, Task, generator
from hftl.tasks.sections import Example

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn

LONGEST = 512
"""Tokens kept of a text by default, where the model could take more."""
MOST = 2**20
"""Characters of a text that are tokenised: a tokenizer takes 200 bytes of memory for each before it cuts."""
SHOWN = 10_000
"""Characters of a text that a report may hold."""


@dataclass
class Tokenised(Task):
    """What tasks share that read tokens: how a model is loaded for them, and how many of a row it reads."""

    max_length: int | None = flag(
        None,
        "longest text in tokens, longer ones are cut; else the model's own",
        IN,
        range="[1, inf)",
        of_several="both",
    )

    def build(self, source: Source, labels: Labels) -> Pretrained:
        from hftl.tasks.loading import load_pretrained

        return load_pretrained(self, source, labels)

    def processor(self, source: Source, model: nn.Module, **options: Any) -> Any:
        from hftl.tasks.loading import load_processor

        tokenizer = load_processor("AutoTokenizer", source, **options)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError(f"The tokenizer of {source.model} has neither a padding nor an end token to pad with.")
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.model_max_length = longest(tokenizer, model)
        return tokenizer

    def limit(self, tokenizer: Any, train: bool, pairs: bool = False) -> int:
        """The number of tokens at which a text or a pair is cut; training leaves it to predictions, in the folder.

        Raises:
            UserError: special tokens alone would fill it.
        """
        limit = min(self.max_length or LONGEST, tokenizer.model_max_length)
        least = 1 + tokenizer.num_special_tokens_to_add(pairs)
        if limit < least:
            raise UserError(
                f"--max_length {limit} leaves no room for text beside special tokens. Pass {least} or more."
            )
        if train:
            tokenizer.model_max_length = limit
        return limit


@dataclass
class Batched(Tokenised):
    """What tasks share whose batches can be filled up to a number of tokens."""

    max_tokens_per_batch: int | None = flag(
        None,
        "fill each batch with texts up to this many tokens, padding counted, in place of a number of rows",
        HOW,
        range="[1, inf)",
        of_several="never",
    )


@dataclass
class Texts(Batched):
    """What tasks share whose rows are texts: how one is augmented, tokenised, padded, keyed and shown."""

    text: str | None = flag(None, "the column that holds the text", IN)

    _target: Any = field(default=None, init=False, repr=False)
    """Unlabelled texts of the target, from which an augmentation draws words."""
    _end: str = field(default="", init=False, repr=False)
    """The token of which every row must have as many: the head of an encoder with a decoder reads the last one."""

    def processor(self, source: Source, model: nn.Module, **options: Any) -> Any:
        made, config = super().processor(source, model, **options), model.config
        self._end = made.eos_token or "" if getattr(config, "is_encoder_decoder", False) else ""
        return made

    def build(self, source: Source, labels: Labels) -> Pretrained:
        made = super().build(source, labels)
        model: Any = made.model
        model.config.pad_token_id = made.processor.pad_token_id  # what pads is the tokenizer's to say
        table = model.get_input_embeddings()
        ids = max(made.processor.get_vocab().values(), default=0)
        if table is not None and ids >= table.weight.shape[0]:
            raise UserError(
                f"The tokenizer of {source.model} has ids up to {ids}, and the model's embedding table ends at "
                f"{table.weight.shape[0] - 1}. Resize the model (resize_token_embeddings) and save it again."
            )
        return made

    def settle(self, splits: Splits) -> None:
        self._target = splits.unlabelled

    def encode(self, rows: datasets.Dataset, processor: Any, train: bool = False) -> datasets.Dataset:
        """Tokenise in batches, on disk. Columns: `input_ids`, `attention_mask` ..., `length`, `labels` where known.

        `length` is the number of tokens before cutting at `max_length`. Texts that are augmented (in training) are
        tokenised when they are read; their `length` is that of the text as it came. The randomness is torch's; words
        are drawn from the texts of the target where there is one, else from the training texts.
        """
        import datasets

        found = self.augmentation() if train else None
        limit = self.limit(processor, train, pairs="text_pair" in rows.column_names)
        tokenise = self.encoder(processor, rows.column_names, train)
        tokenised = rows.map(
            tokenise,
            batched=True,
            remove_columns=rows.column_names,
            new_fingerprint=cache_key(rows, rules(processor), limit, self._end),
            desc=f"Tokenising {len(rows):,} rows",
        )
        if found is None:
            return tokenised
        ready = datasets.concatenate_datasets([rewritten(rows, found), tokenised.select_columns("length")], axis=1)
        words = rows if self._target is None else self._target

        def read(batch: dict[str, list]) -> dict[str, Any]:
            given = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            texts = [altered(row, found, generator(), words) for row in given]
            return tokenise({"label": batch["label"]} | {role: [t[role] for t in texts] for role in texts[0]})

        return ready.with_transform(read)

    def encoder(self, processor: Any, columns: Collection[str], train: bool = False) -> Callable[[Columns], Columns]:
        limit = self.limit(processor, train, pairs="text_pair" in columns)
        end, apart = self._end, " ".join(self._end)

        def part(texts: list[str]) -> list[str]:
            return [text.replace(end, apart) if end else text for text in read_part(texts)]

        def tokenise(batch: Columns) -> Columns:
            texts, pairs = part(batch["text"]), batch.get("text_pair") and part(batch["text_pair"])
            made = dict(processor(texts, pairs, verbose=False))
            lengths = [len(ids) for ids in made["input_ids"]]
            for i in (i for i, length in enumerate(lengths) if length > limit):
                pair = pairs[i] if pairs else None
                for name, ids in processor(texts[i], pair, truncation=True, max_length=limit).items():
                    made[name][i] = ids
            return made | {"length": lengths} | ({"labels": batch["label"]} if "label" in batch else {})

        return tokenise

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        import torch

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            made = padded(rows, processor)
            return made | ({"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else {})

        return batch

    def identify(self, rows: datasets.Dataset, processor: Any) -> list[bytes]:
        """As any task, in a tenth of the time: the tokens of a row are hashed as they lie in memory.

        A row that is tokenised when it is read is known by its texts, and by how they are tokenised and cut.
        """
        if "input_ids" not in rows.column_names:
            how = repr((rules(processor), processor.model_max_length)).encode()
            texts = rows.with_format(None).remove_columns("label")
            return [hashlib.blake2b(key + how, digest_size=16).digest() for key in super().identify(texts, processor)]
        names = [name for name in rows.column_names if name not in ("labels", "length")]
        start = hashlib.blake2b(repr([(name, rows.features[name]) for name in names]).encode(), digest_size=16)
        found = []
        for table in rows.select_columns(names).with_format("arrow").iter(10_000):
            cells = [_bytes_of(table[name].combine_chunks()) for name in names]
            for row in zip(*cells, strict=True):
                key = start.copy()
                key.update(repr([len(cell) for cell in row]).encode())  # where one column ends and the next begins
                key.update(b"".join(row))
                found.append(key.digest())
        return found

    def examples(self, n: int) -> list[dict[str, Any]]:
        words = ("a film and a book that was very good and is not too long " * n).split()
        return [{"text": " ".join(words[i : 2 + 4 * i])} for i in range(n)]

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        parts = [row[role][:SHOWN] for role in ("text", "text_pair") if row.get(role) is not None]
        return Example(texts=[" / ".join(parts)])


def read_part(texts: list[str]) -> list[str]:
    """What is tokenised of each text: MOST characters, past any limit in tokens."""
    return [text[:MOST] for text in texts]


def padded(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """What the model reads of some encoded rows, padded to the longest: (rows, width) each."""
    names = [name for name in tokenizer.model_input_names if name in rows[0]]
    return dict(tokenizer.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt"))


def longest(tokenizer: Any, model: nn.Module) -> int:
    """The longest input in tokens that both tokenizer and position table take."""
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        tables = (
            m for n, m in model.named_modules() if n.endswith("position_embeddings") and hasattr(m, "padding_idx")
        )
        reserved = max((t.padding_idx + 1 for t in tables if t.padding_idx is not None), default=0)  # RoBERTa's family
        limits.append(positions - reserved)
    return min(limit for limit in [*limits, 1_000_000] if limit > 0)


def rewritten(rows: datasets.Dataset, found: Augmentation) -> datasets.Dataset:
    """The rows with what an augmentation computes ahead: for each role of texts a column `versions of ...`, on disk."""
    first = found.parts[0]
    if not first.rewrites:
        return rows
    roles = [role for role in ("text", "text_pair") if role in rows.column_names]
    made = rows.map(
        lambda batch: {f"versions of {role}": first.rewrite(batch[role]) for role in roles},
        batched=True,
        batch_size=8,  # a masked language model gives 30,000 numbers for each token
        new_fingerprint=cache_key(rows, spec.spell(first), first.identity()),
        desc=f"{type(first).__name__} of {len(rows):,} rows, once",
    )
    first.release()
    return made


def altered(
    row: dict[str, Any], found: Augmentation, rng: np.random.Generator, words: datasets.Dataset
) -> dict[str, str]:
    """The texts of a row by role, augmented; new words are drawn from the texts of `words`."""

    def draw() -> str:
        return words[int(rng.integers(len(words)))]["text"]

    roles = [role for role in ("text", "text_pair") if row.get(role) is not None]
    return {role: changed(found, row[role], row.get(f"versions of {role}", []), rng, draw) for role in roles}


def _bytes_of(lists: Any) -> Iterator[bytes]:
    """The numbers of each list of an Arrow array, as bytes."""
    values = lists.flatten().to_numpy(zero_copy_only=False)
    ends = ((lists.offsets.to_numpy() - lists.offsets[0].as_py()) * values.itemsize).tolist()
    whole = values.tobytes()
    return (whole[a:b] for a, b in pairwise(ends))


def cache_key(rows: datasets.Dataset, *how: Any) -> str:
    """Names what is made of these rows in this way, so that datasets finds it again on disk."""
    return hashlib.sha256(repr((rows._fingerprint, *how)).encode()).hexdigest()[:32]


def rules(tokenizer: Any) -> str:
    """How a tokenizer works. datasets' own hash of it changes once it has been used."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        return tokenizer.backend_tokenizer.to_str()
    return repr((tokenizer.name_or_path, sorted(tokenizer.get_vocab().items())))
