"""Where each parameter sits: stem, blocks, top, fresh. Knows a model's structure, and no architecture by name.

Depth 0 is the stem, 1..n are the blocks in order, n + 1 is the top: final norm, pooler, output layer, everything fresh.
timm models describe their own grouping, and that is used. In every other model the blocks are the largest stack of
modules of one class; what is registered before it is the stem, what is registered after it the top.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import nn

from hftl.errors import UserError
from hftl.models.layout import ancestors, largest_lists, layout, owner_of, size, within
from hftl.models.wrapped import OUTER, inside

_Spot = tuple[int | None, bool]  # depth (None without a stack), fresh


@dataclass
class Place:
    """Where one parameter sits. `depth` runs from 0 (stem) to `top` (number of blocks + 1).

    `fresh` means that the checkpoint did not supply it; the depth of a fresh parameter is `top`.
    Reading `depth` or `top` in a model with no stack of blocks raises `UserError`.
    """

    name: str
    depth: int
    top: int
    fresh: bool = False

    def as_fresh(self) -> Place:
        """This place, were it fresh."""
        return replace(self, fresh=True)


class _Stackless(Place):
    """A place in a model with no stack of blocks: refuses only the strategy that asks for the depth."""

    def __init__(self, name: str, fresh: bool, model: str) -> None:
        self.name, self.fresh, self.model = name, fresh, model

    def _refuse(self) -> NoReturn:
        raise UserError(
            "Expected a model with a stack of blocks, because the strategy reads their depth; "
            f"{self.model} has none (its layers share one block, or are no list of alike modules): "
            "pass a --strategy that needs no depth, such as Full, LinearProbe or LoRA."
        )

    def as_fresh(self) -> Place:
        return _Stackless(self.name, True, self.model)

    depth = property(_refuse)  # type: ignore[assignment]
    top = property(_refuse)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Place(name={self.name!r}, fresh={self.fresh})"


class Anatomy:
    """The places of a model's parameters; made by `anatomy`.

    It is read off the model at once and keeps no reference to it, because PEFT changes a model in place: `place` still
    finds a parameter after that.

    Attributes:
        top: number of blocks + 1.
        stack: the main module of each block, in order; encoder blocks come before decoder blocks. [] without a stack.
        blocks: for each block, the largest modules that lie at its depth alone, in order of registration. Usually
            `[main]`; more where something beside it belongs to it (downsampling, an encoder's last norm).
        fresh_modules: the smallest modules that together hold every fresh parameter, in order of registration.
    """

    def __init__(self, model: nn.Module, fresh: Iterable[str] = ()) -> None:
        count, depths = layout(model)
        fresh = frozenset(fresh)
        self.model = type(model).__name__
        self.top = count + 1
        self._tensors: dict[str, _Spot] = {}
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        above = frozenset() if fresh.issuperset(names) else fresh  # all at random: there is nothing to lie above
        for name in names:
            self._tensors[name] = (self.top if count and name in above else depths.get(name), name in fresh)
        self._modules = _modules(model, self._tensors)
        for name, _ in model.named_buffers(remove_duplicate=False):
            self._tensors[name] = self._host(name) or (0 if count else None, False)
        self.blocks, self.stack = self._blocks(model)
        self.fresh_modules = list(dict.fromkeys(owner_of(name) for name, spot in self._tensors.items() if spot[1]))
        body = [] if count else largest_lists(model, at_least=1)[:1]
        self._targets = [
            name
            for name, module in model.named_modules()
            if _adaptable(module)
            and not isinstance(model.get_submodule(owner_of(name)), nn.MultiheadAttention)
            and self._in_blocks(name, body)
        ]

    def place(self, name: str) -> Place:
        """The place of a parameter, a buffer or a module, also by its name inside PEFT, DDP, FSDP or torch.compile.

        An adapter's parameter takes the place of the module that hosts it. What is new and lies within no single depth
        (a bank of vectors that all blocks share, a soft prompt, a second head) is fresh.
        """
        known = self._known(name)
        depth, fresh = self._tensors.get(known) or self._host(known + ".") or (None, True)
        if not self.stack:
            return _Stackless(name, fresh, self.model)
        return Place(name, self.top if depth is None else depth, self.top, fresh)

    def targets(self) -> list[str]:
        """Full names of the modules that an adapter can aim at: every linear layer and convolution inside the blocks.

        Never a fresh module, nor the output layer. Left out are grouped convolutions, whose groups low-rank factors do
        not respect, dilated ones, whose dilation peft does not, and `nn.MultiheadAttention`'s output projection, whose
        forward is never called.
        Without a stack of blocks: those in the largest list of modules (ALBERT's one shared block).
        """
        return list(self._targets)

    def region(self, name: str) -> str:
        """The largest module that holds this parameter and lies at one depth, all of it fresh or none of it."""
        known = self._known(name)
        return next((path for path in [*ancestors(known)][::-1] if self._modules.get(path)), known)

    def _host(self, name: str) -> _Spot | None:
        """The spot of the nearest known module around a name; None where that spans several depths."""
        return self._modules[next((path for path in ancestors(name) if path in self._modules), "")]

    def _known(self, name: str) -> str:
        """The name that a parameter bore when this anatomy was made."""
        while name not in self._tensors:
            outer = next((p for p in OUTER if name.startswith(p) and p.split(".")[0] not in self._modules), None)
            if outer is None:
                return inside(name)
            name = name.removeprefix(outer)
        return name

    def _blocks(self, model: nn.Module) -> tuple[list[list[str]], list[str]]:
        blocks: list[list[str]] = [[] for _ in range(1, self.top)]
        for name, module in model.named_modules():
            depth, _ = self._modules[name] or (None, False)
            if depth and depth < self.top and not self._modules[owner_of(name)] and size(module):
                blocks[depth - 1].append(name)
        return blocks, [max(names, key=lambda name: size(model.get_submodule(name))) for names in blocks]

    def _in_blocks(self, name: str, body: list[str]) -> bool:
        depth, fresh = self._modules[name] or (None, True)
        if depth is None:
            return not fresh and any(within(name, path) for path in body)
        return not fresh and 0 < depth < self.top


def anatomy(model: nn.Module, fresh: Iterable[str] = ()) -> Anatomy:
    """Read where each parameter of `model` sits. O(parameters), no forward pass.

    Args:
        fresh: names of the parameters that the checkpoint did not supply.
    """
    return Anatomy(model, fresh)


def rate_table(anatomy: Anatomy, model: nn.Module, rate: Callable[[Place, float], float]) -> list[dict]:
    """Rates by depth and module: rows `{"depth", "module", "parameters", "rates"}`, the rates at 0, 25, .. 100 %.

    One row for each module whose parameters share the rates; where they do not, one for each set of rates, with the
    parameters' own names in brackets. `model` may be wrapped with adapters since `anatomy` was made.
    """
    groups: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        place = anatomy.place(name)
        depth = place.depth if anatomy.stack else None
        rates = tuple(rate(place, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0))
        groups[depth, anatomy.region(name), place.fresh, rates].append((name, parameter.numel()))
    split = Counter(region for _, region, *_ in groups)
    rows = []
    for (depth, region, fresh, rates), members in sorted(groups.items(), key=lambda item: item[0][0] or 0):
        label = region + (" (fresh)" if fresh else "")
        if split[region] > 1:
            kinds = dict.fromkeys(".".join(name.split(".")[-2:]) for name, _ in members)
            label += " [" + ", ".join([*kinds][:3]) + (", ..." if len(kinds) > 3 else "") + "]"
        count = sum(number for _, number in members)
        rows.append({"depth": depth, "module": label, "parameters": count, "rates": list(rates)})
    return rows


def render_rates(rows: list[dict]) -> str:
    """`rate_table`'s rows as aligned text, to be printed."""
    head = ["depth", "module", "parameters", "0 %", "25 %", "50 %", "75 %", "100 %"]
    cells = [head]
    for row in rows:
        depth = "-" if row["depth"] is None else str(row["depth"])
        cells.append([depth, row["module"], f"{row['parameters']:,}", *(f"{rate:.4g}" for rate in row["rates"])])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _modules(model: nn.Module, tensors: dict[str, _Spot]) -> dict[str, _Spot | None]:
    """The spot of every module: where all its parameters lie; None where they lie in several (and for the root).

    A module without parameters lies where its parent lies.
    """
    spread: dict[str, set[_Spot]] = defaultdict(set)
    for name, spot in tensors.items():
        for path in ancestors(name):
            spread[path].add(spot)
    spots: dict[str, _Spot | None] = {"": None}
    for name, _ in model.named_modules(remove_duplicate=False):
        if name:
            found = [*spread.get(name, ())] or [spots[owner_of(name)]]
            spots[name] = found[0] if len(found) == 1 else None
    return spots


def _adaptable(module: nn.Module) -> bool:
    """Linear layers (GPT-2's Conv1D is one) and convolutions without groups or dilation.

    peft's adapters take a convolution's padding and not its dilation (0.21): theirs would be another image's size, here
    and wherever the folder is loaded.
    """
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return linear or (isinstance(module, nn.Conv2d) and module.groups == 1 and set(module.dilation) == {1})
