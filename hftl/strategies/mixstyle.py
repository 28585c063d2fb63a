"""MixStyle: feature statistics of the rows of a batch mixed in the first blocks. Knows tensors and forward hooks."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.strategies.base import Strategy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hftl.models.anatomy import Anatomy

EPSILON = 1e-6
"""Added to a variance, as in the paper's code."""


@dataclass(frozen=True)
class MixStyle(Strategy):
    """In training, rows of a batch mix their feature statistics, which are style (Zhou 2021, arXiv 2104.02008).

    After each of the first `layers` blocks, with probability p for each batch: mean and standard deviation of each
    channel over the positions become lambda times the row's own plus 1 - lambda times another row's, lambda drawn from
    Beta(alpha, alpha) for each row. Positions are those of the feature map, or the tokens, padding left out.
    Nothing of it is saved. Frozen blocks are mixed, too, so nothing of them is kept (--cache_gb).
    """

    across_rows: ClassVar[bool] = True

    p: float = 0.5
    alpha: float = 0.1
    layers: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"MixStyle(p) takes a number from 0 to 1; {self.p} came.")
        if self.alpha <= 0:
            raise UserError(f"MixStyle(alpha) takes a number above 0; {self.alpha} came. Try MixStyle(alpha=0.1).")
        if self.layers < 1:
            raise UserError(f"MixStyle(layers) takes a whole number of 1 or more; {self.layers} came.")

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        from torch import nn

        if not anatomy.stack:
            raise UserError("MixStyle mixes the features of a model's blocks; this model has no stack of blocks.")
        if self.layers > len(anatomy.stack):
            raise UserError(
                f"MixStyle(layers={self.layers}) asks for more blocks than this model has. "
                f"Pass {len(anatomy.stack)} or less."
            )
        named = [(f".{name}", module) for name, module in model.named_modules()]
        last = any("NHWC" in str(getattr(module, "output_fmt", "")) for _, module in named)  # timm's word for it
        mix = _Mix(self.p, self.alpha, model, channels_last=last)
        model.register_forward_pre_hook(mix.note, with_kwargs=True)
        for path in anatomy.stack[: self.layers]:
            block = next(module for name, module in named if name.endswith(f".{path}"))
            while isinstance(block, nn.ModuleList):  # never called itself (SegFormer's first stage)
                block = block[-1]
            block.register_forward_hook(mix)
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", hook), _Mix)]:
                    del hooks[key]
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
        return model


class _Mix:
    """The hook after a block. Whether it acts is the whole model's mode: a frozen block is always in eval mode."""

    def __init__(self, p: float, alpha: float, model: nn.Module, channels_last: bool) -> None:
        self.p, self.alpha, self.channels_last = p, alpha, channels_last
        self.model = weakref.ref(model)
        self.mask: Any = None

    def note(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the model runs: which tokens are real."""
        self.mask = kwargs.get("attention_mask")

    def __call__(self, block: nn.Module, args: Any, output: Any) -> Any:
        import torch

        model = self.model()
        features = output[0] if isinstance(output, tuple) else output
        if model is None or not model.training or len(features) < 2 or features.ndim not in (3, 4):
            return None
        if float(torch.rand(())) >= self.p:
            return None
        shares = torch.distributions.Beta(self.alpha, self.alpha).sample((len(features),)).to(features)
        order = torch.randperm(len(features)).to(features.device)
        fits = features.ndim == 3 and self.mask is not None and self.mask.shape == features.shape[:2]
        mask = self.mask if fits else None
        mixed = mix_style(features, shares, order, mask, self.channels_last)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def mix_style(
    features: torch.Tensor,
    shares: torch.Tensor,
    order: torch.Tensor,
    mask: torch.Tensor | None = None,
    channels_last: bool = False,
) -> torch.Tensor:
    """Features with mixed statistics; gradients flow through what is normalised and not through the statistics.

    Args:
        features: (rows, channels, height, width), or (rows, tokens, channels).
        shares: (rows,) how much of its own statistics a row keeps; 1 changes nothing.
        order: (rows,) with whose statistics each row's are mixed.
        mask: (rows, tokens) 1 where a token is real; statistics are over these.
        channels_last: (rows, height, width, channels) in place of the first shape.
    """
    positions = (1,) if features.ndim == 3 else (1, 2) if channels_last else (2, 3)
    seen = features.detach().float()
    weight = seen.new_ones(()).expand(seen.shape) if mask is None else mask.to(seen)[..., None].expand(seen.shape)
    count = weight.sum(positions, keepdim=True).clamp(min=1)
    mean = (seen * weight).sum(positions, keepdim=True) / count
    spread = (((seen - mean).square() * weight).sum(positions, keepdim=True) / count + EPSILON).sqrt()
    own = shares.float().view(-1, *[1] * (features.ndim - 1))
    new_mean, new_spread = (own * each + (1 - own) * each[order] for each in (mean, spread))
    return ((features.float() - mean) / spread * new_spread + new_mean).to(features.dtype)
