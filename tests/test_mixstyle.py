"""MixStyle: the arithmetic against closed forms, and hooks that act in training alone and leave nothing behind."""

from __future__ import annotations

import families
import pytest
import torch

from hftl import Recipe
from hftl.errors import UserError
from hftl.models.anatomy import anatomy
from hftl.strategies.layers import Scratch
from hftl.strategies.mixstyle import EPSILON, MixStyle, mix_style

SHAPES = {"map": (4, 5, 6, 7), "tokens": (4, 9, 5)}
POSITIONS = {"map": (2, 3), "tokens": (1,)}


def features(kind: str) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(SHAPES[kind]) * torch.arange(1.0, 5).view(-1, *[1] * (len(SHAPES[kind]) - 1)) + 3


def normalised(x: torch.Tensor, positions: tuple[int, ...]) -> torch.Tensor:
    spread = (x.var(positions, unbiased=False, keepdim=True) + EPSILON).sqrt()
    return (x - x.mean(positions, keepdim=True)) / spread


@pytest.mark.parametrize("kind", SHAPES)
def test_a_share_of_1_is_the_identity_and_of_0_another_rows_statistics(kind):
    x, positions, order = features(kind), POSITIONS[kind], torch.tensor([1, 2, 3, 0])
    torch.testing.assert_close(mix_style(x, torch.ones(4), order), x, rtol=1e-5, atol=1e-5)
    swapped = mix_style(x, torch.zeros(4), order)
    torch.testing.assert_close(swapped.mean(positions), x[order].mean(positions), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(swapped.std(positions), x[order].std(positions), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
def test_normalised_features_are_preserved_whatever_the_share(kind):
    x, positions = features(kind), POSITIONS[kind]
    mixed = mix_style(x, torch.tensor([0.0, 0.3, 0.7, 1.0]), torch.tensor([3, 0, 1, 2]))
    assert (mixed - x).abs().max() > 0.5
    torch.testing.assert_close(normalised(mixed, positions), normalised(x, positions), rtol=1e-4, atol=1e-4)


def test_statistics_carry_no_gradient_and_what_is_normalised_does():
    x = features("tokens").requires_grad_(True)
    mix_style(x, torch.zeros(4), torch.tensor([1, 2, 3, 0])).sum().backward()
    spread = (x.var(1, unbiased=False) + EPSILON).sqrt().detach()
    torch.testing.assert_close(x.grad, (spread[[1, 2, 3, 0]] / spread)[:, None].expand_as(x), rtol=1e-4, atol=1e-4)


def test_padding_has_no_part_in_the_statistics():
    x, mask, order = features("tokens"), torch.ones(4, 9), torch.tensor([1, 0, 3, 2])
    mask[:, 6:] = 0
    wild = x.clone()
    wild[:, 6:] = 1e3
    one, other = (mix_style(value, torch.full((4,), 0.4), order, mask)[:, :6] for value in (x, wild))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, mix_style(x[:, :6], torch.full((4,), 0.4), order), rtol=1e-4, atol=1e-4)


def test_channels_last_is_the_same_computation():
    x, shares, order = features("map"), torch.full((4,), 0.2), torch.tensor([2, 3, 0, 1])
    last = mix_style(x.permute(0, 2, 3, 1), shares, order, channels_last=True).permute(0, 3, 1, 2)
    torch.testing.assert_close(last, mix_style(x, shares, order))


BATCHES = {
    "text": {"input_ids": torch.randint(5, 60, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)},
    "image": {"pixel_values": torch.randn(4, 3, 32, 32)},
}


@pytest.mark.parametrize("name", families.MODALITY)
def test_it_acts_in_training_alone_and_nothing_is_left_of_it(name):
    torch.manual_seed(0)
    model = families.adaptable(name, 3)
    model.config.eos_token_id = 3
    inputs = BATCHES[families.MODALITY[name]] | {}
    if "input_ids" in inputs:
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][:, -1] = 3  # the end token that T5 and BART look for
    places = anatomy(model)
    if not places.stack:
        with pytest.raises(UserError, match="no stack of blocks"):
            MixStyle().prepare(model, places)
        return
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state, plain = set(model.state_dict()), run(model.eval(), inputs)
    strategy = MixStyle(p=1.0, alpha=1.0, layers=1)
    mixed = strategy.prepare(model, places)
    assert set(mixed.state_dict()) == state
    assert torch.equal(run(mixed.eval(), inputs), plain)
    for module in mixed.modules():
        module.training = module is mixed  # no dropout; as where all blocks are frozen
    changed = run(mixed, inputs)
    assert not torch.allclose(changed, plain, rtol=1e-3, atol=0), "nothing was mixed"
    assert torch.equal(run(mixed, inputs), changed), "the draws do not follow torch's generator"
    finished = strategy.finish(mixed)
    assert torch.equal(run(finished, inputs), plain)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in finished.modules()] == hooks


def run(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return model(**inputs)["logits"]


def test_p_is_the_share_of_batches_that_are_mixed():
    block = torch.nn.Identity()
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), block)

    class Stack:
        stack = ("1",)

    MixStyle(p=0.3, alpha=1.0, layers=1).prepare(model, Stack())
    torch.manual_seed(0)
    x = features("tokens")
    plain = model.eval()(x)
    mixed = sum(not torch.equal(model.train()(x), plain) for _ in range(300))
    assert 60 < mixed < 120
    assert torch.equal(model(x[:1]), plain[:1]), "one row has no other to be mixed with"


def test_frozen_blocks_are_mixed_and_so_not_kept(on_text, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept"))  # another test may have kept the same rows
    settings = on_text | {"num_train_epochs": 3, "learning_rate": 1e-2, "disable_tqdm": True, "logging_steps": 1}
    losses = {}
    for name, strategy in (("plain", "LinearProbe"), ("mixed", "MixStyle(p=1.0, alpha=1.0) | LinearProbe")):
        trained = Recipe(output_dir=str(tmp_path / name), strategy=strategy, **settings).prepare()
        trained.train()
        kept = trained.trainer.cache.computed
        assert (kept > 0) == (name == "plain")
        losses[name] = [entry["loss"] for entry in trained.trainer.state.log_history if "loss" in entry]
    assert losses["plain"] != pytest.approx(losses["mixed"], rel=1e-3)


def test_a_model_that_was_mixed_cannot_be_thrown_away_unseen(model):
    import copy

    own = copy.deepcopy(model)
    places = anatomy(own)
    with pytest.raises(UserError, match="Put Scratch first"):
        (MixStyle() | Scratch()).prepare(own, places)
    fresh = (Scratch() | MixStyle()).prepare(copy.deepcopy(model), places)
    assert sum(len(module._forward_hooks) for module in fresh.modules()) == 2
