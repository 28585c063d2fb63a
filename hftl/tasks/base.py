"""What a task is, and how any pre-trained model is found and loaded. A task is the only place that knows a modality.

Knows the Hub, local folders and the checkpoints that ship with packages; knows no strategy, trainer or report.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import transformers
from torch import nn

from hftl.data import Check, Labels, Role
from hftl.data.types import PROBLEM_TYPES
from hftl.errors import UserError, explained
from hftl.tasks.origin import check_shards, pinned, resolve, revision_of

if TYPE_CHECKING:
    from hftl.tasks.metrics.accumulator import Accumulator


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
    """One kind of learning. Subclass it in a module of `hftl.tasks`; it is found by `name`.

    `name` is the Hub's pipeline tag, `auto` the name of a transformers auto class, resolved when a model is built.
    """

    name: ClassVar[str]
    auto: ClassVar[str]
    roles: ClassVar[dict[str, Role]]
    usage: ClassVar[dict[str, str]]
    """Words for a person who uses the model: `script` is the recipe, `new` what to predict, `example` an input in
    Python (`example_pair` one with two texts), `processor` and `arguments` what a transformers pipeline needs; `next`
    is the recipe that goes on from a model which predicts nothing itself."""
    options: ClassVar[tuple[str, ...]] = ()
    """Settings of a Recipe that `encode` takes."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Settings of a Recipe that `settle` takes."""
    problem_type: ClassVar[str | None] = None
    """How labels are read, where the labels themselves do not tell; None where they do."""
    pooled: ClassVar[bool] = False
    """Whether logits are one vector a row, (n, classes), which a classifier of features of the row can give as well."""
    decoded: ClassVar[bool] = False
    """Whether reading an encoded row does work that is worth keeping, such as decoding an image."""

    @classmethod
    def known(cls) -> dict[str, type[Task]]:
        _import_all()
        return {task.name: task for task in _descendants(cls) if "name" in vars(task)}

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether a saved config is one of this task's: whether `auto` makes the architecture that it names."""
        return (config.get("architectures") or ["none"])[0].endswith(cls.auto.removeprefix("AutoModel"))

    def labels_of(self, config: dict[str, Any]) -> Labels:
        """The labels that a saved config names."""
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        names = config.get("label_names") or [id2label[key] for key in sorted(id2label, key=int)]
        return Labels(self.problem_type or "", list(names))

    def settle(self, settings: dict[str, Any], train: Any) -> None:
        """Take in `settings` and the training rows, before anything is built."""

    def build(self, source: Source, labels: Labels) -> Pretrained:
        """Load the model with a head for these labels, and its processor."""
        raise NotImplementedError

    def processor(self, source: Source, model: nn.Module) -> Any:
        """Load the tokenizer or image processor that belongs to a model."""
        raise NotImplementedError

    def encode(self, rows: Any, processor: Any, train: bool = False) -> Any:
        """Turn a data set of role columns into one of model inputs, lazily or cached on disk."""
        raise NotImplementedError

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        """Return a function that makes one batch of encoded rows."""
        raise NotImplementedError

    def metric(self, labels: Labels) -> Accumulator:
        """An empty accumulator for these labels: it says the headline, what n counts, and of what less is better."""
        raise NotImplementedError

    def outputs(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """What metrics need of a model's outputs, a row each; encoder-decoders also return hidden states."""
        return logits[0] if isinstance(logits, tuple) else logits

    def item_losses(
        self, labels: Labels, train: Any, class_weights: str | None
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """`(logits, labels) -> losses` of shape (items,) to train on; None for the model's own loss.

        Raises:
            UserError: `class_weights` where a row has no class or several.
        """
        if class_weights is not None:
            kind = labels.problem_type
            raise UserError(f"--class_weights {class_weights} needs one label a row; here the labels are a {kind}.")
        return None

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """The trained model as the folder holds it, and those of its weights that go there; None for all."""
        return model, weights

    def stream(self, view: str, rows: Any, processor: Any, options: dict[str, Any]) -> tuple[Any, Callable]:
        """Encoded rows without labels and their collator, as a strategy reads them under the name of a `view`.

        "unlabelled" are the rows as they are; a task may have "strong", changed as far as a label survives, and
        "masked", with tokens to be guessed in `labels`.

        Raises:
            UserError: the task has no such view.
        """
        if view != "unlabelled":
            raise UserError(f"The strategy reads {view} rows, which {self.name} has none of. Pass another --strategy.")
        return self.encode(rows, processor, **options), self.collate(processor)

    def unbatch(self, logits: np.ndarray, batch: dict[str, torch.Tensor]) -> Iterable[np.ndarray]:
        """What the model says of each row of a batch: here (n, classes); arrays of their own where rows differ."""
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
        """What an answer fills of a line of the csv `output`; what fits no cell is saved beside it, by row number."""
        label = answer["label"]
        return {"prediction": "|".join(label) if isinstance(label, list) else label}

    def usage_of(self, model: nn.Module) -> dict[str, str]:
        """`usage` of a model that `build` has made; `only` where no other library than hftl reads it."""
        return self.usage

    def changed(self, options: dict[str, Any]) -> bool:
        """Whether training rows are changed at random when they are read."""
        return False

    def before_after(self, encoded: Any, options: dict[str, Any]) -> list[dict[str, str]]:
        """Some encoded training rows `before` and `after` augmentation: texts, or images as data: URIs."""
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

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        """What a person sees of one row in the report: `{"text": ...}` or `{"image": data URI}`."""
        raise NotImplementedError

    def show_wrong(self, row: dict[str, Any], answer: Callable[[], Any]) -> dict[str, str]:
        """As `show`, of a row that the model got wrong; `answer()` is what `unbatch` gives of it."""
        return self.show(row)


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
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def some(encoded: Any, most: int = 8) -> list[dict[str, Any]]:
    """Rows from all over a data set, with its columns as they are stored."""
    plain = encoded.with_format(None)
    return [plain[int(i)] for i in np.linspace(0, len(plain) - 1, min(most, len(plain)))]


def load_pretrained(auto: Any, source: Source, labels: Labels, config: Any = None) -> tuple[Any, set[str], str]:
    """Load a checkpoint for a task: the model in float32, the names of its fresh parameters, and its revision.

    Args:
        auto: the name of an auto class or of a model's class, or a model's class.
        config: the model's settings, where they are not the checkpoint's own with these labels.

    Raises:
        UserError: no such model, no network, only pickle weights, or an architecture without such a head.
    """
    if source.weights or source.model.startswith("timm:"):
        raise UserError(
            f"--weights and --model timm:NAME go together, for images alone; --model is {source.model} and --weights "
            f"{source.weights}. Pass --model with a folder or a Hub id, and leave --weights out."
        )
    path = resolve(source.model)
    check_shards(path)
    auto_class = getattr(transformers, auto) if isinstance(auto, str) else auto
    revision = pinned(path, source.revision)
    common = {"revision": revision, "trust_remote_code": source.trust_remote_code}
    with explained("load", source.model, auto=auto_class.__name__, what="a model"):
        config = config or transformers.AutoConfig.from_pretrained(path, **common, **label_settings(labels))
        if hasattr(config, "label_names"):  # a timm config keeps the old names beside id2label, and saves these
            config.label_names = labels.names
        model, info = auto_class.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=None if source.allow_pickle else True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **common,
        )
    fresh = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    names = {name for name, _ in model.named_parameters()}
    return model, fresh & names, revision_of(path, revision)


def load_processor(auto: str, source: Source) -> Any:
    """Load a tokenizer or an image processor by the name of its auto class."""
    what = "a tokenizer" if auto == "AutoTokenizer" else "an image processor"
    with explained("load", source.model, auto=auto, what=what):
        return getattr(transformers, auto).from_pretrained(
            resolve(source.model), revision=source.revision, trust_remote_code=source.trust_remote_code
        )


def load_config(source: Source, labels: Labels | None = None) -> Any:
    """The settings of a model on disk or on the Hub, with these labels where there are any."""
    with explained("load", source.model, auto="AutoConfig", what="a model"):
        return transformers.AutoConfig.from_pretrained(
            resolve(source.model),
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            **(label_settings(labels) if labels is not None else {}),
        )


def label_settings(labels: Labels) -> dict[str, Any]:
    """The part of a transformers config that says what is predicted; nothing where there are no labels."""
    if labels.problem_type == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    if not labels.names:
        return {}
    return {
        "num_labels": len(labels.names),
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: index for index, name in enumerate(labels.names)},
        "problem_type": labels.problem_type if labels.problem_type in PROBLEM_TYPES else None,
    }
