"""One run on features: extracted and kept, a classifier fitted and chosen on valid, put into the model, measured.

Knows a Run; what is fitted is in `hftl.models.classical`, what is saved in `hftl.models.feature_model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from torch import nn

from hftl.errors import UserError
from hftl.models import classical
from hftl.models.feature_model import Decision, FeatureModel, Taps
from hftl.models.head import output_layer
from hftl.run import outcome
from hftl.train.cache.cache import Cache, Work, digest
from hftl.train.cache.store import NoRoom

if TYPE_CHECKING:
    from hftl.results.report.report import Report
    from hftl.run.prepare import Run
    from hftl.tasks.metrics.bootstrap import Score

SPLITS = ("train", "valid", "test")
OTHER_HEAD = "What is new in the head of this model is not one linear layer with a bias."
CHUNK = 4096
"""Rows of all features that are in memory at once while some of them are read."""


@dataclass
class Try:
    """One classifier that was fitted on train and looked at on valid."""

    kind: str
    names: list[str]
    value: float
    decision: Decision
    score: float
    """The headline metric on valid, the higher the better."""
    said: str


@dataclass
class Choice:
    """The classifier that valid has chosen, and the features that it reads."""

    best: Try
    features: Features


class Features:
    """Every pooled output of every block, and what the head reads: computed once for each row, then read from disk.

    Attributes:
        names: of the features, as `Taps` calls them; what fits no module of this model is left out.
        head: the linear layer that gives the logits, where it reads features that the checkpoint decides.
        unread: parameters that no feature depends on and that nothing trains: new ones, and the head's.
    """

    def __init__(self, run: Run) -> None:
        self.run, trainer, cache = run, run.trainer, cast(Cache, run.trainer.cache)
        self.model: Any = trainer.model.eval()
        collate = run.task.collate(run.pretrained.processor)
        example = self._moved(collate(run.rows["train"].plain([0])))
        self.head = head_of(self.model, example)
        wanted = [f"head {self.head}"] if self.head else []
        wanted += [f"{pool} {name}" for name in trainer.anatomy.stack for pool in ("mean", "first")]
        found, beneath = self._probed(wanted, example)
        self.unread = run.pretrained.fresh - beneath
        if self.head:
            self.unread |= {f"{self.head}.{name}" for name, _ in self.model.get_submodule(self.head).named_parameters()}
        self.widths = {name: value.shape[1] for name, value in found.items()}
        self.names = list(self.widths)
        self._taps = Taps(self.model, self.names)
        parts = [run.rows[split] for split in SPLITS]
        try:
            readers = cache.keep(self._work(), parts, trainer.accelerator)
        except NoRoom as full:
            raise UserError(f"Features are kept on disk, but {full} Pass a larger --cache_gb.") from full
        self._readers = {split: readers[id(rows)] for split, rows in zip(SPLITS, parts, strict=True)}

    def _probed(self, wanted: list[str], example: dict[str, Any]) -> tuple[dict[str, torch.Tensor], set[str]]:
        """The features of an example, and the fresh parameters that they depend on.

        What the head reads is left out where it depends on fresh ones that the blocks do not: a new pooler is random.
        """
        weights = dict(self.model.named_parameters())
        fresh = sorted(self.run.pretrained.fresh & weights.keys())
        for name in fresh:
            weights[name].requires_grad_(True)
        with torch.enable_grad():
            found = Taps(self.model, wanted)(example)

        def read_by(names: list[str]) -> set[str]:
            total: Any = sum(found[name].sum() for name in names)
            if not fresh or not names or not total.requires_grad:
                return set()
            given = torch.autograd.grad(total, [weights[n] for n in fresh], allow_unused=True, retain_graph=True)
            return {name for name, gradient in zip(fresh, given, strict=True) if gradient is not None}

        heads = [name for name in found if name.startswith("head ")]
        beneath = read_by([name for name in found if name not in heads])
        if above := read_by(heads) - beneath:
            self.head, found = None, {name: found[name] for name in found if name not in heads}
            owners = sorted({name.rpartition(".")[0] for name in above})
            self.run.splits.notes.append(f"What the head of this model reads is random: {', '.join(owners)} is new.")
        if beneath:
            few = ", ".join(sorted(beneath)[:3])
            self.run.splits.notes.append(f"Features pass through {len(beneath)} new, random parameters, such as {few}.")
        return {name: value.detach() for name, value in found.items()}, beneath

    def joined(self, split: str, names: list[str]) -> np.ndarray:
        """(rows, width of these features together), float32."""
        reader, columns = self._readers[split], [self.names.index(name) for name in names]
        found = np.empty((len(reader), sum(self.widths[name] for name in names)), np.float32)
        for start in range(0, len(reader), CHUNK):
            leaves = reader.batch(range(start, min(start + CHUNK, len(reader))), leaves=columns)
            found[start : start + CHUNK] = torch.cat(leaves, dim=1).numpy()
        return found

    def _work(self) -> Work:
        """What is computed for the rows: named by the weights it depends on, the precision, and what is read."""
        trainer = self.run.trainer
        weights = [name for name, _ in self.model.named_parameters() if name not in self.unread]
        weights += [name for name, _ in self.model.named_buffers()]
        space = digest(self.model, ["features", *self.names, str(trainer.accelerator.mixed_precision)], weights)
        size = sum(self.widths.values()) * torch.float32.itemsize
        return Work(space, "Extracting features", self._compute, lambda length: size, 1.0)

    def _compute(self, inputs: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
        with torch.no_grad(), self.run.trainer.accelerator.autocast():
            found = self._taps(self._moved(inputs))
        return list(zip(*(found[name].cpu() for name in self.names), strict=True))

    def _moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.run.trainer.args.device) for name, value in inputs.items()}


def head_of(model: nn.Module, example: dict[str, Any]) -> str | None:
    """The output layer, where it has a bias, which a classifier needs; else None."""
    name = output_layer(model, {name: value for name, value in example.items() if name != "labels"})
    return name if name is not None and model.get_submodule(name).bias is not None else None


def choose(run: Run) -> Choice:
    """Fit on train for each C or k, keep what is best on valid, and make it part of the run's model."""
    recipe: Any = run.recipe
    if run.task.problem_type:
        raise UserError(f"Features are one vector a row, and {run.task.name} is not. Use {run.task.usage['script']}.")
    if run.trainer.is_fsdp_enabled or run.trainer.is_deepspeed_enabled:
        raise UserError("Features are extracted from whole models. Launch without FSDP and DeepSpeed.")
    if not recipe.cache_gb:
        raise UserError("Features are kept on disk, for which --cache_gb 0 leaves no room. Pass a larger --cache_gb.")
    features = Features(run)
    names = asked(recipe, run, features.names)
    kinds = [recipe.classifier]
    if recipe.classifier == "auto":
        kinds = classical.tried_by_auto(np.asarray(run.rows["train"].labels))
    tried = [_try(run, features, kind, names, value) for kind in kinds for value in classical.GRIDS[kind]]
    best = max(tried, key=lambda one: one.score)
    rest = [other for other in others(run, features.names) if other != names]
    tried += [_try(run, features, best.kind, other, best.value) for other in rest]
    better = max(tried, key=lambda one: one.score)
    run.splits.notes += [f"Tried: {one.said}, {run.scorer.headline} {abs(one.score):.3f} on valid." for one in tried]
    if better.score > best.score:
        run.splits.notes.append(f"Better on valid than what was asked for: {better.said}. It was not chosen.")
        if run.first:
            print(run.splits.notes[-1])
    _install(run, best, features.unread)
    return Choice(best, features)


