"""Start a fresh output layer from a regularised solution on frozen features, before any step (LP-FT: Kumar et al. 2022,
arXiv 2202.10054, with the probe solved in place of trained). Knows a Part, and classifiers; no Trainer.

Held-out rows of train decide which features it reads, the model's own, the mean of all tokens or the first, and how
strongly it is regularised. The model before the first step is a candidate checkpoint, so that tuning can only help.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm.auto import tqdm

from hftl.data.check import render
from hftl.data.types import Check
from hftl.errors import UserError
from hftl.models.feature_model import Taps
from hftl.models.fitting import fitting
from hftl.models.head import output_layer
from hftl.models.pooled import PooledModel, can_pool
from hftl.models.untouched import untouched
from hftl.train import kernels

if TYPE_CHECKING:
    import transformers

    from hftl.models.feature_model import Decision
    from hftl.run.part import Part
    from hftl.run.settings import RecipeSettings
    from hftl.strategies import Strategy

ROWS = 4_000
"""Rows of train that are read: a linear layer on a few hundred features gains little from more, and steps follow."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is tried as C, the inverse of the regularisation's strength, on standardised features."""
FOLDS = ((500, 5), (1_500, 3))
"""Up to so many rows, so many folds; beyond, a fifth of the rows is held out once."""
FLOOR = 1e-3
"""Share of a held-out probability that is spread over all classes: one that a fold lacks is not infinitely bad."""


@dataclass
class Solved:
    """What one kind of features gives: the losses of held-out rows at the best strength, and this strength."""

    name: str
    losses: np.ndarray
    strength: float

    @property
    def loss(self) -> float:
        """The mean: log loss, or for numbers the squared error as a share of their variance."""
        return float(self.losses.mean())


def solve_head(recipe: RecipeSettings, strategy: Strategy, part: Part, args: transformers.TrainingArguments) -> Part:
    """The part with its fresh output layer solved; as it was where nothing is fresh, or steps would not follow.

    Args:
        args: whose device computes; afterwards they ask for an evaluation before the first step.
    """
    model, rows = part.pretrained.model, part.rows["train"]
    asked = recipe.head != "random" and part.task.pooled and rows.labels is not None
    if not asked or strategy.streams or any(one.random_start for one in strategy.parts):
        return part
    if recipe.several or parse_flag_from_env("ACCELERATE_USE_FSDP") or args.fsdp or args.deepspeed_plugin is not None:
        return part
    collate, fresh = part.task.collate(part.pretrained.processor), part.pretrained.fresh
    model.to(args.device)
    with untouched(model), torch.no_grad():
        model.eval()
        example = _moved(collate(rows.plain([0])), args)
        with fitting(model, example):
            layer = output_layer(model, example)
        if layer is None or f"{layer}.weight" not in fresh or model.get_submodule(layer).bias is None:
            return part
        names = [f"head {layer}"]
        if recipe.head == "auto" and part.task.pools and can_pool(model):
            body = next((name for name, module in model.named_modules() if module is model.base_model), "")
            names += [f"{how} {body}" for how in part.task.pools if body]
        picked = _some(len(rows), recipe.seed)
        features = _features(model, names, rows, picked, collate, args)
    labels = np.asarray(rows.labels)[picked]
    told: list[Any] = [_chosen(features, labels, len(part.splits.labels.names), recipe) if _first(args) else None]
    best, decision, said = broadcast_object_list(told)[0] if args.world_size > 1 else told[0]
    if decision is None:
        return part
    args.eval_on_start = args.eval_strategy != "no"
    part.splits.checks.append(Check("head", "ok", said))
    if _first(args):
        print(render(part.splits.checks[-1:]))
    return _put(part, best, layer, decision)


def _put(part: Part, best: str, layer: str, decision: Decision) -> Part:
    """The part whose output layer is the solution; of another pooling than the model's own in a class that says it."""
    model, fresh = part.pretrained.model, set(part.pretrained.fresh)
    how = best.split(" ")[0]
    if how != "head":
        model, layer = PooledModel(model, how), "classifier"
        fresh = {"classifier.weight", "classifier.bias"}
    output: Any = model.get_submodule(layer)
    with torch.no_grad():
        output.weight.copy_(decision.weight)
        output.bias.copy_(decision.bias)
    return replace(part, pretrained=replace(part.pretrained, model=model, fresh=fresh))


