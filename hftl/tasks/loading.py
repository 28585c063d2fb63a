"""Any pre-trained model and its processor loaded for a task: folders, the Hub, packages. Imported when one is built."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers

from hftl.data.types import Labels
from hftl.errors import UserError, explained
from hftl.tasks.arrival import arrived, deaf, head_by_name, outer_prefix, refuse_strange
from hftl.tasks.base import Pretrained, Source, Task
from hftl.tasks.classification import PROBLEM_TYPES, REGRESSION
from hftl.tasks.origin import check_shards, pinned, resolve, revision_of

ABOUT_LABELS = (
    *("_name_or_path", "architectures", "id2label", "label2id", "label_names", "num_labels", "num_classes"),
    "problem_type",
)
"""Settings in a model's config that its body does not read."""


def load_pretrained(
    task: Task, source: Source, labels: Labels, config: Any = None, auto_class: Any = None
) -> Pretrained:
    """Load a checkpoint for a task, the model in float32, and its processor.

    Args:
        config: the model's settings, where they are not the checkpoint's own with these labels.
        auto_class: what makes the model, where it is not the task's `auto`.

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
    auto_class = auto_class or getattr(transformers, task.auto)
    revision = pinned(path, source.revision)
    common = {"revision": revision, "trust_remote_code": source.trust_remote_code}
    with explained("load", source.model, auto=auto_class.__name__, what="a model"):
        known = known_classes(transformers.AutoConfig.from_pretrained(path, **common))
        config = config or transformers.AutoConfig.from_pretrained(path, **common, **label_settings(labels))
        if hasattr(config, "label_names"):  # a timm config keeps the old names beside id2label, and saves these
            config.label_names = labels.names
        how: dict[str, Any] = {
            "dtype": torch.float32,
            "use_safetensors": None if source.allow_pickle else True,
            **common,
        }
        how |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = auto_class.from_pretrained(path, config=config, **how)
        if len(fresh_of(model, info)) == len(list(model.parameters())) and (
            prefix := outer_prefix(info["unexpected_keys"], "timm_model.")
        ):
            how["key_mapping"] = {f"^{re.escape(prefix)}": ""}
            model, info = auto_class.from_pretrained(path, config=config, **how)
    fresh, left_over = fresh_of(model, info), info["unexpected_keys"]
    refuse_strange(model, fresh, left_over, source.model)
    checks = [arrived(model, fresh, left_over)]
    fresh, about_head = head_by_name(model, fresh, known, labels, auto_class)
    checks += [*about_head, *deaf(model)]
    return Pretrained(model, task.processor(source, model), fresh, revision_of(path, revision), checks)


def fresh_of(model: Any, info: dict[str, Any]) -> set[str]:
    """The parameters that a checkpoint has not supplied, or in another size."""
    missing = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    return missing & {name for name, _ in model.named_parameters()}


def known_classes(config: Any) -> list[str]:
    """The names of a checkpoint's classes, in order."""
    return list(getattr(config, "label_names", None) or [config.id2label[key] for key in sorted(config.id2label)])


def load_processor(auto: str, source: Source, **options: Any) -> Any:
    """Load a tokenizer or an image processor by the name of its auto class."""
    what = "a tokenizer" if auto == "AutoTokenizer" else "an image processor"
    with explained("load", source.model, auto=auto, what=what):
        return getattr(transformers, auto).from_pretrained(
            resolve(source.model), revision=source.revision, trust_remote_code=source.trust_remote_code, **options
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
    if labels.amount:
        return {"num_labels": 1, "problem_type": REGRESSION}
    if not labels.names:
        return {}
    return {
        "num_labels": len(labels.names),
        "id2label": dict(enumerate(labels.names)),
        "label2id": {name: index for index, name in enumerate(labels.names)},
        "problem_type": labels.read_as if labels.read_as in PROBLEM_TYPES else None,
    }
