"""The one notation for tasks and strategies: `LoRA(r=16) | LayerDecay(0.9)` to objects and back.

Knows how a term is written and which values an annotation admits; knows no task and no strategy. The text is read by
`ast` and nothing in it is executed: a term is a name with literal arguments, and `|` joins terms.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hftl.errors import UserError, suggest

EXAMPLE = '"LoRA(r=16) | LayerDecay(0.9)"'
_WORDS = {
    "None": "None",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "tuple": "a tuple",
    "dict": "a mapping",
}


@dataclass(frozen=True)
class Term:
    """One `Name(arguments)` of the notation, not yet tied to a class."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


def parse(text: str) -> list[Term]:
    """Read the notation into terms, in order.

    Raises:
        UserError: the text is not names with literal arguments joined by `|`; says where.
    """
    if not isinstance(text, str):  # as YAML's null
        raise UserError(f"Expected {EXAMPLE} or the like; {clip(text)} came. The plainest is Full.")
    line = " ".join(text.splitlines()).strip()
    if not line:
        raise UserError(f"Expected {EXAMPLE} or the like; an empty text came. The plainest is Full.")
    try:
        tree = ast.parse(line, mode="eval")
        return [_term(node, line) for node in _joined(tree.body)]
    except SyntaxError as error:
        where = min(error.offset or 1, len(line) + 1)
        raise UserError(
            f"Expected {EXAMPLE} or the like; {clip(line)} cannot be read at character {where}: {error.msg}."
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise UserError(f"Expected {EXAMPLE} or the like; {clip(line)} cannot be read.") from None


def build(text: str, known: Mapping[str, type], noun: str = "strategy") -> list[Any]:
    """Make the objects that `text` names, one a term.

    Args:
        text: the notation.
        known: the classes that may be named.
        noun: what the classes are called in an error: "strategy", "task" or "augmentation".

    Raises:
        UserError: the notation is wrong, a name is unknown, or an argument is unknown, missing or of the wrong type.
    """
    return [_make(term, known, noun) for term in parse(text)]


def spell(thing: Any) -> str:
    """Write an object in the notation, so that `build` makes an equal one. Defaults are left out.

    Raises:
        UserError: an argument is not a literal (a number, a string, a bool, None, a list or a tuple of them).
    """
    parts = getattr(thing, "parts", (thing,))
    if len(parts) != 1 or parts[0] is not thing:
        return " | ".join(spell(part) for part in parts)
    name = type(thing).__name__
    pairs: list[tuple[str, Any]] = []
    for p in inspect.signature(type(thing)).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            pairs += dict(getattr(thing, p.name)).items()
        elif (value := getattr(thing, p.name)) is not p.default and value != p.default:
            pairs.append((p.name, value))
    written = ", ".join(f"{key}={_literal_text(value, f'{name}({key})')}" for key, value in pairs)
    return f"{name}({written})" if written else name


def signature(kind: type) -> str:
    """How a class is written in the notation, with its defaults: `LoRA(r=16, alpha=32)`."""
    shown = []
    for p in inspect.signature(kind).parameters.values():
        name = "**" + p.name if p.kind is p.VAR_KEYWORD else p.name
        shown.append(name if p.default is p.empty else f"{name}={p.default!r}")
    return f"{kind.__name__}({', '.join(shown)})" if shown else kind.__name__


def conform(value: Any, annotation: str) -> Any:
    """Return `value` as the annotation asks: an int becomes a float, a list a tuple; all else must already fit.

    Args:
        value: a number, string, bool, None, list, tuple or dict.
        annotation: the annotation as text, such as `int`, `float | None`, `tuple[int, ...]` or `Literal["a", "b"]`.
            A name that is none of these admits anything where it stands alone, and nothing beside one that is.

    Raises:
        ValueError: the value does not fit; the message names what was expected ("a whole number or None").
    """
    kinds = [kind for kind in _members(annotation) if _head(kind) in _WORDS or _head(kind) == "Literal"]
    if not kinds or all(_head(kind) == "None" for kind in kinds):
        return value
    for kind in kinds:
        fits, converted = _fit(value, kind)
        if fits:
            return converted
    raise ValueError(expected(annotation))


def expected(annotation: str) -> str:
    """The annotation in words: `int | None` is "a whole number or None"."""
    words = []
    for kind in _members(annotation):
        if _head(kind) == "Literal":
            words += [repr(choice) for choice in _choices(kind)]
        elif _head(kind) in _WORDS:
            items = kind.slice if isinstance(kind, ast.Subscript) and _head(kind) in ("list", "tuple") else None
            first = items.elts[0] if isinstance(items, ast.Tuple) else items
            words.append(_WORDS[_head(kind)] + (f" of {expected(ast.unparse(first))}" if first else ""))
    return " or ".join(dict.fromkeys(sorted(words, key=lambda word: word == "None"))) or "a value"


def clip(value: Any) -> str:
    """A value as an error shows it: its `repr`, on one line, 80 characters at most."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 80 else shown[:77] + "..."


def heads(annotation: str) -> set[str]:
    """The bare names of an annotation's alternatives: `list[str] | None` has `list` and `None`."""
    return {_head(kind) for kind in _members(annotation)}


def _joined(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _joined(node.left)
        yield from _joined(node.right)
    else:
        yield node


def _term(node: ast.expr, line: str) -> Term:
    if isinstance(node, ast.Name):
        return Term(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        for keyword in node.keywords:
            if keyword.arg is None:
                raise UserError(f"{name}(...) takes its arguments by name, as in {EXAMPLE}; ** cannot be used here.")
        names = [keyword.arg for keyword in node.keywords]
        if len(set(names)) < len(names):
            twice = next(each for each in names if names.count(each) > 1)
            raise UserError(f"{name} was given {twice!r} twice; give each argument once.")
        args = tuple(_literal(arg, name) for arg in node.args)
        return Term(name, args, tuple((str(k.arg), _literal(k.value, f"{name}({k.arg})")) for k in node.keywords))
    piece = ast.get_source_segment(line, node) or line
    where = len(line.encode()[: node.col_offset].decode()) + 1  # ast counts bytes
    raise UserError(
        f"Expected names with literal arguments, joined by |, as in {EXAMPLE}; {clip(piece)} came at character {where}."
    )


def _literal(node: ast.expr, what: str) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _literal(node.operand, what)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | int | float | str)):
        return node.value
    if isinstance(node, ast.List):
        return [_literal(item, what) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item, what) for item in node.elts)
    piece = ast.unparse(node)
    quotes = f" Text needs quotes: '{piece}'." if isinstance(node, ast.Name) else ""
    raise UserError(f"{what} takes numbers, text in quotes, True, False, None and lists of them; {piece} came.{quotes}")


