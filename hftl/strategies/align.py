"""Strategies for a target domain without labels: their losses make source and target features alike, or use guesses.

Each reads a batch of unlabelled target rows beside every labelled one. What is saved is the task model alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.strategies.base import Strategy

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hftl.models.anatomy import Place


@dataclass(frozen=True)
class _Aligned(Strategy):
    """Adds `weight` times a term over a labelled and an unlabelled batch to the loss."""

    streams: ClassVar[tuple[str, ...]] = ("unlabelled",)

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"{type(self).__name__}(weight) takes a number of 0 or more; {self.weight} came.")

    def loss(self, loss: torch.Tensor, step: Any) -> torch.Tensor:
        return loss + self.weight * step.share * self.term(step)

    def term(self, step: Any) -> torch.Tensor:
        """The term of one micro-batch, a mean over its rows; `step` is a `hftl.train.trainer.Step`."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Adversarial(_Aligned):
    """A discriminator learns to tell the domains apart, and the model, through reversed gradients, to prevent it."""

    hidden: int = 256
    boost: float = 10.0

    def rate(self, place: Place, progress: float) -> float:
        return self.boost if place.name.startswith(f"partner.{type(self).__name__}.") else 1.0

    def loss(self, loss: torch.Tensor, step: Any) -> torch.Tensor:
        return loss + step.share * self.term(step)  # the weight acts on what is reversed alone

    def strength(self, progress: float) -> float:
        """The factor of the reversed gradient: from 0 to `weight` over the run (Ganin 2016, section 5.2.2)."""
        return self.weight * (2 / (1 + math.exp(-10 * progress)) - 1)


@dataclass(frozen=True)
class DANN(_Adversarial):
    """Domain-adversarial training of the features that the head reads (Ganin et al. 2016, arXiv 1505.07818).

    `weight` is the final strength of the reversed gradient; the discriminator has two hidden layers of `hidden` units
    and learns `boost` times as fast as the model.
    """

    def partner(self, width: int, classes: int, model: nn.Module) -> nn.Module:
        from hftl.models import alignment

        return alignment.discriminator(width, self.hidden)

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        judge, strength = step.partner["DANN"], self.strength(step.progress)
        both = (step.features, step.views["unlabelled"].features)
        source, target = (judge(alignment.reversed_gradient(features, strength)) for features in both)
        return alignment.domain_loss(source, target)


@dataclass(frozen=True)
class CDAN(_Adversarial):
    """Adversarial alignment of features joined with class probabilities (Long et al. 2018, arXiv 1705.10667).

    With `entropy` (CDAN+E) sure rows weigh more. Past `widest` numbers the outer product is replaced by the paper's
    randomised one.
    """

    guesses: ClassVar[bool] = True

    entropy: bool = True
    widest: int = 4096

    def partner(self, width: int, classes: int, model: nn.Module) -> nn.Module:
        from hftl.models import alignment

        return alignment.Conditioned(width, classes, self.hidden, self.widest)

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        judge, strength = step.partner["CDAN"], self.strength(step.progress)
        target = step.views["unlabelled"]
        found = []
        for features, logits in ((step.features, step.logits), (target.features, target.logits)):
            guess = logits.detach().softmax(1)
            weights = 1 + alignment.entropy(guess).neg().exp() if self.entropy else None
            found.append((judge(alignment.reversed_gradient(features, strength), guess), weights))
        (source, own), (other, theirs) = found
        return alignment.domain_loss(source, other, own, theirs)


@dataclass(frozen=True)
class DAN(_Aligned):
    """The maximum mean discrepancy of the features under several Gaussian kernels (Long et al. 2015, arXiv 1502.02791).

    There are `kernels` of them, their bandwidths `factor` apart around the mean squared distance.
    """

    kernels: int = 5
    factor: float = 2.0

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        return alignment.mmd(step.features, step.views["unlabelled"].features, self.kernels, self.factor)


@dataclass(frozen=True)
class DeepCORAL(_Aligned):
    """The distance of the features' covariances, `|Cs - Ct|^2 / 4d^2` (Sun & Saenko 2016, arXiv 1607.01719)."""

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        return alignment.coral(step.features, step.views["unlabelled"].features)


@dataclass(frozen=True)
class MCC(_Aligned):
    """Minimum class confusion of the target's probabilities, at a `temperature` (Jin et al. 2020, arXiv 1912.03699)."""

    guesses: ClassVar[bool] = True

    temperature: float = 2.5

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        return alignment.class_confusion(step.views["unlabelled"].logits / self.temperature)


@dataclass(frozen=True)
class PseudoLabel(_Aligned):
    """Self-training: target rows count with the class that the model is at least `threshold` sure of (Lee 2013).

    The weight grows from 0 over the first half of the run.
    """

    guesses: ClassVar[bool] = True

    threshold: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise UserError(f"{type(self).__name__}(threshold) lies in (0, 1]; {self.threshold} came.")

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        logits = step.views["unlabelled"].logits
        return min(1.0, 2 * step.progress) * alignment.sure_loss(logits, logits, self.threshold)


@dataclass(frozen=True)
class FixMatch(PseudoLabel):
    """As PseudoLabel, but the guess on a plain row teaches a strongly changed one (Sohn 2020, arXiv 2001.07685)."""

    streams: ClassVar[tuple[str, ...]] = ("unlabelled", "strong")

    def term(self, step: Any) -> torch.Tensor:
        from hftl.models import alignment

        guess = step.views["unlabelled"].logits.detach()
        return min(1.0, 2 * step.progress) * alignment.sure_loss(guess, step.views["strong"].logits, self.threshold)


@dataclass(frozen=True)
class UDALM(_Aligned):
    """Learns the task on the source and masked-language modelling on the target (Karouzos 2021, arXiv 2104.07078).

    The head that guesses words is the checkpoint's own where it has one. A new one has a loss of some 10 nats at first:
    with a weight of 1 it drowns a short run.
    """

    streams: ClassVar[tuple[str, ...]] = ("masked",)

    weight: float = 0.1

    def partner(self, width: int, classes: int, model: nn.Module) -> nn.Module:
        from torch import nn

        from hftl.models.token_head import token_head

        find: Any = getattr(model, "get_input_embeddings", lambda: None)
        if not isinstance(find(), nn.Embedding):
            raise UserError("UDALM predicts masked tokens; this model reads none. Try DANN, or a text model.")
        return token_head(model)

    def term(self, step: Any) -> torch.Tensor:
        import torch.nn.functional as F

        inputs = dict(step.views["masked"].inputs)
        wanted = inputs.pop("labels")
        hidden = step.model(**inputs, output_hidden_states=True)["hidden_states"][-1].float()
        masked = wanted != -100
        words = step.partner["UDALM"](hidden[masked])
        return F.cross_entropy(words, wanted[masked], reduction="sum") / masked.sum().clamp(min=1)