def asked(recipe: Any, run: Run, there: list[str]) -> list[str]:
    """The features that the recipe names, of those that are there.

    Raises:
        UserError: the model has no such features.
    """
    heads = [name for name in there if name.startswith("head ")]
    stack, layers = run.trainer.anatomy.stack, str(recipe.layers)
    pool = recipe.pool or ("head" if layers == "last" and heads else "mean")
    if pool == "head":
        if layers != "last":
            raise UserError(f"--pool head is what follows the last block; with --layers {layers} pass mean or first.")
        if not heads:
            raise UserError(f"{OTHER_HEAD} Pass --pool mean.")
        return heads
    if recipe.pool is None and layers == "last":
        run.splits.notes.append(f"{OTHER_HEAD} --pool mean was used.")
    if not stack:
        raise UserError("Expected a model with a stack of blocks; this one has none. Leave out --layers and --pool.")
    if layers not in ("last", "all") and not (layers.isdigit() and 1 <= int(layers) <= len(stack)):
        raise UserError(f"--layers takes last, all, or a block from 1 to {len(stack)}; {layers} came.")
    blocks = {"last": stack[-1:], "all": stack}.get(layers) or [stack[int(layers) - 1]]
    names = [f"{pool} {block}" for block in blocks]
    if missing := [name for name in names if name not in there]:
        cure = "Leave out --layers and --pool" if pool == "mean" else "Pass --pool mean"
        raise UserError(f"--pool {pool} does not fit what {missing[0].split(' ')[1]} gives. {cure}.")
    return names


