"""The closed forms of alignment, each against its definition in float64, and the strategies' place in a step."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset

from hftl import Trainer
from hftl.errors import UserError
from hftl.models import alignment
from hftl.models.head import Reads, output_layer
from hftl.run.steps import strategy_of
from hftl.tasks.metrics import criteria as domains
from hftl.train.streams import Batches, Stream


@pytest.fixture
def two():
    torch.manual_seed(0)
    return torch.randn(7, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64) + 0.5


def test_the_reversed_gradient_is_the_gradient_times_minus_the_strength():
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    given = torch.randn(4, 3, dtype=torch.float64)
    turned = alignment.reversed_gradient(features, 0.37)
    assert torch.equal(turned, features)
    turned.backward(given)
    assert torch.equal(features.grad, -0.37 * given)


def test_coral_is_the_distance_of_covariances_over_four_d_squared(two):
    source, target = two
    far = np.cov(source.numpy().T) - np.cov(target.numpy().T)
    assert alignment.coral(source, target).item() == pytest.approx((far**2).sum() / (4 * 25), rel=1e-12)
    assert alignment.coral(source, source).item() == 0


def test_mmd_is_the_mean_of_kernels_within_and_between(two):
    source, target = two
    both = torch.cat([source, target])
    pairs = [(x - y).square().sum() for i, x in enumerate(both) for j, y in enumerate(both) if i != j]
    width = sum(pairs) / len(pairs)

    def mean(a, b):
        kernels = [torch.exp(-(x - y).square().sum() / (width * f)) for x in a for y in b for f in (0.5, 1, 2)]
        return sum(kernels) / len(kernels)

    expected = mean(source, source) + mean(target, target) - 2 * mean(source, target)
    assert alignment.mmd(source, target, kernels=3).item() == pytest.approx(expected.item(), rel=1e-10)
    assert alignment.mmd(source, source).item() == pytest.approx(0, abs=1e-15)


def test_mmd_gains_nothing_by_making_all_features_smaller(two):
    source, target = (part.clone().requires_grad_() for part in two)
    far = alignment.mmd(source, target)
    assert alignment.mmd(source * 1e-3, target * 1e-3).item() == pytest.approx(far.item(), rel=1e-9)
    far.backward()
    along = (source * source.grad).sum() + (target * target.grad).sum()  # the derivative by the scale of all
    assert along.item() == pytest.approx(0, abs=1e-12)


def test_cdan_conditions_on_the_explicit_outer_product(two):
    features, guess = two[0], torch.rand(7, 3, dtype=torch.float64)
    expected = torch.stack([torch.outer(g, f).flatten() for f, g in zip(features, guess, strict=True)])
    assert torch.equal(alignment.outer(features, guess), expected)
    judge = alignment.Conditioned(5, 3, 8, widest=100).double()
    assert torch.equal(judge(features, guess), judge.judge(expected))


def test_the_randomised_product_has_the_inner_products_of_the_outer_one_in_the_mean():
    torch.manual_seed(0)
    features, guess = torch.randn(2, 6), torch.rand(2, 3)
    exact = alignment.outer(features, guess)
    found = []
    for _ in range(300):
        judge = alignment.Conditioned(6, 3, 4, widest=16)
        judge.random, judge.size = True, 256
        judge.left, judge.right = torch.randn(6, 256), torch.randn(3, 256)
        judge.judge = torch.nn.Identity()
        made = judge(features, guess)
        found.append((made[0] @ made[1]).item())
    assert np.mean(found) == pytest.approx((exact[0] @ exact[1]).item(), abs=4 * np.std(found) / math.sqrt(300))


def test_class_confusion_is_zero_for_sure_guesses_and_largest_for_none():
    sure = torch.eye(4) * 100
    assert alignment.class_confusion(sure).item() == pytest.approx(0, abs=1e-6)
    assert alignment.class_confusion(torch.zeros(8, 4)).item() == pytest.approx(3 / 4)


def test_only_sure_guesses_teach():
    guess = torch.tensor([[10.0, 0.0], [0.1, 0.0]])
    logits = torch.zeros(2, 2)
    assert alignment.sure_loss(guess, logits, 0.9).item() == pytest.approx(math.log(2) / 2)
    assert alignment.sure_loss(guess, logits, 0.99999).item() == 0


def test_both_domains_weigh_the_same_in_the_domain_loss():
    few, many = torch.full((1, 1), 2.0), torch.full((9, 1), -1.0)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert alignment.domain_loss(few, many).item() == pytest.approx(expected, rel=1e-6)


# --- criteria without labels ---


def test_the_proxy_distance_is_small_for_one_domain_and_two_for_two_far_ones():
    rng = np.random.default_rng(0)
    one, same, other = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 6
    assert domains.proxy_distance(one, same) < 0.4
    assert domains.proxy_distance(one, other) > 1.95
    assert math.isnan(domains.proxy_distance(one[:3], other))


def test_the_density_ratio_weighs_source_rows_that_lie_near_the_target():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(400, 1)), rng.normal(size=(400, 1)) + 1
    weights = domains.density_ratio(source, target)
    assert weights.shape == (400,)
    assert weights[source[:, 0] > 0.5].mean() > 2 * weights[source[:, 0] < -0.5].mean()
    fewer = domains.density_ratio(source, target[:100])
    assert fewer.mean() == pytest.approx(1, abs=0.3)  # whatever the numbers of rows
    assert weights.mean() == pytest.approx(1, abs=0.3)


def test_deep_embedded_validation_is_the_weighted_mean_where_weights_are_constant_and_varies_less_elsewhere():
    rng = np.random.default_rng(0)
    losses = rng.random(50)
    assert domains.deep_embedded(losses, np.ones(50)) == pytest.approx(losses.mean())
    plain, controlled = [], []
    for _ in range(200):
        weights = rng.exponential(size=200)
        drawn = 1 + 0.1 * rng.random(200)
        plain.append(domains.importance_weighted(drawn, weights))
        controlled.append(domains.deep_embedded(drawn, weights))
    assert np.std(controlled) < np.std(plain) / 2


def test_entropy_and_neighbourhood_density_equal_their_definitions():
    uniform = np.full((5, 4), 0.25)
    assert domains.entropy(uniform) == pytest.approx(math.log(4))
    assert domains.snd(uniform) == pytest.approx(math.log(4))  # five rows alike: each has four neighbours as near
    apart = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    assert domains.snd(apart) == pytest.approx(0, abs=1e-6)  # one neighbour each


# --- streams and the step ---


class Points(Dataset):
    """Points of a plane, with labels or without."""

    def __init__(self, n: int, labelled: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 2, generator=generator)
        self.y = (self.x[:, 0] > 0).long() if labelled else None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict:
        return {"x": self.x[i]} | ({} if self.y is None else {"labels": self.y[i]})

    def __getitems__(self, rows: list[int]) -> list[dict]:
        return [self[i] for i in rows]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Net(torch.nn.Module):
    """Two layers; the second gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        logits = self.head(torch.tanh(self.body(x)))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def trained(strategy: str, tmp_path, steps: int = 3, net: Net | None = None, **others) -> Net:
    torch.manual_seed(0)
    net = copy.deepcopy(net) if net is not None else Net()
    args = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **others,
    )
    streams = {"unlabelled": Stream(Points(20, False, 1), collate)}
    made = strategy_of(strategy)
    Trainer(net, args, strategy=made, train_dataset=Points(32, True), data_collator=collate, streams=streams).train()
    return net


