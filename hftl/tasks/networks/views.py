"""Pretext tasks on images: what is hidden, what is guessed from the rest, and its loss row by row. Knows no files.

Each takes `labels` that say where a loss is asked for (-100: nowhere), and gives `loss`, the mean over these places,
and `logits` of shape (rows, 2): the summed loss of each row and its number of places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from hftl.data.types import IGNORED
from hftl.models.head import output_layer
from hftl.models.untouched import untouched
from hftl.models.wrapped import bare

TEMPERATURE = 0.5
"""Of SimCLR; Chen et al. 2020, appendix B.9, for images as small as CIFAR's."""
WIDTH = 128
"""Of SimCLR's projection (Chen et al. 2020, section 2.1)."""


def two_views(size: tuple[int, int]) -> v2.Transform:
    """The changes between two views of an image of this height and width (Chen et al. 2020, appendix A), less blur."""
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return v2.Compose(
        [v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2)]
    )


def hidden_cells(cells: int, share: float) -> int:
    """How many of so many cells are hidden: what MAE and SimMIM both leave after keeping the rest, rounded down."""
    return cells - int(cells * (1 - share))


def patch_mask(side: int, unit: int, share: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """A random mask over `side` x `side` patches, hidden in squares of `unit` x `unit`: (side * side,), true is hidden.

    Exactly the share of squares is hidden (He et al. 2022, section 3; Xie et al. 2022, section 3.2).
    """
    cells = (side // unit) ** 2
    mask = torch.zeros(cells, dtype=torch.bool)
    mask[torch.randperm(cells, generator=generator)[: hidden_cells(cells, share)]] = True
    squares = mask.view(side // unit, side // unit)
    return squares.repeat_interleave(unit, 0).repeat_interleave(unit, 1).flatten()


def summed(losses: torch.Tensor, here: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mean of losses (rows, places) where `here` is true, and each row's sum and number of places."""
    sums, places = (losses.float() * here).sum(1), here.sum(1)
    return {"loss": sums.sum() / places.sum().clamp(min=1), "logits": torch.stack([sums, places.float()], dim=1)}


def simmim(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hidden patches are replaced by a learned token, and their pixels guessed; L1 (Xie et al. 2022)."""
    pixels, here = inputs["pixel_values"], inputs["labels"] != IGNORED
    guess = model(pixel_values=pixels, bool_masked_pos=here)["reconstruction"]
    error = (pixels - guess).abs().mean(1, keepdim=True)
    patch = pixels.shape[-1] // round(here.shape[1] ** 0.5)
    return summed(nn.functional.avg_pool2d(error, patch).flatten(1), here)


def mae(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hidden patches are left out of the encoder, and a small decoder guesses their pixels; MSE (He et al. 2022)."""
    pixels, here, plain = inputs["pixel_values"], inputs["labels"] != IGNORED, bare(model)
    guess = model(pixel_values=pixels, noise=here.float())["logits"]  # it hides the largest noise
    target = plain.patchify(pixels)
    if plain.config.norm_pix_loss:
        spread, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (spread + 1e-6) ** 0.5
    return summed(((guess - target) ** 2).mean(-1), here)


def simclr(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two views of an image are to be found among those of all images of the batch (Chen et al. 2020).

    Takes pixels (rows, 2, channels, height, width), and a model that `project` has given its projection.
    """
    made = model(pixel_values=inputs["pixel_values"].flatten(0, 1))["logits"]
    losses = contrast(made.unflatten(0, (-1, 2)), TEMPERATURE)
    return summed(losses[:, None], (inputs["labels"] != IGNORED)[:, None])


def project(model: Any, size: tuple[int, int]) -> str | None:
    """Let a classifier of WIDTH classes go on to SimCLR's projection; return the name of its last layer.

    That layer is the first of the projection, `projector` the rest; both are thrown away in the end. None, and nothing
    done, where no linear layer gives the logits.

    Args:
        size: height and width of an image.
    """
    with untouched(model):
        layer = output_layer(model.eval(), {"pixel_values": torch.zeros(1, 3, *size)})
    if layer is None:
        return None
    model.projector = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    # A hook, so that it is within the forward pass, where DDP looks for what is used
    model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: model.projector(output) if hasattr(model, "projector") else output
    )
    return layer


def contrast(views: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent (Chen et al. 2020, equation 1) of views (rows, 2, width): (rows,), the mean of both directions.

    Orthogonal rows with equal views give log(1 + (2 rows - 2) exp(-1 / temperature)); equal ones log(2 rows - 1).
    """
    flat = nn.functional.normalize(views.float().flatten(0, 1), dim=-1)
    alike = flat @ flat.T / temperature
    alike = alike.masked_fill(torch.eye(len(flat), dtype=torch.bool, device=flat.device), -torch.inf)
    other = torch.arange(len(flat), device=flat.device) ^ 1
    return nn.functional.cross_entropy(alike, other, reduction="none").view(-1, 2).mean(1)


METHODS = {"simmim": simmim, "mae": mae, "simclr": simclr}