def others(run: Run, there: list[str]) -> Iterator[list[str]]:
    """Features that cost nothing more once they are extracted, to be compared with what was asked for."""
    stack = run.trainer.anatomy.stack
    yield from ([name] for name in there if name.startswith("head ") or name.split(" ")[1] in stack[-1:])
    if len(stack) > 1 and all(f"mean {block}" in there for block in stack):
        yield [f"mean {block}" for block in stack]


def _try(run: Run, features: Features, kind: str, names: list[str], value: float) -> Try:
    labels, classes = np.asarray(run.rows["train"].labels), len(run.splits.labels.names)
    decision = classical.fit(kind, value, features.joined("train", names), labels, classes)
    found = _scores(run, decision, features.joined("valid", names), "valid")[run.scorer.headline].value
    score = -found if run.scorer.headline in run.scorer.lower else found
    return Try(kind, names, value, decision, score, _said(run, kind, names, value))


def _said(run: Run, kind: str, names: list[str], value: float) -> str:
    stack, (pool, block) = run.trainer.anatomy.stack, names[0].split(" ")
    layers = "all" if len(names) > 1 else "last" if block in stack[-1:] or pool == "head" else stack.index(block) + 1
    letter = "k" if kind == "knn" else "C"
    return f"Features({kind}, layers={layers}, pool={pool}, {letter}={value:g})"


def _scores(run: Run, decision: Decision, features: np.ndarray, split: str) -> dict[str, Score]:
    """Every metric of one split; afterwards the run's metric holds it."""
    logits = decision(torch.from_numpy(features)).numpy()
    labels = np.asarray(run.rows[split].labels)
    found = run.scorer(transformers.EvalPrediction(logits, labels), compute_result=True)
    return outcome.scored(run.scorer, found)


def _install(run: Run, best: Try, unread: set[str]) -> None:
    """Make the classifier part of the run's model: in its own head where that can hold it."""
    trainer, (pool, head) = run.trainer, best.names[0].split(" ")
    model: Any = trainer.model
    if pool == "head" and best.decision.kind == "linear":
        layer = model.get_submodule(head)
        with torch.no_grad():
            layer.weight.copy_(best.decision.weight)
            layer.bias.copy_(best.decision.bias)
        return
    run.splits.notes.append(
        "Plain transformers loads the frozen model of this folder without its classifier, which is in features.json "
        "and features.safetensors: hftl.load and hftl predict read it."
    )
    found = FeatureModel(model, best.names, best.decision, unread)
    trainer.model = trainer.model_wrapped = found.to(trainer.args.device)


def measure(run: Run, choice: Choice, seconds: float) -> Report:
    """The report: valid, then test, once."""
    best = choice.best
    decision = best.decision.cpu()

    def score(run: Run, split: str) -> dict[str, Score]:
        return _scores(run, decision, choice.features.joined(split, best.names), split)

    report = outcome.measure(run, score)
    return replace(
        report,
        strategy=best.said,
        seconds=seconds,
        examples_per_second=len(run.rows["train"]) / max(seconds, 1e-9),
        forward_passes=cast(Cache, run.trainer.cache).computed / len(run.rows["train"]),
        trainable=sum(getattr(decision, name).numel() for name in ("weight", "bias") if hasattr(decision, name)),
        rates=[],
        beside=isinstance(run.trainer.model, FeatureModel),
        settings={name: value for name, value in report.settings.items() if name not in run.recipe.hidden},
    )
