"""A LoRA adapter for each task in one frozen encoder, by PEFT's named adapters. Knows PEFT and LoRA, no data.

Not a strategy by name, for it needs to know whose turn it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hftl.errors import UserError
from hftl.strategies.base import Chain, Strategy
from hftl.strategies.peft import LoRA

if TYPE_CHECKING:
    from torch import nn

    from hftl.models.anatomy import Anatomy, Place


@dataclass(frozen=True)
class _Named(LoRA):
    """LoRA once for each task, by its name; the heads train as they are, for each task has its own."""

    dora: bool = False

    def prepare(self, model: Any, anatomy: Anatomy) -> nn.Module:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        options = self._options() | {"use_dora": self.dora}
        targets = options.pop("target_modules")
        options["target_modules"] = anatomy.targets() if targets is None else list(targets)
        for task in model.tasks:
            inject_adapter_in_model(LoraConfig(**options), model, adapter_name=task)
            vars(model).pop("peft_config", None)  # it would pass for peft's own model, whose folder holds one adapter
        layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        if not layers:
            raise UserError(f"LoRA found nothing to adapt in {type(model.shared).__name__}. Leave --adapters out.")

        def turn(task: str) -> None:
            for layer in layers:
                flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
                layer.set_adapter(task)
                for parameter, flag in flags:  # what trains is the rates' to say
                    parameter.requires_grad_(flag)

        model.turned.append(turn)
        return model

    def rate(self, place: Place, progress: float) -> float:
        return 1.0 if place.fresh else super().rate(place, progress)


def with_lora(strategy: Strategy) -> Strategy:
    """The strategy, with LoRA where it names none and changes nothing.

    Raises:
        UserError: it trains something else than LoRA.
    """
    if any(isinstance(part, LoRA) for part in strategy.parts):
        return strategy
    if strategy.parts and all(type(part).__name__ == "Full" for part in strategy.parts):
        return LoRA()
    raise UserError("--adapters puts a LoRA adapter for each task. Leave --strategy out, or let it name LoRA.")


def per_task(strategy: Strategy) -> Strategy:
    """The strategy, with each LoRA of it once for each task."""
    parts: list[Strategy] = []
    for part in strategy.parts:
        if isinstance(part, LoRA):
            own = {field.name: getattr(part, field.name) for field in fields(part)}
            parts.append(_Named(**own, dora=type(part).__name__ == "DoRA"))
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))