def test_the_features_are_what_the_output_layer_reads():
    net, points = Net(), collate(Points(4, False).__getitems__([0, 1, 2, 3]))
    assert output_layer(net, points) == "head"
    reads = Reads(net.head)
    net(**points)
    assert torch.equal(reads.last, torch.tanh(net.body(points["x"])))


def test_at_strength_zero_an_adversary_changes_no_bit_of_the_model(tmp_path):
    plain, beside = trained("Full", tmp_path), trained("DANN(weight=0.0)", tmp_path)
    assert [name for name, _ in beside.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for (name, one), (_, other) in zip(plain.named_parameters(), beside.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("strategy", ["DANN", "CDAN", "DAN", "DeepCORAL", "MCC", "PseudoLabel(threshold=0.5)"])
def test_every_alignment_changes_the_model_and_leaves_nothing_in_it(strategy, tmp_path):
    plain, beside = trained("Full", tmp_path), trained(strategy, tmp_path)
    assert not torch.equal(plain.body.weight, beside.body.weight)
    assert beside.state_dict().keys() == plain.state_dict().keys()
    assert not beside.head._forward_pre_hooks


def test_the_reversal_grows_over_the_length_of_the_run():
    dann = strategy_of("DANN(weight=2.0)")
    assert dann.strength(0) == 0
    assert dann.strength(0.1) == pytest.approx(2 * 0.46211715726)
    assert dann.strength(1) == pytest.approx(2 * 0.9999092)


def test_a_discriminator_learns_boost_times_as_fast():
    from hftl.models.anatomy import Place

    dann = strategy_of("DANN(boost=7.0) | LayerDecay(0.5)")
    assert dann.rate(Place("partner.DANN.0.weight", 3, 3, True), 0.5) == 7
    assert dann.rate(Place("body.weight", 2, 3), 0.5) == 0.5


def test_batches_are_a_function_of_their_number_and_shared_by_processes():
    class Numbers:
        def __len__(self):
            return 21

        def __getitems__(self, rows):
            return rows

    stream = Stream(Numbers(), lambda rows: {"rows": torch.tensor(rows), "noise": torch.rand(1)})
    whole = Batches(stream, 4, seed=3)
    first = [whole[i]["rows"].tolist() for i in range(10)]
    again = Batches(stream, 4, seed=3)
    assert again[7]["rows"].tolist() == first[7]
    assert again[7]["noise"] == whole[7]["noise"]
    assert again[6]["noise"] != whole[7]["noise"]
    assert len({row for batch in first[:5] for row in batch}) == 20
    assert first[:5] != first[5:]
    halves = [Batches(stream, 2, seed=3, processes=2, process=p) for p in (0, 1)]
    for i in range(10):
        assert [row for half in halves for row in half[i]["rows"].tolist()] == first[i]


def test_a_stream_shorter_than_a_batch_repeats():
    stream = Stream(Points(3, False), collate)
    assert Batches(stream, 8, seed=0)[5]["x"].shape == (8, 2)


def test_drawing_a_batch_moves_no_random_number_of_the_run():
    stream = Stream(Points(9, False), lambda rows: {"x": torch.rand(2)})
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Batches(stream, 4, seed=0)[0]
    assert torch.equal(torch.rand(1), expected)


def test_a_strategy_without_its_rows_says_what_to_pass(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match=r"DANN reads unlabelled rows of the target domain\. Pass --unlabelled"):
        Trainer(Net(), args, strategy=strategy_of("Full | DANN"), train_dataset=Points(8, True))


def test_a_model_whose_logits_are_no_linear_layers_output_is_refused(tmp_path):
    class Odd(Net):
        def forward(self, x, labels=None):
            return {"logits": super().forward(x)["logits"] * 2}

    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True)
    streams = {"unlabelled": Stream(Points(20, False), collate)}
    with pytest.raises(UserError, match="Odd has none"):
        Trainer(Odd(), args, strategy=strategy_of("DAN"), train_dataset=Points(8, True), streams=streams)
