"""Choose the right one of several texts: each row holds a question and its choices. Knows tokenizers, no images."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.readings import OneClass
from hftl.data.roles import Role
from hftl.data.types import Labels, Splits
from hftl.errors import UserError
from hftl.settings.fields import IN, flag
from hftl.tasks.base import Columns, Pretrained, Source
from hftl.tasks.sections import Example
from hftl.tasks.text.texts import Tokenised, cache_key, padded, read_part, rules

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch

    from hftl.tasks.metrics.accumulator import Accumulator


@dataclass
class MultipleChoice(Tokenised):
    """The right one of a question's choices, by any `AutoModelForMultipleChoice` (Radford et al. 2018, section 3.3).

    Each choice is read beside the question; the logits of a row are a score for each of its choices.
    """

    smooths: ClassVar[bool] = True
    name: ClassVar[str] = "multiple-choice"
    auto: ClassVar[str] = "AutoModelForMultipleChoice"
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/multiple_choice.py",
        "new": "new.jsonl",
        "example": '{"text": "a question", "choices": ["one answer", "another"]}',
        "processor": "tokenizer",
        "only": "Plain transformers loads the model, and has no pipeline for it.",
    }
    roles: ClassVar[dict[str, Role]] = {
        "text": Role("text", ("question", "text", "context", "prompt", "sent1")),
        "choices": Role("words", ("choices", "endings", "options")),
        "label": Role("label", ("label", "answer", "answerKey", "correct"), reads={"choice": OneClass()}),
    }

    text: str | None = flag(None, "the column that holds the question", IN)
    choices: str | None = flag(None, "the column that holds the choices of each row, as a list of texts", IN)
    label: str | None = flag(None, "the column that says which choice is right: its place from 0, or its letter", IN)

    _places: list[int] = field(default_factory=list, init=False, repr=False)
    """The place among the choices that each label of the data stands for."""
    _count: int = field(default=0, init=False, repr=False)
    """Choices a row, as the model has learnt them."""

    def settle(self, splits: Splits) -> None:
        """Read labels as places among the choices; afterwards there is a label for each place.

        Raises:
            UserError: rows differ in their number of choices, or a label is no place among them.
        """
        counts = {len(row) for split in (splits.train, splits.valid, splits.test) for row in split["choices"]}
        if len(counts) != 1:
            raise UserError(
                f"Expected as many choices in each row; there are rows of {min(counts)} and of {max(counts)}. "
                "Leave out the shorter ones, or fill them up."
            )
        given, most = splits.labels.names, counts.pop()
        letters = all(len(name) == 1 and name.isalpha() for name in given)
        self._places = [ord(name.upper()) - ord("A") if letters else place(name) for name in given]
        if wrong := [name for name, at in zip(given, self._places, strict=True) if not 0 <= at < most]:
            raise UserError(
                f"Expected labels that are places among {most} choices, 0 to {most - 1} or A to "
                f"{chr(ord('A') + most - 1)}; {wrong[0]!r} came. Correct the column, or pass another --label."
            )
        splits.labels.names = [chr(ord("A") + i) if letters else str(i) for i in range(most)]

    def build(self, source: Source, labels: Labels) -> Pretrained:
        self._count = len(labels.names)
        self._places = self._places or [*range(self._count)]
        return super().build(source, labels)

    def encode(self, rows: datasets.Dataset, processor: Any, train: bool = False) -> datasets.Dataset:
        """Tokenise in batches, on disk: `input_ids`, `attention_mask` ..., each a list for each choice of a row.

        `length` is the number of tokens of the longest choice with its question, before cutting; `labels` is the place
        of the right choice, where it is known.
        """
        limit = self.limit(processor, train, pairs=True)
        return rows.map(
            self.encoder(processor, rows.column_names, train),
            batched=True,
            remove_columns=rows.column_names,
            new_fingerprint=cache_key(rows, rules(processor), limit, "choices", self._places),
            desc=f"Tokenising {len(rows):,} rows",
        )

    def encoder(self, processor: Any, columns: Collection[str], train: bool = False) -> Callable[[Columns], Columns]:
        import numpy as np

        limit = self.limit(processor, train, pairs=True)

        def tokenise(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            if self._count and (odd := {len(choices) for choices in batch["choices"]} - {self._count}):
                raise UserError(f"Expected {self._count} choices, as in training; {min(odd)} came. Correct it.")
            ends = np.cumsum([len(choices) for choices in batch["choices"]]).tolist()
            starts = [0, *ends[:-1]]
            questions = [q for q, choices in zip(batch["text"], batch["choices"], strict=True) for _ in choices]
            pairs = read_part(questions), read_part([one for choices in batch["choices"] for one in choices])
            flat = processor(*pairs, truncation=True, max_length=limit)
            lengths = [len(ids) for ids in processor(*pairs, verbose=False)["input_ids"]]
            rows = list(zip(starts, ends, strict=True))
            made = {name: [values[i:j] for i, j in rows] for name, values in flat.items()}
            made["length"] = [max(lengths[i:j]) for i, j in rows]
            labels = [self._places[i] if i >= 0 else i for i in batch.get("label", ())]
            return made | ({"labels": labels} if "label" in batch else {})

        return tokenise

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        import torch

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            names = [name for name in processor.model_input_names if name in rows[0]]
            counts = {len(row[names[0]]) for row in rows}
            if len(counts) > 1:
                raise UserError(f"Expected as many choices in each row; rows of {sorted(counts)} came. Fill them up.")
            made = padded([{name: row[name][i] for name in names} for row in rows for i in range(*counts)], processor)
            found = {name: value.view(len(rows), -1, value.shape[-1]) for name, value in made.items()}
            return found | ({"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else {})

        return batch

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.classification import SingleLabel

        return SingleLabel(labels.names)

    def answers(self, outputs: list[np.ndarray], rows: list[dict[str, Any]], labels: Labels) -> list[dict[str, Any]]:
        """`label` and the text of the likeliest choice of each row, its `score`, and the `scores` of all in order."""
        from hftl.tasks.metrics.accumulator import softmax

        made = []
        for logits, row in zip(outputs, rows, strict=True):
            scores = softmax(logits[None])[0]
            best = int(scores.argmax())
            name = labels.names[best] if best < len(labels.names) else str(best)
            chosen = {"label": name, "answer": row["choices"][best], "score": float(scores[best])}
            made.append(chosen | {"scores": scores.tolist()})
        return made

    def examples(self, n: int) -> list[dict[str, Any]]:
        words = ("who went from London to Paris and wrote to the Royal Society " * n).split()
        return [{"text": " ".join(words[i : 2 + 4 * i]), "choices": words[i : i + 3]} for i in range(n)]

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        return Example(texts=[row["text"], *(f"{i}: {choice}" for i, choice in enumerate(row["choices"]))])


def place(name: str) -> int:
    """The number that a label's name is, -1 where it is none."""
    return int(name) if name.isdecimal() else -1
