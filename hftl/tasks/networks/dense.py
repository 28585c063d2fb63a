"""Encoders of images with a class for each pixel on top, where transformers has no such model. Knows no data.

One linear layer reads the last feature map, and its logits are enlarged bilinearly: the linear evaluation on semantic
segmentation of Oquab et al. 2023 (DINOv2, arXiv 2304.07193, section 7.4), here trained with the encoder or without.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hftl.data.types import IGNORED
from hftl.errors import UserError

ENDING = "ForSemanticSegmentation"


class LinearSegmenter:
    """What a class made by `segmenter_of` adds to a `PreTrainedModel`; its encoder lies at `base_model_prefix`."""

    base_model_prefix: str
    config: Any
    head: nn.Conv2d

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SemanticSegmenterOutput:
        """Logits (n, classes, h, w) at the size of the feature map, and the mean cross-entropy of labelled pixels.

        Args:
            pixel_values: (n, channels, height, width).
            labels: (n, height, width), IGNORED where there is none.
        """
        features = self.features(pixel_values)
        logits = self.head(features)
        loss = None
        if labels is not None:
            given = enlarged(logits, labels.shape[-2:])
            total = nn.functional.cross_entropy(given, labels, ignore_index=IGNORED, reduction="sum")
            loss = total / (labels != IGNORED).sum().clamp(min=1)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The last feature map (n, width of the encoder, h, w)."""
        encoder = getattr(self, self.base_model_prefix)
        try:
            if hasattr(encoder, "forward_features"):  # a network of timm's
                found, prefix = encoder.forward_features(pixel_values), getattr(encoder, "num_prefix_tokens", 0)
            else:
                free = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters
                found = encoder(pixel_values, **({"interpolate_pos_encoding": True} if free else {})).last_hidden_state
                prefix = self._before(found, pixel_values.shape[-2:])
        except AssertionError as failure:  # timm's word for a size that it does not take
            raise UserError(f"{failure}. Pass --image_size with the size that this model reads.") from failure
        return as_map(found, self.head.in_channels, pixel_values.shape[-2:], prefix)

    def _before(self, tokens: torch.Tensor, size: Any) -> int | None:
        """How many tokens are more than one for each patch; None where patches are merged on the way, or unknown."""
        patch = getattr(self.config, "patch_size", None)
        more = tokens.shape[1] - (size[0] // patch) * (size[1] // patch) if isinstance(patch, int) else -1
        return more if more >= 0 else None

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As any module: timm's wrapper would take the head for a part of the encoder."""
        return nn.Module.load_state_dict(self, state_dict, *args, **kwargs)  # type: ignore[arg-type]


def as_map(features: torch.Tensor, width: int, size: Any, prefix: int | None) -> torch.Tensor:
    """Features of any order as (n, width, h, w): of (n, h, w, width), or of tokens (n, tokens, width).

    Args:
        size: height and width of the image, whose shape the grid of tokens has.
        prefix: how many tokens, before the others, are no place in the image; None where the model does not tell.

    Raises:
        UserError: the tokens are no such grid.
    """
    if features.ndim == 4:
        return features if features.shape[1] == width else features.permute(0, 3, 1, 2)
    count = features.shape[1]
    for before in [prefix] if prefix is not None else (0, 1):
        rows = round(((count - before) * size[0] / size[1]) ** 0.5)
        if rows and (count - before) % rows == 0 and abs((count - before) / rows * size[0] - rows * size[1]) < size[0]:
            return features[:, before:].transpose(1, 2).reshape(len(features), width, rows, -1)
    raise UserError(
        f"The model gives {count} tokens for an image of {size[0]}x{size[1]} pixels, which are no grid of its places. "
        "Pass another --model or --image_size."
    )


def enlarged(logits: torch.Tensor, size: Any) -> torch.Tensor:
    """Logits (n, classes, h, w) at another size."""
    return nn.functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def confusion(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """(classes, classes) float64: pixels of true class i whose largest logit is j.

    Args:
        logits: (classes, h, w), enlarged to the labels' size.
        true: (height, width), IGNORED where there is none.
    """
    classes = len(logits)
    if not torch.isfinite(logits).all():
        return torch.full((classes, classes), torch.nan, dtype=torch.float64, device=logits.device)
    said = enlarged(logits[None].float(), true.shape)[0].argmax(0)
    kept = true != IGNORED
    cells = torch.bincount(true[kept] * classes + said[kept], minlength=classes**2)
    return cells.reshape(classes, classes).double()


def segmenter_of(config: Any) -> Any:
    """A class of models for the encoder that a config describes, with `from_pretrained` and all.

    Raises:
        ValueError: transformers knows no encoder of images for it.
    """
    encoder_class: Any = transformers.AutoModel._model_mapping[type(config)]
    parent = next(c for c in encoder_class.__mro__ if c.__name__.endswith("PreTrainedModel"))
    prefix = parent.base_model_prefix

    def start(self: Any, config: Any) -> None:
        parent.__init__(self, config)
        pooled = "add_pooling_layer" in inspect.signature(encoder_class).parameters
        inner = encoder_class(config, **({"add_pooling_layer": False} if pooled else {}))
        encoder = getattr(inner, prefix, inner)  # timm's wrapper holds the network under the same name
        setattr(self, prefix, encoder)
        self.num_labels = config.num_labels
        self.head = nn.Conv2d(_width(encoder, config), config.num_labels, 1)
        self.post_init()

    name = parent.__name__.removesuffix("PreTrainedModel") + ENDING
    return type(name, (LinearSegmenter, parent), {"__init__": start, "main_input_name": "pixel_values"})


def _width(encoder: nn.Module, config: Any) -> int:
    """Channels of the last feature map."""
    for found in (getattr(encoder, "num_features", None), getattr(config, "hidden_size", None)):
        if isinstance(found, int):
            return found
    several = getattr(config, "hidden_sizes", None)
    if not several:
        raise UserError(f"{type(encoder).__name__} does not tell the width of its feature map. Pass another --model.")
    return several[-1]
