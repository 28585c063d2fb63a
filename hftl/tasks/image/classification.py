"""Image classification: one label or several. Knows images and timm, nothing of text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from hftl.data.formats.decode import VERSION, open_image
from hftl.data.roles import Role
from hftl.data.types import Labels, Splits
from hftl.settings.fields import HOW, IN, flag
from hftl.tasks.augment import Augmentation, augmentation_of
from hftl.tasks.augment.base import some
from hftl.tasks.augment.image import RandAugment
from hftl.tasks.base import Columns, Pretrained, Source, Task, generator
from hftl.tasks.classification import PROBLEM_TYPES, Classification
from hftl.tasks.sections import Example

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn


@dataclass
class Images(Task):
    """What tasks share whose rows are images: how one is opened, augmented, laid out for the model, keyed and shown."""

    decoded: ClassVar[bool] = True

    weights: str | None = flag(None, "a .safetensors file for a bare --model timm:NAME", IN, of_several="never")
    image: str | None = flag(None, "the column that holds the image or its file name", IN)
    augment: str = flag(
        "none", "random changes of train: Sketch(0.5) | FDA(beta=0.01); see hftl augmentations", HOW, of_several="never"
    )

    _target: Any = field(default=None, init=False, repr=False)
    """Unlabelled images of the target, which an augmentation may read."""

    def settle(self, splits: Splits) -> None:
        self._target = splits.unlabelled

    def augmentation(self) -> Augmentation | None:
        return augmentation_of(self.augment, "image", self._target)

    def labelling(self, processor: Any, train: bool) -> Callable[[list[Any] | None, list[Any]], list[Any] | None]:
        """How labels of the model are made of the cells of some rows, where there are labels, and of their pixels."""
        return lambda cells, pixels: cells

    def build(self, source: Source, labels: Labels) -> Pretrained:
        from hftl.tasks.loading import load_pretrained

        return load_pretrained(self, source, labels)

    def processor(self, source: Source, model: nn.Module) -> Any:
        from hftl.tasks.loading import load_processor

        return load_processor("AutoImageProcessor", source)

    def encode(self, rows: datasets.Dataset, processor: Any, train: bool = False) -> datasets.Dataset:
        """Decode, augment (in training) and normalise when a row is read. Columns: `pixel_values`, `labels`.

        `pixel_values` has shape (channels, height, width), as the model's own processor makes it. The
        randomness of an augmentation is torch's.
        """
        return rows.with_transform(self.encoder(processor, rows.column_names, train))

    def encoder(self, processor: Any, columns: Collection[str], train: bool = False) -> Callable[[Columns], Columns]:
        found, labels = self.augmentation() if train else None, self.labelling(processor, train)

        def read(batch: Columns) -> Columns:
            images = [open_image(value) for value in batch["image"]]
            if found is not None:
                images = [changed(image, found, generator(), self._target) for image in images]
            pixels = list(processor(images, return_tensors="pt")["pixel_values"])
            made = labels(batch.get("label"), pixels)
            return {"pixel_values": pixels} | ({} if made is None else {"labels": made})

        return read

    def collate(self, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        return stack

    def stream(self, view: str, rows: datasets.Dataset, processor: Any) -> tuple[Any, Callable]:
        """As any task; "strong" is RandAugment (Cubuk et al. 2020) with two changes of magnitude 10."""
        if view != "strong":
            return super().stream(view, rows, processor)
        change = RandAugment(n=2, magnitude=10)

        def read(batch: dict[str, list]) -> dict[str, Any]:
            images = [change.apply(open_image(value), generator()) for value in batch["image"]]
            return {"pixel_values": list(processor(images, return_tensors="pt")["pixel_values"])}

        return rows.with_transform(read), self.collate(processor)

    def before_after(self, encoded: Any) -> list[Example]:
        import numpy as np

        found = self.augmentation()
        if found is None:
            return []
        rng = np.random.default_rng(0)
        images = [open_image(row["image"]) for row in some(encoded)]
        return [
            Example(images=[data_uri(image), data_uri(changed(image, found, rng, self._target))]) for image in images
        ]

    def identify(self, rows: Any, processor: Any) -> list[bytes]:
        told = json.dumps([VERSION, processor.to_dict()], sort_keys=True, default=str).encode()
        images = rows.select_columns(["image"]).with_format(None)["image"]
        return [hashlib.blake2b(told + content(image), digest_size=16).digest() for image in images]

    def examples(self, n: int) -> list[dict[str, Any]]:
        import numpy as np

        pixels = np.random.default_rng(0).integers(0, 256, (n, 48, 64, 3), dtype=np.uint8)
        return [{"image": Image.fromarray(one)} for one in pixels]

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        return Example(images=[data_uri(open_image(row["image"]))], name=file_of(row["image"]))


@dataclass
class ImageClassification(Classification, Images):
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
    roles: ClassVar[dict[str, Role]] = {
        "image": Role("image", ("image", "img", "images", "file_name", "filename", "path", "filepath", "image_path")),
        "label": Role("label", ("label", "labels", "fine_label", "target", "class", "category"), reads=PROBLEM_TYPES),
    }

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        return super().reads(config) or ("architectures" not in config and "architecture" in config)  # timm's own form

    def build(self, source: Source, labels: Labels) -> Pretrained:
        if not source.model.startswith("timm:"):
            return super().build(source, labels)
        from hftl.tasks.networks.bare_timm import bare_timm  # timm costs a quarter of a second

        return bare_timm(source, labels)

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """A timm network's weights get timm's own names, so that `timm.create_model` reads the folder, too."""
        import transformers

        if not isinstance(model, transformers.TimmWrapperForImageClassification):
            return model, weights
        held = model.state_dict() if weights is None else weights
        return model, {name.removeprefix("timm_model."): value for name, value in held.items()}


def changed(image: Image.Image, found: Any, rng: np.random.Generator, target: datasets.Dataset | None) -> Image.Image:
    """One image, augmented; `target` has the images that an augmentation may draw from."""
    draw = None if target is None else lambda: open_image(target[int(rng.integers(len(target)))]["image"])
    return found.apply(image, rng, draw)


def file_of(value: Any) -> str:
    """The last two parts of the name of an image's file, its folder being its class as often as not; "" without one."""
    path = (value.get("path") or "") if isinstance(value, dict) else value if isinstance(value, str) else ""
    return "/".join(Path(path).parts[-2:])


def data_uri(image: Image.Image, most: int = 96) -> str:
    """An image of so many pixels at most, on its longer side, as text that a page can show."""
    small = image.copy()
    small.thumbnail((most, most))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch of images of one size, with labels where they are known."""
    import torch

    names = [name for name in ("pixel_values", "labels") if name in rows[0]]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names}


def content(value: Any) -> bytes:
    """The bytes of an image: of its file, or its pixels where it has none."""
    if isinstance(value, Image.Image):
        return repr((value.mode, value.size)).encode() + value.tobytes()
    if isinstance(value, dict):
        return value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
    return Path(value).read_bytes()


def size_of(processor: Any) -> tuple[int, int]:
    """Height and width of the images that a processor makes."""
    made = processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    return int(made.shape[-2]), int(made.shape[-1])
