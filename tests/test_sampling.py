"""The order of rows: each comes once, batches keep their budget, every process and every resume agree, and what an
evaluation gathers comes back in the rows' own order.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hftl.errors import UserError
from hftl.models.anatomy import anatomy
from hftl.strategies.layers import Full
from hftl.train.sampling import LengthGrouped, LongestFirst, TokenBudget, in_order, lengths_of, training_order
from hftl.train.trainer import Trainer

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=300)
WORLD = {"processes": st.integers(1, 3), "accumulation": st.integers(1, 3)}


def epoch_of(lengths, tokens, epoch=0, processes=1, accumulation=1, **others) -> list[list[list[int]]]:
    """The batches of an epoch, by process."""
    found = []
    for process in range(processes):
        sampler = TokenBudget(lengths, tokens, 7, processes, process, accumulation, **others)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


def padding(batches: list[list[int]], lengths: np.ndarray) -> float:
    """The share of padding among all tokens."""
    return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)


def in_batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


# --- batches by tokens ---


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), WORLD["processes"], WORLD["accumulation"])
def test_every_row_comes_once_in_batches_that_keep_the_budget(lengths, tokens, epoch, processes, accumulation):
    shares = epoch_of(lengths, tokens, epoch, processes, accumulation)
    batches = [batch for share in shares for batch in share]
    assert len({len(share) for share in shares}) == 1, "a process with fewer batches than another would hang"
    assert len(batches) % (processes * accumulation) == 0
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    rows = sorted(i for batch in batches for i in batch)
    assert set(rows) == set(range(len(lengths)))
    if len(batches) <= len(lengths):
        assert rows == list(range(len(lengths))), "a row came twice though there were enough to go round"


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 200), WORLD["processes"], WORLD["accumulation"])
def test_each_epoch_has_as_many_batches_and_another_order(lengths, tokens, processes, accumulation):
    epochs = [epoch_of(lengths, tokens, epoch, processes, accumulation) for epoch in range(4)]
    assert len({len(share) for shares in epochs for share in shares}) == 1
    if len(lengths) > 20:
        assert any(shares != epochs[0] for shares in epochs[1:])
    assert epoch_of(lengths, tokens, 2, processes, accumulation) == epochs[2]


def test_an_epoch_that_would_need_more_batches_takes_wider_windows(monkeypatch):
    """Windows of one batch waste much, and differ much by epoch: without the wider ones some epoch would not fit."""
    monkeypatch.setattr("hftl.train.sampling.WINDOW", 1)
    lengths, factors = np.random.default_rng(0).integers(1, 60, 400), []
    cut = TokenBudget._cut
    monkeypatch.setattr(TokenBudget, "_cut", lambda self, order, f=1: factors.append(f) or cut(self, order, f))
    counts = {len(epoch_of(lengths, 120, epoch)[0]) for epoch in range(10)}
    assert len(counts) == 1
    assert max(factors) > 1


def test_processes_take_turns_so_that_an_update_is_the_same_however_it_is_spread():
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    alone = epoch_of(lengths, 300, accumulation=2)[0]
    first, second = epoch_of(lengths, 300, processes=2)
    assert alone[0::2] == first
    assert alone[1::2] == second


def test_padding_falls_by_grouping_and_by_tokens():
    lengths = np.minimum(np.exp(np.random.default_rng(0).normal(4, 1, 6400)).astype(int) + 3, 512)
    shuffled = padding(in_batches(list(LengthGrouped(len(lengths), 16)), 16), lengths)
    grouped = padding(in_batches(list(LengthGrouped(len(lengths), 16, lengths)), 16), lengths)
    budget = padding(epoch_of(lengths, 2048)[0], lengths)
    assert shuffled > 0.6
    assert grouped < 0.08
    assert budget < 0.05


def test_few_rows_meet_others_in_every_epoch():
    """Sorted in one window, as 600 rows once were, rows that shared a batch would share most of the next one, too."""
    lengths = np.random.default_rng(0).integers(5, 60, 600)
    sampler, mates = LengthGrouped(600, 16, lengths), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = in_batches(list(sampler), 16)
        mates.append({(a, b) for batch in batches for a in batch for b in batch if a < b})
    again = len(mates[0] & mates[1]) / len(mates[0])
    assert again < 0.2  # 0.40 in one window, 0.026 in a plain shuffle


def test_rows_that_have_been_cut_count_what_is_left_of_them():
    args = SimpleNamespace(length_column_name="length", world_size=1, process_index=0, gradient_accumulation_steps=1)
    args.seed, args.data_seed = 1, None
    rows = SimpleNamespace(lengths=np.full(64, 1000))
    assert {len(batch) for batch in training_order(rows, args, tokens=256, longest=32)} == {8}
    assert {len(batch) for batch in training_order(rows, args, tokens=256)} == {1}


def test_lengths_are_an_attribute_or_a_column():
    rows = Dataset.from_dict({"length": [3, 1, 2], "text": ["a", "b", "c"]})
    assert lengths_of(rows, "length").tolist() == [3, 1, 2]
    assert lengths_of(rows.remove_columns("length"), "length") is None
    assert lengths_of(SimpleNamespace(lengths=[4, 5]), "length").tolist() == [4, 5]
    assert lengths_of(SimpleNamespace(lengths=None), "length") is None


# --- the Trainer ---


def texts(n: int = 90, sized: bool = True) -> Dataset:
    rng = np.random.default_rng(3)
    ids = [rng.integers(1, 50, size).tolist() for size in rng.integers(2, 40, n)]
    columns = {"input_ids": ids, "labels": [len(row) % 3 for row in ids]}
    return Dataset.from_dict(columns | ({"length": [len(row) for row in ids]} if sized else {}))


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    padded = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask), "labels": labels}


def trainer(model, folder, rows=None, metric=None, **others) -> Trainer:
    model = copy.deepcopy(model)
    own = {name: others.pop(name) for name in ("max_tokens", "longest") if name in others}
    defaults = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False}
    defaults |= {"dataloader_pin_memory": False, "per_device_eval_batch_size": 8, "use_cpu": True}
    args = transformers.TrainingArguments(output_dir=str(folder), **defaults | others)
    fresh = ("classifier.weight", "classifier.bias")
    common = {"strategy": Full(), "anatomy": anatomy(model, fresh), "data_collator": collate, "compute_metrics": metric}
    return Trainer(model, args, train_dataset=texts() if rows is None else rows, **common, **own)


def test_the_steps_and_the_schedule_of_a_token_budget_are_known_from_the_start(model, tmp_path):
    made = trainer(model, tmp_path, max_tokens=200, num_train_epochs=3, gradient_accumulation_steps=2, seed=5)
    sizes, rates = [], []
    step = made.training_step
    made.training_step = lambda m, inputs, n: (sizes.append(inputs["input_ids"].shape), step(m, inputs, n))[1]

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, lr_scheduler, **kwargs):
            rates.append(lr_scheduler.get_last_lr()[0])

    made.add_callback(Look())
    made.train()
    batches = len(TokenBudget(texts()["length"][:], 200, 5, accumulation=2))
    assert made.state.global_step == made.state.max_steps == 3 * batches // 2
    assert made.state.epoch == 3.0
    assert rates[-1] == 0.0
    assert rates[-2] > 0.0
    assert sum(rows for rows, _ in sizes) == 3 * 90
    assert all(rows * longest <= 200 for rows, longest in sizes)
    assert max(rows for rows, _ in sizes) > 10


def test_counting_tokens_needs_lengths(model, tmp_path):
    with pytest.raises(UserError, match=r"--max_tokens_per_batch counts tokens; .* --per_device_train_batch_size"):
        trainer(model, tmp_path, rows=texts(sized=False), max_tokens=200).train()


def test_an_evaluation_goes_from_long_to_short_and_comes_back_in_order(model, tmp_path):
    seen, told = [], []

    def metric(found):
        told.append((found.predictions, found.label_ids))
        return {"right": float((found.predictions.argmax(1) == found.label_ids).mean())}

    made = trainer(model, tmp_path, metric=metric)
    made.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ordered = made.predict(texts())
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) > 5
    plain = made.predict(texts(sized=False))
    assert seen != sorted(seen, reverse=True)
    np.testing.assert_allclose(ordered.predictions, plain.predictions, atol=1e-5)
    np.testing.assert_array_equal(ordered.label_ids, texts()["labels"][:])
    np.testing.assert_allclose(told[0][0], told[1][0], atol=1e-5)
    np.testing.assert_array_equal(told[0][1], told[1][1])
    assert ordered.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], abs=1e-5)
    assert ordered.metrics["test_right"] == plain.metrics["test_right"]
    assert made.compute_metrics is metric


def test_metrics_fed_batch_by_batch_are_told_which_row_each_was(model, tmp_path):
    labels = []

    def metric(found, compute_result):
        labels.extend(found.label_ids.tolist())
        return {}

    made = trainer(model, tmp_path, metric=metric, batch_eval_metrics=True)
    made.evaluate(texts())
    assert [texts()["labels"][int(row)] for row in made.eval_order] == labels
    assert made.eval_order.tolist() != list(range(90))
    made.evaluate(texts(sized=False))
    assert made.eval_order is None


def test_what_was_gathered_goes_back_into_order():
    order = LongestFirst(np.array([5, 9, 5, 7])).order
    assert order.tolist() == [1, 3, 0, 2]
    rows = np.arange(4.0)
    nest = {"a": (rows[order], None), "b": [np.concatenate([rows[order], rows[order][:1]])]}
    back = in_order(nest, order)
    assert back["a"][0].tolist() == back["b"][0].tolist() == [0, 1, 2, 3]
    assert back["a"][1] is None
