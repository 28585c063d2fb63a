"""The forward pass from a cut on gives what the whole one gives, for every family of models."""

from __future__ import annotations

import families
import pytest
import torch
from torch import nn

from hftl.models.anatomy import anatomy
from hftl.models.cut import find_cut
from hftl.models.frozen import frozen_modules
from hftl.models.replay import Replay, capture, stand_in


def texts(seed: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    ids, mask = torch.randint(5, 60, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    ids[:, length - 3] = 3  # the end token that T5 and BART look for
    ids[0, length - 2 :], mask[0, length - 2 :] = 0, 0
    ids[1:, length - 2 :] = torch.randint(5, 60, (rows - 1, 2))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(rows, dtype=torch.long)}


def images(seed: int, rows: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"pixel_values": torch.randn(rows, 3, 32, 32), "labels": torch.zeros(rows, dtype=torch.long)}


def prepared(name: str, blocks: int) -> tuple[nn.Module, set[int]]:
    """A model in which the head and the last blocks train, and the rest is frozen and at rest."""
    torch.manual_seed(0)
    model = families.adaptable(name, 3)
    model.config.eos_token_id = 3
    places = anatomy(model, {n for n, p in model.named_parameters() if p.shape[0] == 3})
    active = set()
    for weight, parameter in model.named_parameters():
        place = places.place(weight)
        parameter.requires_grad_(place.fresh if not blocks else place.depth >= place.top - blocks)
        if parameter.requires_grad:
            active.add(id(parameter))
    resting = frozen_modules(model, active)

    def rest(module: nn.Module, args: object) -> None:
        for frozen in resting if module.training else []:
            frozen.training = False

    model.register_forward_pre_hook(rest)
    return model, active


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(7)
    return model.train()(**inputs)["logits"]


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("name", families.MODALITY)
def test_a_replayed_forward_pass_gives_the_same_logits_and_gradients(name, blocks):
    if blocks and name == "albert":
        pytest.skip("ALBERT's one shared block has no depth")
    model, active = prepared(name, blocks)
    text = families.MODALITY[name] == "text"
    small, large = (texts(1, 2, 7), texts(2, 3, 11)) if text else (images(1, 2), images(2, 3))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    cut = find_cut(model, active, small, large)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # BatchNorm's too
    if blocks and name == "deberta-v2":
        assert cut is None  # its positions lie after the blocks, so they train, and feed every block
        return
    assert cut is not None, "no place was found to start from"
    assert cut.share > 0.2
    fresh_rows = texts(3, 4, 9) if text else images(3, 4)
    whole = logits(model, fresh_rows)
    whole.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    kept = capture(model.eval(), cut, fresh_rows)
    inputs = fresh_rows if cut.inputs else stand_in(small, fresh_rows)
    replay = Replay(model, cut)
    replay.start()
    replay.feed(kept, inputs)
    model.zero_grad()
    replayed = logits(model, inputs)
    replayed.square().sum().backward()
    replay.stop()
    torch.testing.assert_close(replayed, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip([p.grad for p in model.parameters() if p.grad is not None], gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model, fresh_rows), whole)  # and afterwards the model is itself again


def test_a_frozen_module_runs_no_more():
    model, active = prepared("bert", 1)
    cut = find_cut(model, active, texts(1, 2, 7), texts(2, 3, 11))
    calls = []
    model.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    replay, inputs = Replay(model, cut), texts(3, 4, 9)
    kept = capture(model.eval(), cut, inputs)
    assert calls.pop()
    replay.start()
    replay.feed(kept, inputs)
    logits(model, inputs)
    assert not calls


def test_where_all_trains_there_is_nothing_to_keep():
    model, _ = prepared("bert", 1)
    assert find_cut(model, {id(p) for p in model.parameters()}, texts(1, 2, 7), texts(2, 3, 11)) is None


def test_a_module_whose_dropout_is_on_is_no_place_to_start_from():
    model, active = prepared("bert", 0)
    cut = find_cut(model, active, texts(1, 2, 7), texts(2, 3, 11))
    assert "dropout" not in cut.name


class Shortcut(nn.Module):
    """What follows the frozen layer reads the input too: the layer's output alone is not enough."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.low(values) + values)}


def test_a_place_that_other_values_bypass_needs_the_inputs_themselves():
    model = Shortcut()
    batches = [{"values": torch.randn(n, 8), "labels": torch.zeros(n)} for n in (2, 3)]
    cut = find_cut(model, {id(p) for p in model.head.parameters()}, *batches)
    assert cut is None or cut.inputs
