"""The notation: what it reads, what it refuses, and that writing and reading are inverse."""

from __future__ import annotations

import ast
import contextlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hftl.strategies  # noqa: F401, fills Strategy.known()
from hftl.errors import UserError
from hftl.settings.spec import Term, build, conform, expected, parse, signature, spell
from hftl.strategies.base import Chain, Strategy


@dataclass(frozen=True)
class Low:
    r: int = 8
    alpha: float = 16.0
    name: str | None = None
    on: bool = False
    parts_of: tuple[int, ...] = ()
    mode: Literal["a", "b"] = "a"
    free: Any = None


@dataclass(frozen=True)
class Needs:
    method: str
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"Needs(k) is 1 or more; {self.k} came.")


@dataclass(frozen=True, init=False)
class Open:
    """Takes any further argument by name, as a wrapper of another library's methods does."""

    method: str
    options: tuple[tuple[str, Any], ...]

    def __init__(self, method: str, **options: Any) -> None:
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "options", tuple(options.items()))


KNOWN: dict[str, type] = {"Low": Low, "Needs": Needs, "Open": Open}


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("Low", [Low()]),
        ("Low()", [Low()]),
        (" Low ( r = 4 ) ", [Low(r=4)]),
        ("Low(4, 2.5)", [Low(4, 2.5)]),
        ("Low(r=-1) | Needs('VERA', k=2)", [Low(r=-1), Needs("VERA", 2)]),
        ("Low | (Low(1) | Low(2)) | Low(3)", [Low(), Low(1), Low(2), Low(3)]),
        ("Low(r=4)\n  | Low(5)", [Low(4), Low(5)]),
        ("Low(name=None, on=True, parts_of=(1, 2))", [Low(on=True, parts_of=(1, 2))]),
        ("Low(parts_of=[1, 2])", [Low(parts_of=(1, 2))]),
        ("Low(free=['x', (1, -2.5, None)])", [Low(free=["x", (1, -2.5, None)])]),
        ("Low(name='a | b(c)')", [Low(name="a | b(c)")]),
        ("Low(name='é') | Low", [Low(name="é"), Low()]),
        ('Open("VERA", r=8, targets=["q"])', [Open("VERA", r=8, targets=["q"])]),
    ],
)
def test_the_notation_builds_the_objects_it_names(text: str, objects: list[Any]) -> None:
    assert build(text, KNOWN) == objects


def test_parsing_keeps_arguments_apart_from_classes() -> None:
    assert parse("A(1, b='x') | C") == [Term("A", (1,), (("b", "x"),)), Term("C")]


def test_an_int_where_a_float_is_annotated_becomes_a_float() -> None:
    made = build("Low(alpha=2)", KNOWN)[0]
    assert isinstance(made.alpha, float)
    assert isinstance(Low(parts_of=build("Low(parts_of=[1])", KNOWN)[0].parts_of).parts_of, tuple)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["empty", "Full"]),
        ("Lo", ["no strategy 'Lo'", "Did you mean 'Low'?", "hftl strategies"]),
        ("low", ["Did you mean 'Low'?"]),
        ("Zzzzzz", ["no strategy 'Zzzzzz'", "hftl strategies"]),
        ("Low(R=1)", ["no argument 'R'", "Did you mean 'r'?", "Low(r=8, alpha=16.0"]),
        ("Low(alhpa=1)", ["Did you mean 'alpha'?"]),
        ("Needs", ["missing a required argument: 'method'", "Needs(method, k=1)"]),
        ("Needs('a', 1, 2)", ["too many positional arguments", "Needs(method, k=1)"]),
        ("Needs('a', method='b')", ["multiple values for argument 'method'"]),
        ("Needs('a', 0)", ["Needs(k) is 1 or more; 0 came."]),
        ("Low(r='x')", ["Low(r) expected a whole number; 'x' came"]),
        ("Low(r=1.5)", ["Low(r) expected a whole number; 1.5 came"]),
        ("Low(r=True)", ["Low(r) expected a whole number; True came"]),
        ("Low(on=1)", ["Low(on) expected true or false; 1 came"]),
        ("Low(name=3)", ["Low(name) expected text or None; 3 came"]),
        ("Low(mode='c')", ["expected 'a' or 'b'; 'c' came"]),
        ("Low(parts_of=('x',))", ["expected a tuple of a whole number"]),
        ("Low(alpha=1" + "0" * 400 + ")", ["Low(alpha) expected a number", "..."]),
        ("Needs(VERA)", ["VERA came", "Text needs quotes: 'VERA'"]),
        ("Low(r=1 + 1)", ["1 + 1 came"]),
        ("Low(r=-True)", ["-True came"]),
        ("Low(name=f'{1}')", ["came"]),
        ("Low(free=b'x')", ["b'x' came"]),
        ("Low(free=1j)", ["1j came"]),
        ("Low(free={'a': 1})", ["{'a': 1} came"]),
        ("Low(**{'r': 1})", ["by name", "**"]),
        ("Low(*[1])", ["*[1] came"]),
        ("Low(r=1, r=2)", ["Low was given 'r' twice"]),
        ("Low(r=16", ["at character 4", "never closed"]),
        ("Low;Low", ["at character 4"]),
        ("Low + Low", ["joined by |", "'Low + Low' came at character 1"]),
        ("Low | hftl.Low", ["'hftl.Low' came at character 7"]),
        ("Low(name='é') | Low, Low", ["came at character 1"]),
        ("__import__('os').system('false')", ["literal arguments", "came at character 1"]),
        ("lambda: 0", ["came at character 1"]),
        ("(" * 500, ["cannot be read"]),
        (" | ".join(["Low"] * 5000), ["cannot be read"]),
        ("Low\0", ["cannot be read"]),
    ],
)
def test_what_cannot_be_built_is_answered_with_a_sentence_that_teaches(text: str, fragments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(text, KNOWN)
    sentence = str(caught.value)
    assert all(fragment in sentence for fragment in fragments), sentence
    assert "\n" not in sentence
    assert len(sentence) < 500


def test_a_task_is_called_a_task_in_errors() -> None:
    with pytest.raises(UserError, match=r"There is no task 'Lwo'\. Did you mean 'Low'\? Known: Low, Needs, Open\."):
        build("Lwo", KNOWN, noun="task")


def test_nothing_in_the_text_is_executed(tmp_path: Any) -> None:
    marker = tmp_path / "executed"
    for text in (f"open({str(marker)!r}, 'w')", f"Low(free=open({str(marker)!r}, 'w'))"):
        with pytest.raises(UserError):
            build(text, KNOWN)
    assert not marker.exists()


def test_defaults_are_left_out_when_an_object_is_spelled() -> None:
    assert spell(Low()) == "Low"
    assert spell(Low(r=4, name="x")) == "Low(r=4, name='x')"
    assert spell(Open("VERA", r=8)) == "Open(method='VERA', r=8)"


def test_a_chain_is_spelled_with_bars_and_built_back() -> None:
    known = Strategy.known()
    chain = Chain(tuple(build("LastLayers(3) | LayerDecay(0.9) | BitFit", known)))
    assert spell(chain) == "LastLayers(k=3) | LayerDecay(decay=0.9) | BitFit"
    assert Chain(tuple(build(spell(chain), known))) == chain


def test_what_the_notation_cannot_hold_is_not_spelled() -> None:
    for value in ({"a": 1}, math.nan, object(), [1, {2}]):
        with pytest.raises(UserError, match=r"Low\(free\) can be written down with"):
            spell(Low(free=value))


def test_infinity_survives_the_round_trip() -> None:
    assert build(spell(Low(alpha=-math.inf)), KNOWN) == [Low(alpha=-math.inf)]


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
literals = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple))
lows = st.builds(
    Low,
    r=st.integers(),
    alpha=st.floats(allow_nan=False),
    name=st.none() | st.text(),
    on=st.booleans(),
    parts_of=st.lists(st.integers(), max_size=3).map(tuple),
    mode=st.sampled_from(["a", "b"]),
    free=literals,
)
opens = st.builds(lambda method, options: Open(method, **options), st.text(), st.just({"r": 1}) | st.just({}))


