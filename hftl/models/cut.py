"""Where the frozen work of a model ends: found by watching it run, not from a table of architectures.

That is the output of the last module that finishes before the first trained weight is used, such that the rest of the
model needs nothing else. A candidate is taken only if the model gives the same logits with that output in its place
and nothing before it run. Knows modules; no data, no disk.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from hftl.models.replay import Cut, Inputs, Output, Replay, Shape, capture, extent, stand_in
from hftl.models.untouched import untouched

WORTH = 0.1
"""The least share of a forward pass whose saving is worth a cache."""
TRIES = 16
"""How many modules are tried, from the last one back."""


@dataclass
class _Call:
    name: str
    start: int
    end: int = -1
    flops: int = 0
    output: Any = None


def find_cut(model: nn.Module, active: set[int], small: Inputs, large: Inputs) -> Cut | None:
    """The latest place to which nothing trains, or None where there is none worth it.

    Runs the model some times in train mode; its buffers and the random numbers are afterwards as before.

    Args:
        active: ids of the parameters that train.
        small, large: two batches with labels, of 2 and 3 rows, and where texts have lengths of unlike length.
    """
    if all(id(parameter) in active for parameter in model.parameters()):
        return None  # and most runs are spared the look
    with _plainly(model):
        first, second, wide = _watch(model, small, 1), _watch(model, small, 2), _watch(model, large, 1)
        until = _first_use(model, active, first)
        done = [c for c in first if c.end < until]
        candidates = [c for c in _ordered(model, done) if _steady(c, first, second)]
        for call in candidates[:TRIES]:
            cut = _cut_at(call, model, active, first, wide, small, large)
            if cut is None:
                continue
            if cut.share < WORTH:
                return None
            for tried in _variants(cut, model):
                if _holds(model, tried, small, large):
                    return tried
    return None


@contextlib.contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """Without gradients, and in full precision: accelerate's autocast would hide small differences."""
    wrapped, original = model.forward, getattr(model, "_original_forward", None)  # as accelerate puts it aside
    if original:
        model.forward = original
    try:
        with untouched(model), torch.no_grad():
            yield
    finally:
        if original:
            model.forward = wrapped


def _run(model: nn.Module, inputs: Inputs, seed: int) -> Any:
    torch.manual_seed(seed)
    model.train()
    return model(**inputs)


