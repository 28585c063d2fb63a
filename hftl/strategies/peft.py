"""Adapters from PEFT, aimed by the anatomy. Knows PEFT's methods and where they cannot work; nothing of the task.

Fresh modules are trained and saved with the adapter. No `task_type` is passed for that: PEFT's own choice by task is
the modules named `classifier` or `score`, which misses a fresh pooler and everything called otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import FAILURES, UserError, suggest
from hftl.models.wrapped import adapted, set_aside, trained_copy
from hftl.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import nn

    from hftl.models.anatomy import Anatomy, Place

# Learning rates of PEFT's examples/sequence_classification, one notebook a method (RoBERTa, AdamW); where theirs has
# two, the head's. IA3: Liu et al. 2022 (T-Few), section 3.3.
_LR = {"VERA": 1e-2, "FOURIERFT": 6e-3, "IA3": 3e-3, "PREFIX_TUNING": 1e-2, "PROMPT_TUNING": 1e-3, "P_TUNING": 1e-3}
_LORA_LR = 3e-4

_USE = "Use LoRA or DoRA."
_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
_UNFIT = {
    "ADALORA": "its ranks are redistributed after every backward pass, which the trainer does not do",
    "ADAPTION_PROMPT": "it is made for generation with Llama and Mistral",
    "CARTRIDGE": "it is made for generation",
    "CPT": "it is made for generation",
    "MULTITASK_PROMPT_TUNING": "it needs a task id in every row",
    "POLY": "it needs a task id in every row",
    "SHADOW": "it changes what the blocks hand on, which classifiers cannot read",
    "XLORA": "it mixes adapters that are already trained",
}


def wrap(model: nn.Module, anatomy: Anatomy, method: str, options: Mapping[str, Any], name: str) -> nn.Module:
    """Put an adapter into the model, with every fresh module trained and saved beside it.

    Args:
        method: a name of `peft.PeftType`.
        options: fields of the method's config; `target_modules` is the anatomy's unless it is given.
        name: the strategy's name, for errors.

    Raises:
        UserError: the method cannot work on this model, or PEFT refuses the options.
    """
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if hasattr(model, "peft_config"):
        raise UserError(f"{name} came for a model that has an adapter already. Keep one of the two in --strategy.")
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[method]  # type: ignore[index]
    _refuse_unfit(model, method, name)
    known = {field.name for field in fields(kind)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    if "target_modules" in known and not any(settings.get(key) for key in ("target_modules", "target_parameters")):
        settings["target_modules"] = _targets(model, anatomy, method)
    elif isinstance(settings.get("target_modules"), list):
        _refuse_unknown(model, settings["target_modules"], anatomy, name)
    if "modules_to_save" in known:
        asked = settings.get("modules_to_save") or []
        settings["modules_to_save"] = [*asked, *(m for m in _fresh(anatomy, name) if m not in asked)] or None
    elif anatomy.fresh_modules:
        raise UserError(f"{name} cannot train and save this model's fresh modules beside it. {_USE}")
    if method in _PROMPTS:
        # A prompt needs one of PEFT's task models. This one only hands inputs and labels on; it adds no modules.
        settings["task_type"] = "FEATURE_EXTRACTION"
    if method == "IA3" and "feedforward_modules" not in settings:
        settings["feedforward_modules"] = []  # scale what each target gives; a list is required
    kind_of_model = type(model).__name__
    try:
        wrapped: nn.Module = get_peft_model(model, kind(**settings))
        _try(wrapped, method)
    except FAILURES as failure:
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise UserError(
            f"{name} does not fit {kind_of_model}; PEFT says: {reason[:300].rstrip('.')}. "
            "Change its options, or use LoRA, which fits linear layers and convolutions alike."
        ) from failure
    trained = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    if not any("prompt_encoder" in n or not anatomy.place(n).fresh for n in trained):
        raise UserError(f"{name} found nothing to adapt in {kind_of_model}. Use LoRA, or --strategy 'LastLayers(2)'.")
    return wrapped


def trains(place: Place, method: str, options: Mapping[str, Any]) -> bool:
    """Whether a parameter of a wrapped model is the adapter's own, or a fresh module's copy beside it."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    parts = place.name.split(".")
    if set_aside(place.name):
        return False
    if whole := trained_copy(place.name):
        return place.fresh or whole.endswith(tuple(options.get("modules_to_save", ())))
    if parts[-1] == "bias" and options.get("bias", "none") != "none":
        return options["bias"] == "all" or adapted(place.name)
    prefixes = (PEFT_TYPE_TO_PREFIX_MAPPING[method], "trainable_tokens_", "prompt_encoder")  # type: ignore[index]
    return any(part.startswith(prefixes) for part in parts)


def _refuse_unfit(model: nn.Module, method: str, name: str) -> None:
    if method in _UNFIT:
        raise UserError(f"{name} cannot train a classifier here: {_UNFIT[method]}. {_USE}")
    if method in (*_PROMPTS, "TRAINABLE_TOKENS") and not _has_tokens(model):
        raise UserError(f"{name} works on token embeddings; {type(model).__name__} has none. {_USE}")
    if method not in _PROMPTS and getattr(getattr(model, "config", None), "tf_padding", False):
        raise UserError(
            f"{name} does not fit {type(model).__name__} with tf_padding: its padding reads the stride of each "
            "convolution, and PEFT's layers have none. Use timm's MobileNet, or --strategy 'LastLayers(2)'."
        )