def _features(
    model: Any, names: list[str], rows: Any, picked: np.ndarray, collate: Any, args: transformers.TrainingArguments
) -> dict[str, np.ndarray]:
    """(rows, width) float32 by name, in the order of `picked`; what does not fit a module is left out."""
    taps, found = Taps(model, names), dict[str, list[np.ndarray]]()
    lengths = None if rows.lengths is None else np.asarray(rows.lengths)[picked]
    order = np.arange(len(picked)) if lengths is None else np.argsort(-lengths, kind="stable")
    fast = kernels.bf16_pays(model, args.device)
    size = args.per_device_eval_batch_size
    with tqdm(total=len(picked), desc="Features", unit="row", disable=args.disable_tqdm or not _first(args)) as bar:
        for start in range(0, len(order), size):
            numbers = picked[order[start : start + size]].tolist()
            batch = _moved(collate(rows.plain(numbers)), args)
            with torch.autocast(args.device.type, torch.bfloat16, enabled=fast):
                for name, value in taps(batch).items():
                    found.setdefault(name, []).append(value.float().cpu().numpy())
            bar.update(len(numbers))
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


def _chosen(
    features: Mapping[str, np.ndarray], labels: np.ndarray, classes: int, recipe: RecipeSettings
) -> tuple[str, Any, str]:
    """Which features, the decision on all rows, and a sentence; no decision where train has one class alone."""
    from hftl.models import classical

    weighted = recipe.settings().get("class_weights") is not None
    tried = [one for name, x in features.items() if (one := _tried(name, x, labels, classes, recipe.seed, weighted))]
    if not tried:
        return "", None, ""
    own, best = tried[0], min(tried, key=lambda one: one.loss)
    gain = own.losses - best.losses
    if gain.mean() <= 2 * gain.std() / np.sqrt(len(gain)):  # then the plain class is worth more
        best = own
    decision = classical.fit("logistic", best.strength, features[best.name], labels, classes, weighted)
    shown = "; ".join(f"{_spoken(one.name)} {one.loss:.3f}" for one in tried)
    said = f"solved on frozen features, {_spoken(best.name)}, C = {best.strength:g}; held-out loss: {shown}"
    return best.name, decision, said


def _spoken(name: str) -> str:
    return {"head": "the model's own", "mean": "mean of all tokens", "first": "first token"}[name.split(" ")[0]]


def _tried(name: str, x: np.ndarray, labels: np.ndarray, classes: int, seed: int, weighted: bool) -> Solved | None:
    """One kind of features at its best strength on held-out rows; None where nothing can be fitted."""
    from hftl.models import classical

    best: Solved | None = None
    parts = list(_folds(labels, seed))
    for strength in STRENGTHS:
        losses = []
        for fit, held in parts:
            try:
                decision = classical.fit("logistic", strength, x[fit], labels[fit], classes, weighted)
            except UserError:  # one class alone
                continue
            losses.append(_losses(decision(torch.from_numpy(x[held])).double().numpy(), labels[held], labels))
        if losses and (best is None or np.concatenate(losses).mean() < best.loss):
            best = Solved(name, np.concatenate(losses), strength)
    return best


def _losses(logits: np.ndarray, labels: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Of each row: log loss; of several labels their mean; of numbers the squared error over their variance."""
    if labels.ndim > 1:
        return (np.logaddexp(0, logits) - labels * logits).mean(axis=1)
    if not np.issubdtype(labels.dtype, np.integer):
        return (logits[:, 0] - labels) ** 2 / max(float(every.var()), 1e-12)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    true = shares[np.arange(len(labels)), labels]
    return -np.log((1 - FLOOR) * true + FLOOR / logits.shape[1])


def _folds(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows that are held out, each class in its share where labels are classes."""
    from sklearn.model_selection import KFold, StratifiedKFold

    count = next((folds for most, folds in FOLDS if len(labels) <= most), 5)
    count = min(count, len(labels))
    if count < 2:
        return
    classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    kind = StratifiedKFold if classes and np.bincount(labels).max() >= count else KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of fewer rows than folds
        found = list(
            kind(count, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels if classes else None)
        )
    yield from found if len(labels) <= FOLDS[-1][0] else found[:1]


def _some(n: int, seed: int) -> np.ndarray:
    return np.arange(n) if n <= ROWS else np.sort(np.random.default_rng(seed).permutation(n)[:ROWS])


def _moved(batch: Mapping[str, Any], args: transformers.TrainingArguments) -> dict[str, Any]:
    return {name: value.to(args.device) for name, value in batch.items() if name not in ("labels", "row")}


def _first(args: transformers.TrainingArguments) -> bool:
    return args.process_index == 0
