"""Image classification: one label or several. Knows images and timm, nothing of text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hftl.data import Labels, Role
from hftl.data.formats.decode import UNREADABLE, opened
from hftl.errors import UserError, suggest
from hftl.tasks.augment import augmentation_of
from hftl.tasks.augment.image import RandAugment
from hftl.tasks.base import (
    Pretrained,
    Source,
    generator,
    label_settings,
    load_pretrained,
    load_processor,
    some,
)
from hftl.tasks.classification import Classification
from hftl.tasks.origin import revision_of


class ImageClassification(Classification):
    """A label for an image, by any `AutoModelForImageClassification`, timm's models included."""

    name: ClassVar[str] = "image-classification"
    auto: ClassVar[str] = "AutoModelForImageClassification"
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/image_cls.py",
        "new": "images",
        "example": '"image.png"',
        "processor": "image_processor",
    }
    options: ClassVar[tuple[str, ...]] = ("augment",)
    decoded: ClassVar[bool] = True
    roles: ClassVar[dict[str, Role]] = {
        "image": Role("image", ("image", "img", "images", "file_name", "path")),
        "label": Role("label", ("label", "labels", "fine_label", "target", "class", "category")),
    }

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return super().reads(config) or ("architectures" not in config and "architecture" in config)  # timm's own form

    def build(self, source: Source, labels: Labels) -> Pretrained:
        if source.model.startswith("timm:"):
            return bare_timm(source, labels)
        model, fresh, revision = load_pretrained(self.auto, source, labels)
        return Pretrained(model, self.processor(source, model), fresh, revision)

    def processor(self, source: Source, model: nn.Module) -> Any:
        return load_processor("AutoImageProcessor", source)

    def encode(
        self,
        rows: datasets.Dataset,
        processor: Any,
        train: bool = False,
        augment: str = "none",
        target: datasets.Dataset | None = None,
    ) -> datasets.Dataset:
        """Decode, augment (in training) and normalise when a row is read. Columns: `pixel_values`, `labels`.

        `pixel_values` has shape (channels, height, width), as the model's own processor makes it.

        Args:
            augment: in the notation of `hftl.tasks.augment`; its randomness is torch's.
            target: unlabelled images that an augmentation may read, in a column `image`.
        """
        found = augmentation_of(augment, "image", target) if train else None

        def read(batch: dict[str, list]) -> dict[str, Any]:
            images = [open_image(value) for value in batch["image"]]
            if found is not None:
                images = [changed(image, found, generator(), target) for image in images]
            made = {"pixel_values": list(processor(images, return_tensors="pt")["pixel_values"])}
            return made | ({"labels": batch["label"]} if "label" in batch else {})

        return rows.with_transform(read)

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return stack

    def stream(
        self, view: str, rows: datasets.Dataset, processor: Any, options: dict[str, Any]
    ) -> tuple[Any, Callable]:
        """As any task; "strong" is RandAugment (Cubuk et al. 2020) with two changes of magnitude 10."""
        if view != "strong":
            return super().stream(view, rows, processor, options)
        change = RandAugment(n=2, magnitude=10)

        def read(batch: dict[str, list]) -> dict[str, Any]:
            images = [change.apply(open_image(value), generator()) for value in batch["image"]]
            return {"pixel_values": list(processor(images, return_tensors="pt")["pixel_values"])}

        return rows.with_transform(read), self.collate(processor)

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """A timm network's weights get timm's own names, so that `timm.create_model` reads the folder, too."""
        if not isinstance(model, transformers.TimmWrapperForImageClassification):
            return model, weights
        held = model.state_dict() if weights is None else weights
        return model, {name.removeprefix("timm_model."): value for name, value in held.items()}

    def changed(self, options: dict[str, Any]) -> bool:
        return augmentation_of(options["augment"], "image", options["target"]) is not None

    def before_after(self, encoded: Any, options: dict[str, Any]) -> list[dict[str, str]]:
        found = augmentation_of(options["augment"], "image", options["target"])
        if found is None:
            return []
        rng = np.random.default_rng(0)
        images = [open_image(row["image"]) for row in some(encoded)]
        return [
            {"before": data_uri(image), "after": data_uri(changed(image, found, rng, options["target"]))}
            for image in images
        ]

    def identify(self, rows: Any, processor: Any) -> list[bytes]:
        told = json.dumps(processor.to_dict(), sort_keys=True, default=str).encode()
        images = rows.with_format(None)["image"]
        return [hashlib.blake2b(told + content(image), digest_size=16).digest() for image in images]

    def examples(self, n: int) -> list[dict[str, Any]]:
        pixels = np.random.default_rng(0).integers(0, 256, (n, 48, 64, 3), dtype=np.uint8)
        return [{"image": Image.fromarray(one)} for one in pixels]

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"image": data_uri(open_image(row["image"]))}


