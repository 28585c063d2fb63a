"""Which modules rest while others train. Knows modules and parameters; no data, no disk."""

from __future__ import annotations

from torch import nn


def frozen_modules(model: nn.Module, active: set[int]) -> list[nn.Module]:
    """Modules that rest: those with parameters none of which trains, and everything inside such a module.

    A module without parameters rests where it stands between two frozen neighbours, as GPT-2's dropout after the
    embeddings does; one before a trained module, such as the dropout of a head, belongs to that.
    """
    frozen: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        trains = [id(parameter) in active for parameter in module.parameters()]
        if trains and not any(trains):
            frozen.extend(module.modules())
            return
        waiting: list[nn.Module] = []
        calm = False  # whether what came last is frozen as a whole
        for child in module.children():
            inner = [id(parameter) in active for parameter in child.parameters()]
            if not inner:
                waiting += child.modules()
                continue
            if calm and not inner[0]:
                frozen.extend(waiting)
            calm, waiting = not any(inner), []
            visit(child)

    visit(model)
    return frozen