def _literal_text(value: Any, what: str) -> str:
    """A literal as source text. Subclasses (numpy's float64, string enums) are written as their base."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and value == value:
        return float.__repr__(value).replace("inf", "1e999")  # the notation has no word for infinity; 1e999 reads as it
    if type(value) in (list, tuple):
        items = ", ".join(_literal_text(item, what) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
    raise UserError(f"{what} can be written down with a number, text, True, False, None or a list; {clip(value)} came.")


def _make(term: Term, known: Mapping[str, type], noun: str) -> Any:
    kind = known.get(term.name)
    if kind is None:
        pages = {"strategy": "strategies", "augmentation": "augmentations"}
        see = f"`hftl {pages[noun]}` lists them all." if noun in pages else f"Known: {', '.join(sorted(known))}."
        raise UserError(f"There is no {noun} {term.name!r}.{suggest(term.name, known)} {see}")
    parameters = inspect.signature(kind).parameters
    reads = f"It reads {signature(kind)}."
    named = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    if len(named) == len(parameters):
        for name, _ in term.kwargs:
            if name not in named:
                raise UserError(f"{term.name} has no argument {name!r}.{suggest(name, named)} {reads}")
    try:
        bound = inspect.signature(kind).bind(*term.args, **dict(term.kwargs))
    except TypeError as error:
        raise UserError(f"{term.name} was given wrong arguments: {error}. {reads}") from None
    for name, value in bound.arguments.items():
        p = parameters[name]
        if p.kind is not p.VAR_KEYWORD and p.annotation is not p.empty:
            try:
                bound.arguments[name] = conform(value, _annotation(p))
            except ValueError as error:
                raise UserError(f"{term.name}({name}) expected {error}; {clip(value)} came. {reads}") from None
    return kind(*bound.args, **bound.kwargs)


def _annotation(parameter: inspect.Parameter) -> str:
    written = parameter.annotation
    return written if isinstance(written, str) else inspect.formatannotation(written)


def _members(annotation: str) -> list[ast.expr]:
    """The alternatives of a union, written with `|`, `Optional` or `Union`."""
    found: list[ast.expr] = []
    for node in _joined(ast.parse(annotation, mode="eval").body):
        if isinstance(node, ast.Subscript) and _head(node) in ("Optional", "Union"):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found += [kind for item in inner for kind in _members(ast.unparse(item))]
            found += [ast.Constant(None)] if _head(node) == "Optional" else []
        else:
            found.append(node)
    return found


def _head(kind: ast.expr) -> str:
    node = kind.value if isinstance(kind, ast.Subscript) else kind
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def _choices(kind: ast.expr) -> list[Any]:
    assert isinstance(kind, ast.Subscript)
    choices = ast.literal_eval(kind.slice)
    return list(choices) if isinstance(choices, tuple) else [choices]


def _fit(value: Any, kind: ast.expr) -> tuple[bool, Any]:
    """Whether the value fits one alternative of an annotation, and the value as that alternative."""
    head = _head(kind)
    if head == "Literal":
        return any(value == choice and type(value) is type(choice) for choice in _choices(kind)), value
    if head == "None":
        return value is None, value
    if isinstance(value, bool) or head == "bool":
        return isinstance(value, bool) and head == "bool", value
    if head == "float" and isinstance(value, int) and abs(value) < 2**1023:  # the largest that float() takes
        return True, float(value)
    if head in ("list", "tuple"):
        return _fit_items(value, kind, list if head == "list" else tuple)
    return isinstance(value, {"int": int, "str": str, "dict": dict}.get(head, float)), value


def _fit_items(value: Any, kind: ast.expr, made: type) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, value
    inner = kind.slice if isinstance(kind, ast.Subscript) else None
    kinds = inner.elts if isinstance(inner, ast.Tuple) else [inner] if inner else [ast.Name("Any")]
    if made is list or inner is None or ast.unparse(kinds[-1]) == "...":
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return False, value
    try:
        return True, made(conform(item, ast.unparse(each)) for item, each in zip(value, kinds, strict=True))
    except ValueError:
        return False, value