def changed(image: Image.Image, found: Any, rng: np.random.Generator, target: datasets.Dataset | None) -> Image.Image:
    """One image, augmented; `target` has the images that an augmentation may draw from."""
    draw = None if target is None else lambda: open_image(target[int(rng.integers(len(target)))]["image"])
    return found.apply(image, rng, draw)


def data_uri(image: Image.Image, most: int = 96) -> str:
    """An image of so many pixels at most, on its longer side, as text that a page can show."""
    small = image.copy()
    small.thumbnail((most, most))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch of images of one size, with labels where they are known."""
    made = {"pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])}
    if "labels" in rows[0]:
        made["labels"] = torch.as_tensor([row["labels"] for row in rows])
    return made


def content(value: Any) -> bytes:
    """The bytes of an image: of its file, or its pixels where it has none."""
    if isinstance(value, Image.Image):
        return repr((value.mode, value.size)).encode() + value.tobytes()
    if isinstance(value, dict):
        return value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    return Path(value).read_bytes()


def open_image(value: Any) -> Image.Image:
    """An upright RGB image from a file's path, its bytes, or datasets' undecoded `{"bytes", "path"}`.

    Raises UserError where there is none to read.
    """
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value).convert("RGB")
    name = (value.get("path") or "a row without a file name") if isinstance(value, dict) else value
    if isinstance(value, dict):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    try:
        with opened(value) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UNREADABLE as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise UserError(f"Expected an image in {name}; it cannot be read ({reason}). Correct it.") from failure


def bare_timm(source: Source, labels: Labels, make: Callable[[Any], Any] | None = None) -> Pretrained:
    """`timm:NAME`: an architecture of timm's, with `weights` from a safetensors file or else at random.

    Args:
        make: config -> model; else the classifier.
    """
    import timm  # a quarter of a second, which runs of other models are spared

    name = source.model.removeprefix("timm:")
    if not timm.is_model(name):
        guess = suggest(name, timm.list_models()) or " Check --model; timm.list_models() has them all."
        raise UserError(f"timm has no architecture called {name!r}.{guess}")
    cfg = timm.get_pretrained_cfg(name)
    config = transformers.TimmWrapperConfig(  # type: ignore[call-arg]  # its base takes more than it declares
        architecture=name, pretrained_cfg=cfg.to_dict() if cfg else {}, **label_settings(labels)
    )
    model = (make or transformers.TimmWrapperForImageClassification)(config)
    parameters = {key for key, _ in model.named_parameters()}
    fresh = parameters - load_weights(model, source.weights) if source.weights else parameters
    processor = transformers.TimmWrapperImageProcessor(config.pretrained_cfg, architecture=name)
    revision = revision_of(str(Path(source.weights).parent)) if source.weights else "random weights"
    return Pretrained(model, processor, fresh, revision)


def load_weights(model: nn.Module, file: str) -> set[str]:
    """Copy what fits from a safetensors file of a timm model; return the names that were copied.

    Raises:
        UserError: no such file, not safetensors, or weights of another architecture.
    """
    try:
        stored = load_file(file)
    except OSError as failure:
        raise UserError(f"--weights {file} cannot be read: {failure.strerror or failure}.") from failure
    except SafetensorError as failure:
        raise UserError(f"--weights {file} is not a safetensors file: {failure}.") from failure
    own = model.state_dict()
    prefixed = {key if key in own else f"timm_model.{key}": value for key, value in stored.items()}
    fitting = {key: value for key, value in prefixed.items() if key in own and own[key].shape == value.shape}
    if len(fitting) < len(own) // 2:
        raise UserError(
            f"--weights {file} fits another architecture: {len(fitting)} of {len(own)} tensors match. Check --model."
        )
    model.load_state_dict(fitting, strict=False)
    return set(fitting)
