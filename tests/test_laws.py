"""Every strategy keeps every law of `hftl.testing` on a text and on an image task."""

from __future__ import annotations

import pytest

from hftl import testing

STRATEGIES = (
    "Full",
    "Scratch",
    "LinearProbe",
    "LastLayers(1)",
    "LastLayers(0)",
    "LayerDecay(0.7)",
    "LayerRates",
    "GradualUnfreeze",
    "ProbeThenTune(boost=2.0)",
    "BitFit",
    "LoRA(r=4)",
    "DoRA(r=4)",
    "PEFT('IA3')",
    "PEFT('LOHA', r=4)",
    "LoRA(r=4) | LayerDecay(0.7)",
    "LoRA(r=4) | LastLayers(1)",
    "LayerDecay(0.7) | GradualUnfreeze",
    "MixStyle",
    "MixStyle(p=1.0, layers=1) | LinearProbe",
    "LoRA(r=4) | MixStyle",
)
ALIGNED = (
    "DANN(weight=0.1, boost=1.0)",
    "CDAN(weight=0.1, boost=1.0)",
    "DAN",
    "DeepCORAL",
    "MCC(weight=0.1)",
    "PseudoLabel(threshold=0.7)",
    "FixMatch(threshold=0.7)",
    "LoRA(r=4) | DANN(weight=0.1)",
)
CASES = [(strategy, task) for task in ("text", "image") for strategy in (*STRATEGIES, *ALIGNED)]
CASES += [("UDALM", "text"), ("LoRA(r=4) | UDALM", "text")]
CHOSEN = (
    "Full",
    "Scratch",
    "LastLayers(1)",
    "LoRA(r=4)",
    "LayerDecay(0.7)",
    "DoRA(r=4)",
)  # a random frozen BERT tells no choices apart
CASES += [(strategy, "choice") for strategy in CHOSEN]
TURN = [case for i, case in enumerate(CASES) if i % 2 == (case[1] == "image")]
TURN = [case for case in TURN if case[0] not in ALIGNED or case[1] == "text"]
"""Each strategy on one of the tasks, in turn, those of two domains on texts: what every `pytest` goes through.

The sweep goes through the rest."""
REST = [case for case in CASES if case not in TURN]
SWEEP = pytest.mark.sweep


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in testing.TINY.items()}


@pytest.fixture(scope="module")
def outcomes(tasks, tmp_path_factory):
    """Each strategy is trained once on each task; the laws share what came of it."""
    made = {}

    def get(strategy: str, task: str) -> testing.Outcome:
        if (strategy, task) not in made:
            folder = tmp_path_factory.mktemp("runs") / "run"
            made[strategy, task] = testing.train_tiny(strategy, tasks[task], folder)
        return made[strategy, task]

    return get


@pytest.mark.parametrize(("strategy", "task"), [*TURN, *(pytest.param(*case, marks=SWEEP) for case in REST)])
def test_a_strategy_keeps_every_law(strategy, task, outcomes):
    made = outcomes(strategy, task)
    for law in testing.LAWS:
        law(made)


@pytest.mark.parametrize("cases", [TURN, pytest.param(REST, marks=SWEEP)], ids=["in turn", "the rest"])
def test_a_fresh_process_under_another_seed_gives_the_logits_of_every_folder(cases, outcomes):
    testing.a_fresh_process_gives_the_same_logits([outcomes(*case).run.folder.path for case in cases])


@pytest.mark.parametrize(("strategy", "task"), [("LayerDecay(0.7)", "image"), ("LoRA(r=4)", "text")])
def test_the_same_seed_gives_the_same_numbers(strategy, task, tasks, outcomes, tmp_path):
    assert (strategy, task) in TURN
    first = outcomes(strategy, task)
    again = testing.train_tiny(strategy, tasks[task], tmp_path / "again")
    testing.the_same_seed_gives_the_same_numbers(first, again)
    other = testing.train_tiny(strategy, tasks[task] | {"seed": 7}, tmp_path / "other")
    with pytest.raises(AssertionError):
        testing.the_same_seed_gives_the_same_numbers(first, other)


def test_a_law_that_is_broken_is_named():
    """A strategy that moves a weight behind the trainer's back breaks the law of frozen weights."""
    import dataclasses

    from hftl.strategies import Strategy

    @dataclasses.dataclass(frozen=True)
    class _Careless(Strategy):
        def rate(self, place, progress):
            return float(place.fresh)

        def loss(self, loss, step):
            step.model.bert.embeddings.word_embeddings.weight.data.add_(0.1)
            return loss

    with pytest.raises(AssertionError, match=r"frozen_is_bit_identical.*word_embeddings"):
        testing.check_strategy(_Careless(), tasks=("text",))
