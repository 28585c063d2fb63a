"""What a task is: the only place that knows a modality. Knows no strategy, trainer or report.

Importing a task costs no torch: its fields are flags, and help answers at once. Methods import what they need.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.roles import Role
from hftl.data.types import Check, Labels, Splits
from hftl.errors import UserError
from hftl.tasks.sections import Example, Gallery, Section

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from hftl.tasks.augment import Augmentation
    from hftl.tasks.metrics.accumulator import Accumulator
    from hftl.tasks.metrics.bootstrap import Score

Columns = dict[str, list[Any]]
DEFAULT = "text-classification"
"""What a recipe learns that names no task."""


@dataclass
class Pretrained:
    """A model ready for its task; `fresh` names the parameters that the checkpoint did not supply."""

    model: nn.Module
    processor: Any
    fresh: set[str]
    revision: str
    checks: list[Check] = field(default_factory=list)
    """What a person should know of how it was built; shown with the checks of the data."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from and what may be done to load it; the fields are Recipe's."""

    model: str
    weights: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


class Task:
    """One kind of learning. Subclass it in a module of `hftl.tasks`, as a dataclass; it is found by `name`.

    Its fields made by `flag` are its settings. A run has an instance of its own; what it learns of rows and model on
    the way (`settle`, `build`) are fields with `init=False`, which is why a task is not frozen.

    `name` is the Hub's pipeline tag, `auto` the name of a transformers auto class, resolved when a model is built.
    """

    name: ClassVar[str]
    auto: ClassVar[str]
    roles: ClassVar[dict[str, Role]]
    """What is read of a row. A field of the same name is the column's."""
    usage: ClassVar[dict[str, str]]
    """Words for a person who uses the model: `script` is the recipe, `new` what to predict, `example` an input in
    Python (`example_pair` a pair), `processor` and `arguments` what a pipeline needs; `next` goes on from there."""
    pooled: ClassVar[bool] = False
    """Whether logits are one vector a row, (n, classes), which a classifier of features of the row can give as well."""
    pools: ClassVar[tuple[str, ...]] = ()
    """Poolings of its tokens that an output layer may read in place of what the model's own head does."""
    decoded: ClassVar[bool] = False
    """Whether reading an encoded row does work that is worth keeping, such as decoding an image."""
    of_several: ClassVar[str] = "each"
    """Of its settings, as `Setting.of_several` has it: where several tasks share an encoder, each has its own."""
    smooths: ClassVar[bool] = False
    """Whether labels are one class an item in the last dimension of the logits, which can be smoothed."""
    whole: ClassVar[bool] = False
    """Whether an adapter is merged into the model that is written, so that any recipe can go on from there."""

    # What a run asks of every task; a task that offers one as a flag declares it as a field.
    max_tokens_per_batch: int | None = None
    packing: bool = False
    metrics: Sequence[str] = ()
    threshold: float | None = None

    @classmethod
    def known(cls) -> dict[str, type[Task]]:
        """Every task by name. Costs no torch."""
        _import_all()
        return {task.name: task for task in _descendants(cls) if "name" in vars(task)}

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether a saved config is one of this task's: whether `auto` makes the architecture that it names."""
        return (config.get("architectures") or ["none"])[0].endswith(cls.auto.removeprefix("AutoModel"))

    def labels_of(self, config: dict[str, Any]) -> Labels:
        """The labels that a saved config names."""
        reads = self.roles["label"].reads
        kind = str(config.get("problem_type"))
        same = [word for word, one in reads.items() if one.amount == (kind == "regression")]
        word = kind if kind in reads else [*same, *reads][0]
        if reads[word].amount:
            return Labels(word, [], amount=True)
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        names = config.get("label_names") or [id2label[key] for key in sorted(id2label, key=int)]
        return Labels(word, list(names))

    @property
    def read_as(self) -> str | None:
        """Which reading of its role the label takes, or what is learned without a label; None lets the column tell."""
        return None

    def settle(self, splits: Splits) -> None:
        """Look at the settings and at the rows, before anything is built; raise `UserError` for what does not read."""

    def cut_at(self, threshold: float | None, labels: Labels) -> None:
        """Give a label from this probability on; `UserError` where a row has not several. None leaves what is set."""
        if threshold is not None:
            raise UserError("--threshold is for several labels a row, and the labels are no such. Leave it out.")

    def build(self, source: Source, labels: Labels) -> Pretrained:
        """Load the model with a head for these labels, and its processor."""
        raise NotImplementedError

    def processor(self, source: Source, model: nn.Module) -> Any:
        """Load the tokenizer or image processor that belongs to a model."""
        raise NotImplementedError

    def encode(self, rows: Any, processor: Any, train: bool = False) -> Any:
        """Turn a data set of role columns into one of model inputs, lazily or cached on disk."""
        raise NotImplementedError

    def encoder(self, processor: Any, columns: Collection[str], train: bool = False) -> Callable[[Columns], Columns]:
        """Return what `encode` does to a batch of these role columns, in memory: a row that is served costs no file."""
        import datasets

        return lambda batch: self.encode(datasets.Dataset.from_dict(batch), processor, train)[:]

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Return a function that makes one batch of encoded rows."""
        raise NotImplementedError

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """What a model makes of a batch in training: `loss`, the mean over its items, and `logits`."""
        return model(**inputs)

    def metric(self, labels: Labels) -> Accumulator:
        """An empty accumulator for these labels: it says the headline, what n counts, and of what less is better."""
        raise NotImplementedError

    def sections(
        self,
        metric: Accumulator,
        scores: Mapping[str, Mapping[str, Score]],
        read: Callable[[int], tuple[dict[str, Any], Callable[[], Any]]],
    ) -> list[Section]:
        """What page and card draw of the results beside the numbers: the metric's sections, and what went most wrong.

        Args:
            metric: as `metric` made it, holding test.
            scores: of valid and test, by split and name.
            read: number of a test row, in the order in which the metric saw it -> the row and `answer`, as in `show`.
        """
        examples = [
            replace(self.show(*read(row)), label=label, prediction=prediction, words=metric.sure(much))
            for row, label, prediction, much in metric.mistakes(12)
        ]
        return metric.sections(scores) + ([Gallery(heading=metric.wrong, examples=examples)] if examples else [])

    def untrained(self, pretrained: Pretrained, test: Any, labels: Labels) -> list[Section]:
        """What the model gives of test rows as it came, to compare with; [] where that is nothing, or costs much."""
        return []

    def outputs(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """What metrics need of a model's outputs, a row each; encoder-decoders also return hidden states."""
        return logits[0] if isinstance(logits, tuple) else logits

    def item_losses(
        self, labels: Labels, train: Any, smoothing: float = 0.0
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """`(logits, labels) -> losses` of shape (items,) to train on; None for the model's own loss.

        Args:
            smoothing: of labels; the Trainer's own smoother does it where this gives None.

        Raises:
            UserError: labels are smoothed that are not one class an item.
        """
        if smoothing and not self.smooths:
            raise UserError(f"--label_smoothing_factor is for one class an item, not for {self.name}. Leave it out.")
        return None

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """The trained model as the folder holds it, and those of its weights that go there; None for all."""
        return model.merge_and_unload() if self.whole and hasattr(model, "peft_config") else model, weights

    def stream(self, view: str, rows: Any, processor: Any) -> tuple[Any, Callable]:
        """Encoded rows without labels and their collator, as a strategy reads them under the name of a `view`.

        "unlabelled" are the rows as they are; a task may have "strong", changed as far as a label survives, and
        "masked", with tokens to be guessed in `labels`.

        Raises:
            UserError: the task has no such view.
        """
        if view != "unlabelled":
            raise UserError(f"The strategy reads {view} rows, which {self.name} has none of. Pass another --strategy.")
        return self.encode(rows, processor), self.collate(processor)

    def unbatch(self, logits: np.ndarray, batch: dict[str, torch.Tensor]) -> Iterable[np.ndarray]:
        """What the model says of each row of a batch: (n, classes), or arrays of their own where rows differ."""
        return logits

    def answers(
        self, outputs: list[np.ndarray], rows: list[dict[str, Any]], labels: Labels
    ) -> Iterable[dict[str, Any]]:
        """What a person gets who calls a loaded model: a prediction for each row.

        Args:
            outputs: of each row, as `unbatch` gives it.
            rows: input roles, undecoded.
        """
        raise NotImplementedError

    def cells(self, answer: dict[str, Any], output: Path, number: int) -> dict[str, Any]:
        """What an answer fills of a line of the table `output`; what fits no cell is saved beside it, by row number."""
        return {"prediction": answer["label"]}

    def usage_of(self, model: nn.Module) -> dict[str, str]:
        """`usage` of a model that `build` has made; `only` says why hftl alone predicts with it, if so."""
        return self.usage

    def augmentation(self) -> Augmentation | None:
        """How training rows are changed at random when they are read; None for not at all."""
        return None

    def changed(self) -> bool:
        """Whether training rows are changed at random when they are read."""
        return self.augmentation() is not None

    def before_after(self, encoded: Any) -> list[Example]:
        """Some encoded training rows, each before and after augmentation."""
        return []

    def identify(self, rows: Any, processor: Any) -> list[bytes]:
        """A 16-byte key of the content of each encoded row: rows of equal keys are equal inputs to any model."""
        names = [name for name in rows.column_names if name not in ("labels", "length")]
        columns = rows.select_columns(names).with_format(None)
        return [
            hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
            for batch in columns.iter(1000)
            for row in zip(*batch.values(), strict=True)
        ]

    def labels(self, encoded: Any, rows: Any, processor: Any) -> Any:
        """The label of each encoded row, where it can be had without the row's inputs; None where there is none."""
        labelled = ((encoded, "labels"), (rows, "label"))
        return next((of[column][:] for of, column in labelled if column in of.column_names), None)

    def examples(self, n: int) -> list[dict[str, Any]]:
        """Rows of input roles, of growing length where rows have one: what two forms of a model are compared on."""
        raise NotImplementedError

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        """What a person sees of one row; `answer()` is what `unbatch` gives of it, where the model has read it."""
        raise NotImplementedError


@functools.cache
def _import_all() -> None:
    """Import every module that may hold a task."""
    for modality in ("text", "image"):
        package = importlib.import_module(f"hftl.tasks.{modality}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def _descendants(cls: type[Task]) -> Iterator[type[Task]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def generator() -> np.random.Generator:
    """Random numbers that follow torch's global generator, on which the order of draws and workers depends."""
    import numpy as np
    import torch

    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))
