"""Reads depths off a model: timm's own grouping where there is one, else the structure. Knows no architecture by name.

What is fresh, and how a wrapper renames parameters, is `hftl.models.anatomy`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from torch import nn

Layout = tuple[int, dict[str, int]]
"""Number of blocks, and the depth of each parameter by name: 0 the stem, 1..n the blocks, n + 1 the top."""


def layout(model: nn.Module) -> Layout:
    """The depth of every parameter; `(0, {})` for a model with no stack of blocks."""
    return _by_timm(model) or _by_structure(model) or (0, {})


def _by_timm(model: nn.Module) -> Layout | None:
    """Depths from timm's own `group_matcher`, or None where no module has one."""
    root, network = next(((n, m) for n, m in model.named_modules() if hasattr(m, "group_matcher")), ("", None))
    if network is None:
        return None
    from timm.models import group_parameters

    nobody = "?"  # a name that no rule matches: its group is the group of the unmatched
    names = [*(name for name, _ in network.named_parameters(remove_duplicate=False)), nobody]

    def group(matcher: dict | Callable) -> dict[str, int]:
        named: Any = SimpleNamespace(named_parameters=lambda: ((name, name) for name in names))
        return group_parameters(named, matcher, reverse=True)

    matcher = network.group_matcher(coarse=False)
    if isinstance(matcher, dict):
        groups = group({key: _without_tail(rules) for key, rules in matcher.items()})
        stem = group({"stem": matcher.get("stem")})
        entry = {name for name in names if stem[name] < stem[nobody]}
    else:
        groups = group(matcher)
        entry = {name for name in names if groups[name] == 0}
    order = sorted({groups[name] for name in names if name not in entry})
    count = len(order) - 1  # the last one is the group of the unmatched
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        inner = name.removeprefix(root + ".") if within(name, root) else nobody
        depth = 0 if inner in entry else order.index(groups[inner]) + 1
        unseen = max(depths.values(), default=0) == 0  # unmatched and before the first block: a token, a position
        depths[name] = 0 if unseen and depth > count else depth
    return (count, depths) if count > 0 else None


def _without_tail(rules: str | Iterable | None) -> str | list | None:
    """A matcher's rules less those that name no block: timm lets the final norm join the last block, here it is top."""
    if rules is None or isinstance(rules, str):
        return rules
    return [rule for rule in rules if re.compile(rule[0]).groups or rule[1] != (99999,)]


def _by_structure(model: nn.Module) -> Layout | None:
    """Depths from the largest homogeneous stack (two, in an encoder-decoder), or None where there is none."""
    blocks: dict[str, int] = {}  # a block's path: its depth
    stages: dict[str, tuple[int, int]] = {}  # the path of what holds several blocks: first and last depth
    for path in _stacks(model):
        _read_stack(model, path, blocks, stages)
    if not blocks:
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    base = getattr(model, "base_model_prefix", "")  # transformers' word: what lies outside of it is a head
    base = base if base in modules else ""
    depths: dict[str, int] = {}
    count = max(blocks.values())
    last, embedded = 0, "?"  # depth of the block seen last; parent of the embedding registered last before this
    for name, _ in model.named_parameters(remove_duplicate=False):
        paths, owner = [*ancestors(name)], owner_of(name)
        module = modules[owner]
        block = next((blocks[path] for path in paths if path in blocks), None)
        stage = next((stages[path] for path in paths if path in stages), None)
        if block is not None:
            depths[name] = last = block
        elif stage is not None:
            before = 0 if stage[0] == 1 else stage[0]  # what enters the first stage is the stem
            depths[name] = stage[1] if last >= stage[0] else before
        elif isinstance(module, nn.Embedding) or _is_named_embedding(name, module):
            depths[name] = 0
        elif not last and _is_named_late(name):
            depths[name] = count + 1
        elif _is_norm(module) and embedded == owner_of(owner):
            depths[name] = 0
        else:
            depths[name] = last if last < count and within(name, base) else count + 1
        if isinstance(module, nn.Embedding):
            embedded = owner_of(owner)
        elif not _is_norm(module):
            embedded = "?"
    return count, depths


