"""Scores of tagged words: entities found whole, bootstrapped over sentences. Knows tags as text, no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hftl.data.types import IGNORED
from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.accumulator import Accumulator, finite, largest, shapes, softmax
from hftl.tasks.metrics.bootstrap import Score, Statistic, Values
from hftl.tasks.sections import Baseline, Section, by_class, neglected

LISTED_TYPES = 20  # per-type F1 is listed up to here
_STARTS, _ENDS = {"B", "S", "U"}, {"E", "S", "L", "U"}

Span = tuple[int, int, str]
"""First word, last word, type."""


def spans(tags: Sequence[str]) -> set[Span]:
    """The entities of a sentence, as conlleval reads them (Tjong Kim Sang & De Meulder 2003).

    IOB1, IOB2, IOBES and BILOU tags, read leniently: an I- that follows no word of its type starts an entity. Tags
    without a prefix, such as parts of speech, are an entity a word; O is none.
    """
    found: set[Span] = set()
    start, kind, over = 0, "", True  # of the entity that the last word was in; over: the next word is not in it
    for i, tag in enumerate([*tags, "O"]):
        head, dash, name = tag.partition("-")
        marked = bool(dash) and head in {"B", "I", "E", "L", "S", "U"}
        now = name if marked else "" if tag == "O" else tag
        if kind and (over or not now or now != kind or not marked or head in _STARTS):
            found.add((start, i - 1, kind))
            kind = ""
        if now and not kind:
            start, kind = i, now
        over = not marked or head in _ENDS
    return found


class Entities(Accumulator):
    """Tags of words. Logits [n, words, tags], labels [n, words]; what is -100 is no word of its own.

    f1_entity: 2 hits / (true + found) over entities; one is a hit where first word, last word and type are right.
    precision and recall, likewise; tag_accuracy over words; f1_<type> for up to 20 types. A sentence is a row of the
    bootstrap, since its words are not drawn one by one. n counts sentences.
    """

    headline = "f1_entity"
    unit = "sentence"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.types = sorted({kind for name in names for _, _, kind in spans([name])})
        super().__init__(names)

    @property
    def reported(self) -> list[str]:
        return ["f1_entity", "precision", "recall", "tag_accuracy", *(f"f1_{kind}" for kind in self._listed)]

    @property
    def _listed(self) -> list[str]:
        return self.types if len(self.types) <= LISTED_TYPES else []

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch. Raises UserError for outputs that are not finite or do not fit the labels."""
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.shape != (*labels.shape, len(self.names)):
            raise shapes(f"outputs [n, words, {len(self.names)}] and labels [n, words]", logits, labels)
        counts = np.zeros((3, len(labels), len(self.types)), np.int32)
        right, words, sure, outside = np.zeros((4, len(labels)))
        said = np.empty((2, len(labels)), object)
        for i, row in enumerate(labels):
            kept = row != IGNORED
            scores, true = finite(logits[i][kept]), row[kept].astype(int)
            guess = scores.argmax(axis=1)
            tags = [[self.names[j] for j in one] for one in (true, guess)]
            actual, found = spans(tags[0]), spans(tags[1])
            for column, entities in enumerate((actual & found, actual, found)):
                for _, _, kind in entities:
                    counts[column, i, self.types.index(kind)] += 1
            words[i], right[i], outside[i] = len(true), (true == guess).sum(), tags[0].count("O")
            if right[i] < words[i]:
                sure[i] = softmax(scores).max(axis=1)[true != guess].max()
                said[:, i] = [" ".join(one) for one in tags]
        self.keep(hits=counts[0], actual=counts[1], found=counts[2], label=words, right=right, sure=sure)
        self.keep(outside=outside, true=said[0], guess=said[1], row=self.arrived(len(labels)))

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        each = [self.column(name).sum(axis=0).tolist() for name in ("hits", "actual", "found")]
        outside = float(self.column("outside").sum() / self.column("label").sum())
        none = Baseline(heading="", title="No entity anywhere", value=outside, metric="tag_accuracy")
        counts = list(zip(*each, strict=True))
        return [
            *neglected(self.types, each[1], each[2], one=False),
            none,
            *by_class("F1", self.types, counts, scores, "entities"),
        ]

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        """The sentences whose surest wrong tag is the surest, with all their tags."""
        sure, row, true, guess = map(self.column, ("sure", "row", "true", "guess"))
        return [(int(row[i]), true[i], guess[i], float(sure[i])) for i in largest(sure, most)]

    def statistics(self) -> list[Statistic]:
        hits, actual, found = (self.column(name).astype(np.float64) for name in ("hits", "actual", "found"))
        words, right = self.column("label"), self.column("right")

        def of(weights: np.ndarray) -> Values:
            sums = [weights @ part for part in (hits, actual, found)]
            hit, true, guessed = (part.sum(axis=1) for part in sums)
            each = bootstrap.f1(*sums)[0]
            made = {
                "f1_entity": bootstrap.ratio(2 * hit, true + guessed),
                "precision": bootstrap.ratio(hit, guessed),
                "recall": bootstrap.ratio(hit, true),
                "tag_accuracy": bootstrap.ratio(weights @ right, weights @ words),
            }
            return made | {f"f1_{kind}": each[:, self.types.index(kind)] for kind in self._listed if kind != "entity"}

        return [bootstrap.per_example(len(words), of)]