@settings(max_examples=150, deadline=None)
@given(st.lists(lows | opens, min_size=1, max_size=3))
def test_spelling_and_building_are_inverse(things: list[Any]) -> None:
    assert build(" | ".join(spell(thing) for thing in things), KNOWN) == things


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="LowNeds(r=1,'x'|) *[]{}.+-:\n\0é", max_size=25))
def test_no_text_does_worse_than_a_sentence(text: str) -> None:
    with contextlib.suppress(UserError):
        assert all(type(thing) in KNOWN.values() for thing in build(text, KNOWN))


@pytest.mark.parametrize("name", sorted(name for name, kind in Strategy.known().items() if "hftl." in kind.__module__))
def test_every_strategy_round_trips(name: str) -> None:
    made = build("PEFT('VERA', r=4)" if name == "PEFT" else name, Strategy.known())[0]
    assert build(spell(made), Strategy.known()) == [made]


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (1, "float", 1.0),
        ([1, 2], "tuple[int, ...]", (1, 2)),
        ([1, "a"], "tuple[int, str]", (1, "a")),
        ((1, 2), "list[float]", [1.0, 2.0]),
        ([1], "list", [1]),
        (3, "Optional[int]", 3),
        (None, "typing.Optional[int]", None),
        ("x", "Union[int, str]", "x"),
        (False, "str | None | Literal[False]", False),
        ("linear", "SchedulerType | str", "linear"),
        (object, "Any", object),
        (3, "ParallelismConfig | None", 3),
        ({"a": 1}, "dict[str, Any] | str | None", {"a": 1}),
    ],
)
def test_a_value_is_returned_as_its_annotation_asks(value: Any, annotation: str, result: Any) -> None:
    assert conform(value, annotation) == result
    assert type(conform(value, annotation)) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (True, "int", "a whole number"),
        (1.0, "int | None", "a whole number or None"),
        ([1, 2], "tuple[int]", "a tuple of a whole number"),
        (["x"], "list[int]", "a list of a whole number"),
        (3, "SchedulerType | str", "text"),
        (0, "str | None | Literal[False]", "text or False or None"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_words(value: Any, annotation: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        conform(value, annotation)
    assert str(caught.value) == expected(annotation) == words


def test_a_signature_reads_as_the_notation() -> None:
    assert signature(Needs) == "Needs(method, k=1)"
    assert signature(Open) == "Open(method, **options)"
    assert ast.parse(signature(Low).replace("Low", "f"))


def test_what_is_no_text_is_no_notation() -> None:
    with pytest.raises(UserError, match=r"None came. The plainest is Full"):
        parse(None)  # type: ignore[arg-type]