def _refuse_unknown(model: nn.Module, targets: list[str], anatomy: Anatomy, name: str) -> None:
    paths = ["." + path for path, _ in model.named_modules()]
    endings = list(dict.fromkeys(path.rpartition(".")[2] for path in anatomy.targets()))
    for target in targets:
        if not any(path.endswith("." + target) for path in paths):
            raise UserError(
                f"{name} was aimed at {target!r}, and no module is called so.{suggest(target, endings)} "
                f"This model has {', '.join(endings[:12])}."
            )


def _has_tokens(model: Any) -> bool:
    from torch import nn

    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except (AttributeError, NotImplementedError):  # a bare timm network, ConvNeXt
        return False


def _targets(model: nn.Module, anatomy: Anatomy, method: str) -> list[str] | None:
    if method == "TRAINABLE_TOKENS":
        return None  # PEFT finds the input embeddings
    if method != "LN_TUNING":
        return anatomy.targets()
    norms = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    return [name for name in norms if not anatomy.place(name).fresh]


def _fresh(anatomy: Anatomy, name: str) -> list[str]:
    """Fresh modules by full name, none inside another."""
    found = anatomy.fresh_modules
    if "" in found:
        raise UserError(
            f"{name} saves whole modules beside the adapter, and this model has fresh parameters that lie in none. "
            "Use --strategy Full."
        )
    return [path for path in found if not any(path.startswith(other + ".") for other in found)]


def _try(model: nn.Module, method: str) -> None:
    """Run what was added on zeros, one layer of each kind, so that a method that cannot work fails now."""
    if method in _PROMPTS:
        return _try_prompt(model)
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    tried = set()
    for layer in model.modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        if not isinstance(base, nn.Linear | nn.Conv2d) or (kind := f"{base} {base.weight.dtype}") in tried:
            continue
        if isinstance(base, nn.Conv2d) and set(base.dilation) != {1}:
            raise ValueError(f"a dilation of {base.dilation[0]}, which its adapters of convolutions do not take.")
        tried.add(kind)  # what it says of itself: sizes, stride, padding, dilation
        shape = (1, base.in_features) if isinstance(base, nn.Linear) else (1, base.in_channels, *_smallest_image(base))
        with torch.no_grad():
            layer(torch.zeros(shape, dtype=base.weight.dtype, device=base.weight.device))
    return None


def _smallest_image(layer: nn.Conv2d) -> list[int]:
    """Height and width of the smallest input that a convolution takes, as met in the last blocks of a network."""
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    sides = zip(layer.kernel_size, layer.dilation, padding, strict=True)
    return [max(1, dilation * (kernel - 1) + 1 - 2 * pad) for kernel, dilation, pad in sides]


def _try_prompt(model: Any) -> None:
    """The output must depend on the prompt: some models take past keys and values, and then ignore them."""
    import torch

    prompt = next(p for n, p in model.named_parameters() if "prompt_encoder" in n and p.requires_grad)
    ids = torch.ones(1, 4, dtype=torch.long, device=prompt.device)
    ids[0, -1] = getattr(model.config, "eos_token_id", None) or 1  # BART reads its output at the end token
    training = model.training
    logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    (gradient,) = torch.autograd.grad(logits.square().sum(), prompt, allow_unused=True)
    if gradient is None or not gradient.any():
        raise ValueError("the model's output does not depend on the prompt.")


@dataclass(frozen=True)
class LoRA(Strategy):
    """Low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

    `alpha / r` scales the update, `alpha / sqrt(r)` with `rslora` (Kalajdzievski 2023, arXiv 2312.03732). `targets` are
    module names or their endings; without them, all linear layers and convolutions of the blocks.
    """

    keeps_fresh: ClassVar[bool] = True

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    rslora: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.r < 1:
            raise UserError(f"{name}(r) takes a whole number from 1 up; {self.r} came. Try {name}(r=8).")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{name}(dropout) takes a number in [0, 1); {self.dropout} came. Try {name}(dropout=0.1).")

    @property
    def lr(self) -> float:
        return _LORA_LR

    def _options(self) -> dict[str, Any]:
        options = {"r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout, "use_rslora": self.rslora}
        return options | {"target_modules": self.targets, "use_dora": isinstance(self, DoRA)}

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        return wrap(model, anatomy, "LORA", self._options(), type(self).__name__)

    def rate(self, place: Place, progress: float) -> float:
        return float(trains(place, "LORA", {}))


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA on the direction of each weight, its magnitude trained apart (Liu et al. 2024, arXiv 2402.09353)."""


@dataclass(frozen=True)
class _Method(Strategy):
    """A method of PEFT by its `PeftType` name, with options of its config that are known to be there."""

    keeps_fresh: ClassVar[bool] = True

    method: str
    options: tuple[tuple[str, Any], ...]

    @property
    def lr(self) -> float:
        return _LR.get(self.method, _LORA_LR)

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        return wrap(model, anatomy, self.method, dict(self.options), f"PEFT({self.method!r})")

    def rate(self, place: Place, progress: float) -> float:
        return float(trains(place, self.method, dict(self.options)))


class PEFT(_Method):
    """Any method of PEFT by its `PeftType` name, with the fields of its config: `PEFT("VERA", r=64)`.

    Raises:
        UserError: PEFT has no such method, or the method no such option.
    """

    def __init__(self, method: str, **options: Any) -> None:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kinds = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if method.upper() not in kinds:
            raise UserError(
                f"PEFT has no method {method!r}.{suggest(method, kinds)} It has {', '.join(sorted(kinds))}."
            )
        known = [field.name for field in fields(kinds[method.upper()])]
        for key in options:
            if key not in known:
                raise UserError(f"PEFT({method!r}) has no option {key!r}.{suggest(key, known)}")
        frozen = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items())
        super().__init__(method.upper(), frozen)
