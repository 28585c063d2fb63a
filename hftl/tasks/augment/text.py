"""Augmentations of texts. Knows words as what stands between white space, and draws at random; no tokenizer, no labels.

White space in a changed text becomes single spaces. A language that is written without spaces has one word a text here,
and only the augmentations that use a model change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hftl.errors import UserError, suggest
from hftl.tasks.augment.base import Augmentation, Draw, check_least, check_share

if TYPE_CHECKING:
    import numpy as np

OPERATIONS = ("replace", "insert", "swap", "delete")


@dataclass(frozen=True)
class WordDropout(Augmentation):
    """Each word is left out with probability p (Iyyer et al. 2015, Deep Averaging Networks); one at least stays."""

    kind: ClassVar[str] = "text"

    p: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.p, "WordDropout(p)")

    def apply(self, value: str, rng: np.random.Generator, target: Draw | None = None) -> str:
        return " ".join(_deleted(value.split(), self.p, rng))


@dataclass(frozen=True)
class EDA(Augmentation):
    """One easy change a text: words replaced, inserted, swapped or left out (Wei & Zou 2019, arXiv 1901.11196).

    `alpha` is the share of a text's words that change, one word at least. `words` says where new words come from:
    "data" draws them from a text of the target (--unlabelled), or of train where there is none; "text" from the text
    itself. The paper draws synonyms from WordNet, which this does without, so keep alpha small: a new word may be one
    that the label hangs on. `operations` are any of replace, insert, swap and delete; p is the chance for each text.
    """

    kind: ClassVar[str] = "text"

    alpha: float = 0.1
    p: float = 1.0
    words: Literal["data", "text"] = "data"
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        check_share(self.alpha, "EDA(alpha)")
        check_share(self.p, "EDA(p)")
        for name in self.operations:
            if name not in OPERATIONS:
                known = ", ".join(OPERATIONS)
                raise UserError(f"EDA(operations) takes {known}; {name!r} came.{suggest(name, OPERATIONS)}")
        if not self.operations:
            raise UserError(f"EDA(operations) takes one or more of {', '.join(OPERATIONS)}; none came.")

    def apply(self, value: str, rng: np.random.Generator, target: Draw | None = None) -> str:
        words = value.split()
        if not words or rng.random() >= self.p:
            return value
        operation = self.operations[rng.integers(len(self.operations))]
        if operation == "delete":
            return " ".join(_deleted(words, self.alpha, rng))
        count = max(1, int(self.alpha * len(words)))
        if operation == "swap":
            for _ in range(count):
                i, j = rng.integers(len(words), size=2)
                words[i], words[j] = words[j], words[i]
            return " ".join(words)
        pool = (target().split() if self.words == "data" and target is not None else []) or list(words)
        new = [pool[i] for i in rng.integers(len(pool), size=count)]
        if operation == "replace":
            for place, word in zip(rng.permutation(len(words)), new, strict=False):
                words[place] = word
        else:
            for word in new:
                words.insert(int(rng.integers(len(words) + 1)), word)
        return " ".join(words)


@dataclass(frozen=True)
class MaskedLM(Augmentation):
    """A share p of the tokens drawn anew by a masked language model (Kobayashi 2018, arXiv 1805.06201, unconditional).

    `model` is a folder or a Hub id, such as bert-base-uncased. `versions` of each training text are computed once and
    kept on disk; each time a text is read, one of them is drawn. Stands first in a chain.
    """

    kind: ClassVar[str] = "text"
    rewrites: ClassVar[bool] = True

    p: float = 0.15
    model: str | None = None
    versions: int = 4

    def __post_init__(self) -> None:
        check_share(self.p, "MaskedLM(p)")
        check_least(self.versions, 1, "MaskedLM(versions)")
        if not self.model:
            raise UserError(
                "MaskedLM draws words from a masked language model. "
                "Pass one, as in MaskedLM(model='bert-base-uncased')."
            )

    def rewrite(self, values: list[str]) -> list[list[str]]:
        from hftl.tasks.augment import models

        return models.filled(values, str(self.model), self.p, self.versions)

    def release(self) -> None:
        from hftl.tasks.augment import models

        models.release()

    def identity(self) -> str:
        from hftl.tasks.augment import models

        return models.identity(str(self.model))


@dataclass(frozen=True)
class BackTranslation(Augmentation):
    """Texts translated and back, with sampling (Sennrich 2016, arXiv 1511.06709; Xie 2020, UDA, arXiv 1904.12848).

    `forward` and `backward` are folders or Hub ids of encoder-decoder models of one direction each, such as Marian's,
    with safetensors. `versions` of each training text are computed once and kept on disk; each time a text is read, it
    is replaced by one of them with probability p. Stands first in a chain.
    """

    kind: ClassVar[str] = "text"
    rewrites: ClassVar[bool] = True

    forward: str
    backward: str
    p: float = 0.5
    versions: int = 1

    def __post_init__(self) -> None:
        check_share(self.p, "BackTranslation(p)")
        check_least(self.versions, 1, "BackTranslation(versions)")

    @property
    def chance(self) -> float:
        return self.p

    def rewrite(self, values: list[str]) -> list[list[str]]:
        from hftl.tasks.augment import models

        return models.back_translated(values, self.forward, self.backward, self.versions)

    def release(self) -> None:
        from hftl.tasks.augment import models

        models.release()

    def identity(self) -> str:
        from hftl.tasks.augment import models

        return models.identity(self.forward) + models.identity(self.backward)


def changed(
    found: Augmentation, text: str, versions: list[str], rng: np.random.Generator, target: Draw | None = None
) -> str:
    """One text as training reads it.

    Args:
        versions: what the first part of `found` has made of the text; [] where its work is not done ahead.
    """
    if versions and rng.random() < found.parts[0].chance:
        text = versions[rng.integers(len(versions))]
    return found.apply(text, rng, target)


def _deleted(words: list[str], p: float, rng: np.random.Generator) -> list[str]:
    kept = [word for word, stays in zip(words, rng.random(len(words)) >= p, strict=True) if stays]
    return kept or [words[i] for i in rng.integers(len(words), size=1 if words else 0)]