def _watch(model: nn.Module, inputs: Inputs, seed: int) -> list[_Call]:
    """Every call of a module in one forward pass: when it starts and ends, the work done by then, what it gives."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = 0
    counter = FlopCounterMode(display=False)

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            nonlocal clock
            clock += 1
            open_calls.append(_Call(name, clock))
            calls.append(open_calls[-1])

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal clock
        clock += 1
        call = open_calls.pop()
        call.end, call.flops, call.output = clock, counter.get_total_flops(), output

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after)]
    try:
        with counter:
            _run(model, inputs, seed)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first_use(model: nn.Module, active: set[int], calls: list[_Call]) -> float:
    """When the first trained weight may be used: its module starts, or the nearest one around it that is called."""
    starts: dict[str, int] = {}
    for call in calls:
        starts.setdefault(call.name, call.start)
    first = math.inf
    for name, module in model.named_modules(remove_duplicate=False):
        if any(id(p) in active for p in module.parameters(recurse=False)):
            while name not in starts and name:
                name = name.rpartition(".")[0]
            first = min(first, starts.get(name, 0))
    return first


def _ordered(model: nn.Module, done: list[_Call]) -> list[_Call]:
    """Calls to try: of those after all frozen work the smallest output, then backwards in time."""
    worked = [c.end for c in done if any(True for _ in model.get_submodule(c.name).parameters(recurse=False))]
    last = max(worked, default=-1)
    closing = sorted((c for c in done if c.end >= last), key=lambda c: (_elements(c.output), -c.end))
    return closing + sorted((c for c in done if c.end < last), key=lambda c: -c.end)


def _elements(output: Any) -> int:
    return sum(x.numel() for x in pytree.tree_flatten(output)[0] if torch.is_tensor(x))


def _steady(call: _Call, first: list[_Call], second: list[_Call]) -> bool:
    """Called once, and the same whatever the random numbers."""
    twin = [c for c in second if c.name == call.name]
    if len(twin) != 1 or sum(c.name == call.name for c in first) != 1:
        return False
    one, other = (pytree.tree_flatten(c.output)[0] for c in (call, twin[0]))
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if torch.is_tensor(a)]
    return any(a.is_floating_point() for a, _ in pairs) and all(torch.equal(a, b) for a, b in pairs)


def _cut_at(
    call: _Call, model: nn.Module, active: set[int], first: list[_Call], wide: list[_Call], small: Inputs, large: Inputs
) -> Cut | None:
    output = _output(call.name, first, wide, small, large)
    if output is None or not output.shapes or any(shape.sizes[:1] != ("rows",) for shape in output.shapes):
        return None
    early = {c.name for c in first if c.start < call.end}
    late = {c.name for c in first if c.end > call.start}
    before = [c.name for c in first if c.name not in late and not _inside(c.name, call.name)]
    outermost = [n for n in dict.fromkeys(before) if not any(_inside(n, other) for other in before if other != n)]
    empty = {name: found for name in outermost if (found := _output(name, first, wide, small, large))}
    weights = []
    for name in dict.fromkeys(c.name for c in sorted(first, key=lambda c: c.start) if c.name in early):
        module, prefix = model.get_submodule(name), f"{name}." if name else ""
        weights += [prefix + n for n, p in module.named_parameters(recurse=False) if id(p) not in active]
        weights += [prefix + n for n, _ in module.named_buffers(recurse=False)]
    return Cut(call.name, output, call.flops / max(first[0].flops, 1), True, tuple(weights), empty)


def _variants(cut: Cut, model: nn.Module) -> Iterator[Cut]:
    """A cut with less and less left out, the cheapest first."""
    weighty = {n: o for n, o in cut.empty.items() if any(True for _ in model.get_submodule(n).parameters())}
    for empty, inputs in ((cut.empty, False), (cut.empty, True), (weighty, True)):
        sliced = replace(cut, empty=empty, inputs=inputs, output=cut.output.first_only())
        yield from (sliced, replace(sliced, output=cut.output)) if sliced.output != cut.output else (sliced,)


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(outer + ".") or not outer


def _output(name: str, first: list[_Call], wide: list[_Call], small: Inputs, large: Inputs) -> Output | None:
    """The structure of a module's output, read off two batches; None where a size follows neither rows nor length."""
    one, other = ([c.output for c in calls if c.name == name] for calls in (first, wide))
    if len(one) != 1 or len(other) != 1:
        return None
    (a, tree), (b, _) = pytree.tree_flatten(one[0]), pytree.tree_flatten(other[0])
    if len(a) != len(b):
        return None
    (rows, length), (more_rows, more_length) = extent(small), extent(large)
    leaves: list[Any] = []
    for x, y in zip(a, b, strict=True):
        if not torch.is_tensor(x):
            if x is not None and not isinstance(x, bool | int | float | str):
                return None
            leaves.append(x)
            continue
        sizes: list[int | str] = []
        for i, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)):
            known = {(rows, more_rows): "rows", (length, more_length): "length"} if i else {(rows, more_rows): "rows"}
            if m != n and (m, n) not in known:
                return None
            sizes.append(m if m == n else known[m, n])
        leaves.append(Shape(tuple(sizes), x.dtype))
    return Output(tuple(leaves), tree)


def _holds(model: nn.Module, cut: Cut, small: Inputs, large: Inputs) -> bool:
    """Whether the model gives the same logits from the cut on."""
    whole = _run(model, large, 1)["logits"]
    model.eval()
    tensors = capture(model, cut, large)
    inputs = large if cut.inputs else stand_in(small, large)
    replay = Replay(model, cut)
    replay.start()
    try:
        replay.feed(tensors, inputs)
        replayed = _run(model, inputs, 1)["logits"]
    except Exception:  # a forward pass may fail in any way on what it was not given
        return False
    finally:
        replay.stop()
    return replayed.shape == whole.shape and torch.allclose(
        replayed, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max())
    )
