"""The Trainer against closed forms and against the plain one: each trap of the base class is shown, then its cure."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import transformers
from datasets import Dataset

from hftl import Recipe
from hftl.errors import UserError
from hftl.models.anatomy import Place, anatomy
from hftl.strategies.base import Strategy
from hftl.strategies.layers import BitFit, Full, GradualUnfreeze, LastLayers, LayerDecay, LinearProbe, ProbeThenTune
from hftl.train.rates import rate_groups
from hftl.train.sampling import LengthGrouped
from hftl.train.selecting import patience_from
from hftl.train.trainer import Trainer

ROWS = 16


@pytest.fixture(scope="module")
def cnn() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def texts(n: int = ROWS, length: int = 8) -> Dataset:
    ids = torch.randint(1, 50, (n, length), generator=torch.Generator().manual_seed(1))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": [i % 3 for i in range(n)]}).with_format("torch")


def images(n: int = ROWS) -> Dataset:
    pixels = torch.randn((n, 3, 32, 32), generator=torch.Generator().manual_seed(1)) + 1.0
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [i % 3 for i in range(n)]}).with_format(
        "torch"
    )


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def arguments(folder, **settings) -> transformers.TrainingArguments:
    defaults = {
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "per_device_train_batch_size": ROWS,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **defaults | settings)


def trained(cls, model, rows, folder, strategy=None, fresh=("classifier.weight", "classifier.bias"), **settings):
    model = copy.deepcopy(model)
    extra = {} if cls is transformers.Trainer else {"strategy": strategy, "anatomy": anatomy(model, fresh)}
    torch.manual_seed(3)
    trainer = cls(model=model, args=arguments(folder, **settings), train_dataset=rows, data_collator=collate, **extra)
    trainer.train()
    return trainer


def no_dropout(model):
    model = copy.deepcopy(model)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def update(trainer, model) -> torch.Tensor:
    before = torch.cat([p.flatten() for p in model.parameters()])
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_micro_batches_make_the_update_of_one_batch(model, tmp_path, accumulate):
    model, rows = no_dropout(model), texts()
    split = {"per_device_train_batch_size": ROWS // accumulate, "gradient_accumulation_steps": accumulate}
    whole = update(trained(Trainer, model, rows, tmp_path), model)
    parts = update(trained(Trainer, model, rows, tmp_path, **split), model)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    plain = update(trained(transformers.Trainer, model, rows, tmp_path, **split), model)
    assert plain.norm() / whole.norm() > accumulate * 0.9, "the plain Trainer has lost its fault: drop the cure"


def test_the_last_short_accumulation_counts_each_row_once(model, tmp_path):
    """10 rows as 4 + 4 + 2: the mean over rows, not the mean of the means."""
    model, rows = no_dropout(model), texts(10)
    whole = update(trained(Trainer, model, rows, tmp_path, per_device_train_batch_size=10), model)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    parts = update(trained(Trainer, model, rows, tmp_path, **split), model)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_the_logged_loss_is_the_mean_over_rows(model, tmp_path):
    model, rows = no_dropout(model), texts()
    with torch.no_grad():
        expected = model(**collate(list(rows))).loss.item()
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "logging_steps": 1}
    logged = trained(Trainer, model, rows, tmp_path, **split).state.log_history[0]["loss"]
    assert logged == pytest.approx(expected, abs=1e-4)


def test_item_losses_are_weighed_over_the_whole_update(model, tmp_path):
    """A class-weighted loss over 4 + 4 + 4 + 4 rows equals the one over 16."""
    model, rows = no_dropout(model), texts()
    weights = torch.tensor([3.0, 1.0, 0.5])

    def losses(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]

    found = []
    for settings in ({}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}):
        copied = copy.deepcopy(model)
        args = arguments(tmp_path, **settings)
        trainer = Trainer(copied, args, item_losses=losses, train_dataset=rows, data_collator=collate)
        trainer.train()
        found.append(update(trainer, model))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found[0], update(trained(Trainer, model, rows, tmp_path), model))


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_frozen_backbone_keeps_its_batchnorm_statistics(cnn, tmp_path):
    fresh = ("classifier.1.weight", "classifier.1.bias")
    settings = {"max_steps": 4, "per_device_train_batch_size": 4}
    probe = trained(Trainer, cnn, images(), tmp_path, LinearProbe(), fresh, **settings)
    assert changed(cnn.state_dict(), probe.model) == set(fresh)
    plain = copy.deepcopy(cnn)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in fresh)
    plain = trained(transformers.Trainer, plain, images(), tmp_path, **settings)
    moved = changed(cnn.state_dict(), plain.model)
    assert any("running_mean" in name for name in moved), "the plain Trainer has lost its fault: drop the cure"


def test_a_frozen_backbone_drops_nothing_out(model, tmp_path):
    seen = []
    hook = lambda module, inputs, output: seen.append(output[0].detach())  # noqa: E731
    trainer = trained(Trainer, model, texts(), tmp_path, LinearProbe())
    handle = trainer.model.bert.encoder.register_forward_hook(hook)
    with trainer.frozen():
        for _ in range(2):
            trainer.training_step(trainer.model, collate(list(texts())), torch.tensor(ROWS))
    handle.remove()
    torch.testing.assert_close(seen[0], seen[1], atol=0, rtol=0)


def test_what_trains_still_drops_out(model, tmp_path):
    trainer = trained(Trainer, model, texts(), tmp_path, LastLayers(1))
    trainer.model.train()
    trainer._rest_frozen_modules(trainer.model, ())
    training = {name for name, module in trainer.model.named_modules() if module.training}
    assert "bert.encoder.layer.1.output.dropout" in training
    assert "bert.encoder.layer.0.output.dropout" not in training
    assert "bert.embeddings.dropout" not in training


@pytest.mark.parametrize("strategy", [LinearProbe(), LastLayers(1), BitFit()], ids=str)
def test_what_has_rate_0_is_bit_identical_after_training(model, tmp_path, strategy):
    trainer = trained(Trainer, model, texts(), tmp_path, strategy, max_steps=3, optim="adamw_torch", weight_decay=0.1)
    where = anatomy(model, ("classifier.weight", "classifier.bias"))
    trains = {name for name, _ in model.named_parameters() if strategy.rate(where.place(name), 0.5) > 0}
    assert changed(model.state_dict(), trainer.model) == trains


def test_each_parameter_is_in_one_group_at_its_rate(model, tmp_path):
    trainer = trained(Trainer, model, texts(), tmp_path, LayerDecay(0.5), optim="adamw_torch", weight_decay=0.1)
    rate = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    count = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert count == len(rate) == len(list(trainer.model.parameters()))
    depth = {"bert.embeddings": 3, "bert.encoder.layer.0": 2, "bert.encoder.layer.1": 1, "bert.pooler": 0}
    for name, parameter in trainer.model.named_parameters():
        below = next((d for prefix, d in depth.items() if name.startswith(prefix)), 0)
        assert rate[id(parameter)] == pytest.approx(0.1 * 0.5**below), name
    for group in trainer.optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_trained_step_follows_the_rate(model, tmp_path):
    """Trap 6: a schedule that was built but not used would not show here, as the weights themselves are measured."""
    model = no_dropout(model)
    full = update_by_name(trained(Trainer, model, texts(), tmp_path, Full()), model)
    decayed = update_by_name(trained(Trainer, model, texts(), tmp_path, LayerDecay(0.5)), model)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(decayed[name], full[name] * 0.25, atol=1e-7, rtol=1e-3)


def update_by_name(trainer, model) -> dict[str, torch.Tensor]:
    before = dict(model.named_parameters())
    return {name: p.detach() - before[name].detach() for name, p in trainer.model.named_parameters()}


@dataclass(frozen=True)
class Recorded(Strategy):
    """Rates that fall from 1 to 0 for the stem."""

    def rate(self, place: Place, progress: float) -> float:
        return 1.0 - progress if place.depth == 0 else 1.0


def test_changing_rates_multiply_the_schedule(model, tmp_path):
    steps = 8
    trainer = Trainer(
        copy.deepcopy(model),
        arguments(tmp_path, max_steps=steps, lr_scheduler_type="linear", warmup_steps=2),
        strategy=Recorded(),
        train_dataset=texts(),
        data_collator=collate,
    )
    seen = []

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            by = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            seen.append((by[id(trainer.model.classifier.weight)], by[id(trainer.model.bert.embeddings.LayerNorm.bias)]))

    trainer.add_callback(Look())
    trainer.train()
    shape = [min(s / 2, (steps - s) / (steps - 2)) for s in range(steps)]
    for step, (head, stem) in enumerate(seen):
        assert head == pytest.approx(0.1 * shape[step])
        assert stem == pytest.approx(0.1 * shape[step] * (1 - step / steps))


def test_gradual_unfreezing_leaves_each_layer_alone_until_its_turn(model, tmp_path):
    trainer = Trainer(
        copy.deepcopy(model),
        arguments(tmp_path, max_steps=12, optim="adamw_torch"),
        strategy=GradualUnfreeze(until=0.9),
        anatomy=anatomy(model, ("classifier.weight", "classifier.bias")),
        train_dataset=texts(),
        data_collator=collate,
    )
    first_change: dict[str, int] = {}

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for name in changed(model.state_dict(), trainer.model):
                first_change.setdefault(name, state.global_step)

    trainer.add_callback(Look())
    trainer.train()
    order = ["classifier.weight", *(f"bert.encoder.layer.{i}.output.dense.weight" for i in (1, 0))]
    order.append("bert.embeddings.word_embeddings.weight")
    steps = [first_change[name] for name in order]
    assert steps == sorted(steps)
    assert len(set(steps)) == 4


def test_the_probe_phase_leaves_the_backbone_untouched(model, tmp_path):
    trainer = trained(Trainer, model, texts(), tmp_path, ProbeThenTune(probe=0.5, boost=2.0), max_steps=2)
    assert "bert.pooler.dense.weight" in changed(model.state_dict(), trainer.model)
    half = Trainer(
        copy.deepcopy(model),
        arguments(tmp_path, max_steps=10),
        strategy=ProbeThenTune(probe=0.5),
        anatomy=anatomy(model, ("classifier.weight", "classifier.bias")),
        train_dataset=texts(),
        data_collator=collate,
    )

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    half.add_callback(Stop())
    half.train()
    assert changed(model.state_dict(), half.model) == {"classifier.weight", "classifier.bias"}


def test_forward_passes_count_the_backward_by_depth(model, tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    cost = {
        s: trained(Trainer, model, texts(), tmp_path, s, **settings).forward_passes
        for s in (Full(), LastLayers(1), LinearProbe())
    }
    assert cost[Full()] == pytest.approx(2 * 3)
    assert cost[LastLayers(1)] == pytest.approx(2 * (1 + 2 / 3))
    assert cost[LinearProbe()] == pytest.approx(2 * 1)


def test_a_strategy_that_trains_nothing_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="trains nothing"):
        Trainer(copy.deepcopy(model), arguments(tmp_path), strategy=LinearProbe(), anatomy=anatomy(model))


def test_a_strategy_that_undoes_another_is_refused(model, tmp_path):
    where = anatomy(model, ("classifier.weight", "classifier.bias"))
    with pytest.raises(UserError, match="LinearProbe freezes all that LayerDecay trains"):
        Trainer(copy.deepcopy(model), arguments(tmp_path), strategy=LinearProbe() | LayerDecay(0.9), anatomy=where)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(on_text, tmp_path):
    with pytest.raises(UserError, match="Lower --learning_rate"):
        Recipe(**on_text, learning_rate=1e30, max_steps=20, output_dir=str(tmp_path / "run")).run()


def test_rows_of_like_length_share_a_batch_and_every_row_comes_once():
    lengths = [i * 7 % 97 for i in range(4000)]
    sampler = LengthGrouped(4000, 10, lengths, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(4000))
    spread = [max(b) - min(b) for s in range(0, 4000, 10) if (b := [lengths[i] for i in first[s : s + 10]])]
    assert sum(spread) / len(spread) < 5
    sampler.set_epoch(1)
    assert list(sampler) != first
    again = LengthGrouped(4000, 10, lengths, seed=1)
    assert list(again) == first


def test_padding_waste_falls_by_grouping(model, tmp_path):
    lengths = [2 + i % 20 for i in range(3200)]

    def waste(order: list[int]) -> int:
        return sum(max(b) * len(b) - sum(b) for s in range(0, 3200, 8) if (b := [lengths[i] for i in order[s : s + 8]]))

    assert waste(list(LengthGrouped(3200, 8, lengths))) < 0.3 * waste(list(LengthGrouped(3200, 8)))


def test_a_resumed_run_ends_bit_identical(model, tmp_path):
    settings = {"optim": "adamw_torch", "lr_scheduler_type": "linear", "per_device_train_batch_size": 4}
    settings |= {"max_steps": 10, "save_strategy": "steps", "save_steps": 3}
    whole = trained(Trainer, model, texts(), tmp_path / "whole", LayerDecay(0.7), **settings)
    trained(Trainer, model, texts(), tmp_path / "killed", LayerDecay(0.7), **settings)
    copied = copy.deepcopy(model)
    where = anatomy(copied, ("classifier.weight", "classifier.bias"))
    args = arguments(tmp_path / "killed", **settings)
    again = Trainer(copied, args, strategy=LayerDecay(0.7), anatomy=where, train_dataset=texts(), data_collator=collate)
    again.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-6"))
    assert not changed(whole.model.state_dict(), again.model)


@pytest.mark.parametrize(
    ("strategy", "schedule", "start"),
    [
        (Full(), "linear", 0.5),
        (Full(), "constant", 0.0),
        (ProbeThenTune(0.3), "constant", 0.3),
        (GradualUnfreeze(0.8), "cosine", 0.8),
    ],
    ids=str,
)
def test_patience_counts_from_the_last_stage_and_once_the_rate_has_fallen(model, strategy, schedule, start):
    fresh = ("classifier.weight", "classifier.bias")
    groups = rate_groups(copy.deepcopy(model), anatomy(model, fresh), strategy)
    assert patience_from(groups, schedule) == pytest.approx(start, abs=0.01)


def test_of_equal_checkpoints_the_one_with_the_lowest_loss_is_kept(model, tmp_path):
    """A metric that never moves: the base class keeps the first, here the loss decides."""
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "same", "greater_is_better": True}
    args = arguments(tmp_path, **settings, **best)
    trainer = Trainer(no_dropout(model), args, collate, texts(), texts(), compute_metrics=lambda found: {"same": 1.0})
    trainer.breaks_ties = True
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.state.best_global_step == min(losses, key=losses.__getitem__) == 6


def test_what_trained_is_what_had_by_the_checkpoint_that_is_kept(model, tmp_path):
    strategy = ProbeThenTune(0.5, boost=1.0)
    trainer = trained(Trainer, model, texts(), tmp_path, strategy, max_steps=4)
    assert trainer.trained == sum(p.numel() for p in model.parameters())
    trainer.state.best_global_step = 2
    assert trainer.trained == sum(p.numel() for p in model.classifier.parameters())


def test_dropping_the_last_batch_drops_no_row_that_is_measured(model, tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=4, per_device_eval_batch_size=4)
    trainer = Trainer(no_dropout(model), args, collate, texts(10), texts(10))
    assert len(trainer.get_train_dataloader()) == 2
    assert len(trainer.predict(texts(10)).predictions) == 10
    assert trainer.args.dataloader_drop_last
