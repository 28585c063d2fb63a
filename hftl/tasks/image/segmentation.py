"""Semantic segmentation: a class for each pixel of an image. Knows images and masks, nothing of text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from hftl.data.formats.decode import open_image, opened, read_mask, upright_size
from hftl.data.masks import Masks
from hftl.data.roles import Role
from hftl.data.types import IGNORED, Labels, Splits
from hftl.errors import UserError
from hftl.settings.fields import IN, flag
from hftl.tasks.augment import Augmentation
from hftl.tasks.base import Pretrained, Source
from hftl.tasks.image.classification import ImageClassification, Images, data_uri, file_of, size_of
from hftl.tasks.sections import Example, Gallery, Section

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn

    from hftl.tasks.metrics.accumulator import Accumulator

SHOWN = 160
"""Pixels of the longer side of a picture in the report."""
STRIPS = (
    "The image, its mask, what the model said; below, the class whose pixels were most often taken for another, and "
    "this one. White is no class."
)


@dataclass
class ImageSegmentation(Images):
    """A class for each pixel, by any `AutoModelForSemanticSegmentation`, or by any encoder with a linear layer on top.

    An image and its mask are resized to one size, whatever their shape, and all is measured at that size.
    """

    name: ClassVar[str] = "image-segmentation"
    auto: ClassVar[str] = "AutoModelForSemanticSegmentation"
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/segment.py",
        "new": "images",
        "example": '"image.png"',
        "processor": "image_processor",
    }
    roles: ClassVar[dict[str, Role]] = {
        "image": ImageClassification.roles["image"],
        "label": Role(
            "label",
            ("mask", "masks", "label", "labels", "annotation", "segmentation_mask", "segmentation"),
            reads={"image_segmentation": Masks()},
        ),
    }

    label: str | None = flag(None, "the column that holds the mask or its file name", IN)
    classes: str | None = flag(None, "a file that names the classes, a line each or JSON, by pixel value", IN)
    ignored: list[int] = flag(None, "pixel values that are no class", IN, factory=lambda: [255])
    image_size: str | None = flag(
        None, "height x width to resize to, such as 192x256; else the size that the model reads", IN
    )

    ids: np.ndarray = field(init=False, repr=False, compare=False)
    """(256,): the id of the class that a pixel's value stands for; known when the model is built."""

    def __post_init__(self) -> None:
        reads = {"image_segmentation": Masks(self.classes, tuple(self.ignored))}
        # an instance's own, in place of the class's
        self.roles = self.roles | {"label": replace(self.roles["label"], reads=reads)}  # type: ignore[misc]

    def usage_of(self, model: nn.Module) -> dict[str, str]:
        from hftl.tasks.networks.dense import LinearSegmenter

        own = "Its head is hftl's own, a linear layer on the last feature map, which plain transformers does not have."
        return self.usage | ({"only": own} if isinstance(model, LinearSegmenter) else {})

    def settle(self, splits: Splits) -> None:
        super().settle(splits)
        if self.image_size is not None:
            size_in_words(self.image_size)

    def build(self, source: Source, labels: Labels) -> Pretrained:
        import numpy as np
        import transformers

        from hftl.tasks.loading import load_config, load_pretrained
        from hftl.tasks.networks.dense import segmenter_of

        self.ids = np.full(256, IGNORED, np.int64)
        self.ids[labels.values] = np.arange(len(labels.values))
        if source.model.startswith("timm:"):
            from hftl.tasks.networks.bare_timm import bare_timm

            made = bare_timm(source, labels, lambda config: segmenter_of(config)(config))
            made.processor = self.processor(source, made.model)
            return made
        config = load_config(source, labels)
        known = type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
        config.semantic_loss_ignore_index = config.loss_ignore_index = IGNORED
        try:
            kind = None if known else segmenter_of(config)
        except (KeyError, ValueError, ImportError) as failure:
            raise UserError(f"{source.model} is no encoder of images. Pass another --model.") from failure
        return load_pretrained(self, source, labels, config, kind)

    def processor(self, source: Source, model: nn.Module) -> Any:
        """The model's own, made to resize to exactly one size: no part of an image is cut off."""
        import transformers

        config: Any = model.config
        asked = None if self.image_size is None else size_in_words(self.image_size)
        if isinstance(config, transformers.TimmWrapperConfig):  # it is saved as a part of the model's settings
            cfg = config.pretrained_cfg
            bare = source.model.startswith("timm:")  # else the folder may be an adapter's, with a size of its own
            saved = cfg if bare else super().processor(source, model).data_config
            size = asked or tuple(saved.get("input_size", (3, 224, 224))[1:])
            cfg |= {"input_size": [3, *size], "crop_pct": 1.0, "crop_mode": "squash"}
            return transformers.TimmWrapperImageProcessor(cfg, architecture=config.architecture)
        processor = super().processor(source, model)
        height, width = asked or size_of(processor)
        processor.size = {"height": height, "width": width}
        for name in ("do_center_crop", "do_reduce_labels"):
            if getattr(processor, name, None):
                setattr(processor, name, False)
        return processor

    def augmentation(self) -> Augmentation | None:
        return in_place(super().augmentation())

    def labelling(self, processor: Any, train: bool) -> Callable[[list[Any] | None, list[Any]], list[Any] | None]:
        """(height, width) class ids of each mask, IGNORED for none, at the size of the images."""
        size = size_of(processor)
        return lambda masks, pixels: None if masks is None else [self._ids(mask, size) for mask in masks]

    def _ids(self, mask: Any, size: tuple[int, int]) -> torch.Tensor:
        """(height, width) class ids of a mask, resized without mixing classes; IGNORED where there is none."""
        import numpy as np
        import torch

        if mask is None:
            return torch.full(size, IGNORED)
        pixels = Image.fromarray(read_mask(mask).astype(np.uint8))
        return torch.from_numpy(self.ids[np.asarray(pixels.resize(size[::-1], Image.Resampling.NEAREST))])

    def labels(self, encoded: Any, rows: datasets.Dataset, processor: Any) -> Any:
        """As any task; a mask is read when it is asked for."""
        size = size_of(processor)

        def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"label": [self._ids(mask, size) for mask in batch["label"]]}

        return rows.select_columns(["label"]).with_transform(read)["label"]

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.segments import Segments

        return Segments(labels.names)

    def outputs(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """(n, classes, classes): of each image, the pixels of true class i said to be j; NaN for broken logits."""
        import torch

        from hftl.tasks.networks.dense import confusion

        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.stack([confusion(one, true) for one, true in zip(logits, labels, strict=True)])

    def unbatch(self, logits: np.ndarray, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """The class id of each pixel at the size that the model reads: (n, height, width) uint8."""
        import numpy as np
        import torch

        from hftl.tasks.networks.dense import enlarged

        size = batch["pixel_values"].shape[-2:]
        each = [enlarged(torch.from_numpy(one[None]), size)[0].argmax(0) for one in logits]
        return torch.stack(each).numpy().astype(np.uint8)

    def answers(
        self, outputs: list[np.ndarray], rows: list[dict[str, Any]], labels: Labels
    ) -> Iterator[dict[str, Any]]:
        """`mask`, an image of the size of the row's whose pixels are ids of classes, and the `shares` of each class."""
        import numpy as np

        for ids, row in zip(outputs, rows, strict=True):
            with opened(row["image"]) as image:
                mask = painted(ids).resize(upright_size(image), Image.Resampling.NEAREST)
            counts = np.bincount(ids.ravel(), minlength=len(labels.names))
            yield {"mask": mask, "shares": dict(zip(labels.names, (counts / ids.size).tolist(), strict=True))}

    def cells(self, answer: dict[str, Any], output: Path, number: int) -> dict[str, Any]:
        """`prediction`, a png in the folder `OUTPUT_masks` beside it, then `share_<label>` of each label."""
        file = output.with_name(f"{output.stem}_masks") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        answer["mask"].save(file)
        shares = {f"share_{name}": round(share, 6) for name, share in answer["shares"].items()}
        return {"prediction": f"{file.parent.name}/{file.name}"} | shares

    def sections(self, metric: Accumulator, scores: Any, read: Any) -> list[Section]:
        """As any task; examples are strips of images, with the colours of the classes above."""
        from hftl.tasks.metrics.segments import colour

        made = super().sections(metric, scores, read)
        for gallery in (one for one in made if isinstance(one, Gallery)):
            gallery.wide, gallery.note = True, STRIPS
            gallery.legend = [[name, "#{:02x}{:02x}{:02x}".format(*colour(i))] for i, name in enumerate(metric.names)]
        return made

    def show(self, row: dict[str, Any], answer: Callable[[], Any] | None = None) -> Example:
        """The image, its mask and what the model said, side by side."""
        if answer is None:
            return super().show(row)
        image = open_image(row["image"])
        image.thumbnail((SHOWN, SHOWN))
        said = answer()
        true = self._ids(row["label"], said.shape).numpy()
        strip = Image.new("RGB", (3 * image.width + 8, image.height), "white")
        strip.paste(image, (0, 0))
        for i, ids in enumerate((true, said), 1):
            part = painted(ids).convert("RGB").resize(image.size, Image.Resampling.NEAREST)
            strip.paste(part, (i * (image.width + 4), 0))
        return Example(images=[data_uri(strip, 3 * SHOWN + 8)], name=file_of(row["image"]))


def in_place(found: Augmentation | None) -> Augmentation | None:
    """An augmentation that moves nothing in the image, so that its mask still fits.

    Raises:
        UserError: it moves, cuts or bends.
    """
    for part in found.parts if found else ():
        if not part.in_place:
            known = ", ".join(sorted(name for name, c in Augmentation.known().items() if c.in_place))
            raise UserError(
                f"{type(part).__name__} moves what is in an image, and its mask would stay. Use one of {known}, which "
                "change colours alone, or leave --augment out."
            )
    return found


def size_in_words(words: str) -> tuple[int, int]:
    """`192x256` (height x width) or `224` -> height and width."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", words.strip().lower())
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(size) < 8:
        raise UserError(f"Expected height x width, 8 pixels or more; {words!r} came. Pass --image_size 192x256.")
    return size


def painted(ids: np.ndarray) -> Image.Image:
    """Class ids (height, width) as an image with a palette; what is IGNORED is 255, and white."""
    import numpy as np

    from hftl.tasks.metrics.segments import WHITE, colour

    image = Image.fromarray(np.where(ids < 0, 255, ids).astype(np.uint8), mode="P")
    image.putpalette([*(part for index in range(255) for part in colour(index)), *WHITE])
    return image
