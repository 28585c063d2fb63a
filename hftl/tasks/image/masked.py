"""Self-supervised pre-training on images: SimMIM, MAE, SimCLR. Knows which model takes which; nothing of text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.formats.decode import open_image
from hftl.data.roles import Role
from hftl.data.types import IGNORED, Labels
from hftl.errors import UserError
from hftl.settings.fields import HOW, flag
from hftl.tasks.base import Pretrained, Source, Task
from hftl.tasks.image.classification import ImageClassification, Images, content, size_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hftl.tasks.metrics.accumulator import Accumulator
    from hftl.tasks.sections import Example

SHARES = {"simmim": 0.6, "mae": 0.75, "simclr": 0.0}
SQUARE = 32
"""Pixels of a square that SimMIM hides, where at least four go beside each other (Xie et al. 2022, section 4.1.2)."""


@dataclass
class MaskedImage(Images):
    """What was hidden of an image, or which view belongs to it.

    Training images are hidden anew whenever they are read; those of valid and test always alike, as their content
    decides, so that all evaluations compare.
    """

    name: ClassVar[str] = "image-feature-extraction"
    auto: ClassVar[str] = "AutoModelForMaskedImageModeling"
    read_as = "pretext"
    whole: ClassVar[bool] = True
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/mim.py",
        "new": "images",
        "example": '"image.png"',
        "processor": "image_processor",
        "next": "recipes/image_cls.py",
    }
    roles: ClassVar[dict[str, Role]] = {"image": ImageClassification.roles["image"]}

    mask: float | None = flag(None, "the share of patches to hide; else 0.6, or 0.75 for MAE", HOW, range="(0, 1)")
    method: str = flag(
        "auto",
        "simmim or mae (hidden patches; of a ViT, DeiT, Swin), simclr (two views); auto by model",
        HOW,
        choices=("auto", *SHARES),
    )

    # Known when the model is built.
    chosen: str = field(default="", init=False)
    """The method, where it was `auto`, too."""
    share: float = field(default=0.0, init=False)
    side: int = field(default=0, init=False)
    """How many patches are beside each other."""
    unit: int = field(default=1, init=False)
    """Patches on a side of a square that is hidden whole."""
    size: tuple[int, int] = field(default=(0, 0), init=False)
    """Height and width of the images that the processor makes."""
    head: set[str] = field(default_factory=set, init=False, repr=False)
    """Parameters that are thrown away in the end."""

    def build(self, source: Source, labels: Labels) -> Pretrained:
        from hftl.tasks.loading import load_config

        config = None if source.model.startswith("timm:") else load_config(source)
        self.chosen = fitting(config) if self.method == "auto" else self.method
        if self.chosen == "simclr" and self.mask is not None:
            raise UserError("--mask is for SimMIM and MAE; SimCLR hides nothing. Leave it out.")
        self.share = self.mask or SHARES[self.chosen]
        return {"simmim": self._simmim, "mae": self._mae, "simclr": self._simclr}[self.chosen](source, config)

    def forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        from hftl.tasks.networks.views import METHODS

        return METHODS[self.chosen](model, inputs)

    def _simmim(self, source: Source, config: Any) -> Pretrained:
        import transformers

        from hftl.tasks.loading import load_pretrained

        if config is None or type(config) not in transformers.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING:
            raise UserError(f"{source.model} has no patches to hide. Pass --method simclr, or a ViT, DeiT or Swin.")
        config.encoder_stride = config.patch_size * 2 ** (len(getattr(config, "depths", [0])) - 1)
        made = load_pretrained(self, source, Labels("", []), config)
        self._lay_out(made, source)
        square = SQUARE // config.patch_size
        if self.size[0] >= 4 * SQUARE and SQUARE % config.patch_size == 0 and self.side % square == 0:
            self.unit = square
        return made

    def _mae(self, source: Source, config: Any) -> Pretrained:
        import transformers

        from hftl.tasks.loading import load_pretrained

        kind = getattr(config, "model_type", "timm")
        if kind not in ("vit", "vit_mae"):
            raise UserError(f"MAE needs a ViT; {source.model} is a {kind}. Pass --method auto, or another --model.")
        known = shared(config, transformers.ViTMAEConfig) | (small_decoder(config) if kind == "vit" else {})
        config = transformers.ViTMAEConfig(**known, mask_ratio=self.share)
        made = load_pretrained(self, source, Labels("", []), config, transformers.ViTMAEForPreTraining)
        self._lay_out(made, source)
        return made

    def _simclr(self, source: Source, config: Any) -> Pretrained:
        from hftl.tasks.networks.views import WIDTH, project

        names = [str(i) for i in range(WIDTH)]
        made = ImageClassification().build(source, Labels("single_label_classification", names))
        self.size = size_of(made.processor)
        layer = project(made.model, self.size)
        if layer is None:
            raise UserError(f"SimCLR needs a linear layer on top, and {source.model} has none. Pass another --model.")
        own = {name for name, _ in made.model.named_parameters()}
        self.head = {name for name in own if name.startswith(f"{layer}.")}
        projector = {name for name in own if name.startswith("projector.")}
        return Pretrained(made.model, made.processor, made.fresh | self.head | projector, made.revision)

    def _lay_out(self, made: Pretrained, source: Source) -> None:
        """Note how many patches there are beside each other, and hold the processor against the model."""
        from hftl.tasks.networks.views import hidden_cells

        config: Any = made.model.config
        self.size = size_of(made.processor)
        asked = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        if set(self.size) != {asked}:
            raise UserError(
                f"{source.model} reads images of {asked} x {asked} pixels, and its processor makes "
                f"{self.size[0]} x {self.size[1]}. Correct size and crop_size in its preprocessor_config.json."
            )
        self.side = asked // config.patch_size
        if hidden_cells(self.side**2, self.share) in (0, self.side**2):
            raise UserError(f"--mask {self.share:g} of {self.side**2} patches hides none or all of them. Try 0.6.")

    def encode(self, rows: Any, processor: Any, train: bool = False) -> Any:
        """Decode and hide when a row is read. Columns: `pixel_values` as for classification, or two views of it;
        `labels`: for each patch 0 where it is hidden, -100 elsewhere, or 0 where views are compared.
        """
        if self.chosen != "simclr":
            return super().encode(rows, processor, train)
        if self.augment != "none":
            raise UserError("SimCLR changes images in its own way. Leave --augment out.")
        import torch

        from hftl.tasks.networks.views import two_views

        change = two_views(self.size)

        def read(batch: dict[str, list]) -> dict[str, Any]:
            pixels = []
            for value in batch["image"]:
                image = open_image(value)
                with torch.random.fork_rng(devices=[], enabled=not train):
                    if not train:
                        torch.manual_seed(_seed(content(value)))
                    views = [change(image) for _ in range(2)]
                pixels.append(processor(views, return_tensors="pt")["pixel_values"])
            return {"pixel_values": pixels, "labels": [0] * len(pixels)}

        return rows.with_transform(read)

    def labelling(self, processor: Any, train: bool) -> Callable[[list[Any] | None, list[Any]], list[Any] | None]:
        return lambda cells, pixels: [self._hide(one, train) for one in pixels]

    def _hide(self, pixels: Any, train: bool) -> list[int]:
        import numpy as np
        import torch

        from hftl.tasks.networks.views import patch_mask

        seed = None if train else _seed(np.ascontiguousarray(torch.as_tensor(pixels).numpy()).tobytes())
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.where(patch_mask(self.side, self.unit, self.share, generator), 0, IGNORED).tolist()

    def metric(self, labels: Labels) -> Accumulator:
        from hftl.tasks.metrics.pretext import Pretext as Losses

        return Losses()

    identify = Task.identify  # not by the image alone: what is kept of a row holds what is hidden of it, too

    def changed(self) -> bool:
        return True

    def before_after(self, encoded: Any) -> list[Example]:
        return []

    def written(self, model: Any, weights: dict[str, torch.Tensor] | None) -> tuple[Any, Any]:
        """The encoder, as any recipe for images takes it: MAE's as a plain ViT, SimCLR's without projection."""
        model, weights = super().written(model, weights)
        if self.chosen == "mae":
            return plain_vit(model), None
        if self.chosen == "simclr":
            del model.projector
            state = {name: value for name, value in model.state_dict().items() if name not in self.head}
            model.config.num_labels = 2  # the usual number, which nobody asked for
            if hasattr(model.config, "label_names"):
                model.config.label_names = list(model.config.id2label.values())
            return model, state
        return model, weights


def fitting(config: Any) -> str:
    """The method that fits a model: MAE for its own, SimMIM for what transformers hides patches of, else SimCLR."""
    import transformers

    if getattr(config, "model_type", "") == "vit_mae":
        return "mae"
    return "simmim" if type(config) in transformers.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING else "simclr"


def shared(config: Any, kind: type) -> dict[str, Any]:
    """What a config says that another kind of config has, too: about the encoder, nothing of labels."""
    from hftl.tasks.loading import ABOUT_LABELS

    own = kind().to_dict().keys() - {"model_type", "mask_ratio", *ABOUT_LABELS}
    return {name: value for name, value in config.to_dict().items() if name in own}


def small_decoder(config: Any) -> dict[str, int]:
    """A decoder smaller than a small ViT's encoder; nothing for ViT-B and larger, which take MAE's own (512 wide)."""
    if config.hidden_size >= 768:
        return {}
    width = max(16, config.hidden_size // 32 * 16)
    return {
        "decoder_hidden_size": width,
        "decoder_intermediate_size": 4 * width,
        "decoder_num_attention_heads": width // 16,
        "decoder_num_hidden_layers": max(1, config.num_hidden_layers // 2),
    }


def plain_vit(model: Any) -> Any:
    """MAE's encoder as the ViT that it is."""
    import transformers

    vit = transformers.ViTModel(
        transformers.ViTConfig(**shared(model.config, transformers.ViTConfig)), add_pooling_layer=False
    )
    vit.load_state_dict(model.vit.state_dict())
    return vit


def _seed(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=7).digest(), "big")