def _read_stack(model: nn.Module, path: str, blocks: dict[str, int], stages: dict[str, tuple[int, int]]) -> None:
    """Add the blocks of one stack after those already there: its elements, or the inner blocks of each if staged."""
    start = max(blocks.values(), default=0)
    elements = _children(model, path)
    inner = [
        next(iter(largest_lists(model.get_submodule(element), at_least=1, itself=True)), None) for element in elements
    ]
    shapes = [[p.shape for p in model.get_submodule(element).parameters()] for element in elements]
    # A stage differs from the next in width; a block whose experts form a list does not, and is not taken apart.
    staged = None not in inner and ("" in inner or any(shape != shapes[0] for shape in shapes))
    rows = [elements, *_parallel(model, path, len(elements))]
    for i, element in enumerate(elements):
        parts = [element]
        if staged:
            parts = _children(model, ".".join(filter(None, (element, inner[i]))))
        for part in parts:
            blocks[part] = start = start + 1
        for row in rows:
            if staged:
                stages[row[i]] = (start - len(parts) + 1, start)
            else:
                blocks[row[i]] = start


def _stacks(model: nn.Module) -> list[str]:
    """Paths of the lists that hold the blocks: the largest, or in an encoder-decoder the largest two."""
    config = getattr(model, "config", None)
    one = getattr(config, "num_hidden_layers", None) == 1
    found = largest_lists(model, at_least=1 if one else 2)[:1]
    if found and getattr(config, "is_encoder_decoder", False):
        others = [path for path in largest_lists(model, at_least=1) if not within(path, found[0])]
        found += [path for path in others if not within(found[0], path)][:1]
        found = [name for name, _ in model.named_modules() if name in found]
    return found


def largest_lists(model: nn.Module, at_least: int, itself: bool = False) -> list[str]:
    """Paths of the lists of alike modules, by their number of parameters, largest and outermost first.

    Alike means of one class, or of half as many classes as modules at most (Jamba mixes two kinds of layer).
    """
    found = []
    for name, module in model.named_modules():
        children = [*module.children()]
        kinds = {type(child) for child in children}
        alike = len(kinds) <= max(1, len(children) // 2) and nn.Embedding not in kinds
        listed = isinstance(module, nn.ModuleList | nn.Sequential) and (name or itself)
        if listed and alike and sum(size(child) > 0 for child in children) >= at_least:
            found.append((size(module), name))
    return [name for _, name in sorted(found, key=lambda item: -item[0])]


def _parallel(model: nn.Module, path: str, length: int) -> Iterator[list[str]]:
    """The lists beside a stack that are as long as it: their elements belong to its elements, index by index."""
    parent = owner_of(path)
    for name, module in model.get_submodule(parent).named_children():
        beside = f"{parent}.{name}" if parent else name
        if beside != path and isinstance(module, nn.ModuleList) and len(module) == length:
            yield _children(model, beside)


def _is_named_embedding(name: str, module: nn.Module) -> bool:
    """What bears an embedding's name and is no projection: positions, BART's norm, registered after the blocks."""
    return "embed" in ".".join(name.lower().split(".")[-2:]) and not isinstance(module, nn.Linear)


def _is_named_late(name: str) -> bool:
    """A pooler or a final norm: some are registered before the blocks, though they run after them (OPT, GTE)."""
    return re.search(r"(^|\.)(final|pooler)", name) is not None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _children(model: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name, child in model.get_submodule(path).named_children() if size(child)]


def size(module: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def owner_of(name: str) -> str:
    """The path of the module that holds a parameter or module; "" is the root."""
    return name.rpartition(".")[0]


def ancestors(name: str) -> Iterator[str]:
    """The paths of the modules around a name, nearest first, without the root."""
    while name := owner_of(name):
        yield name


def within(name: str, path: str) -> bool:
    """Whether a name is a module's or that of something in it; everything is within the root, ""."""
    return not path or name == path or name.startswith(path + ".")
