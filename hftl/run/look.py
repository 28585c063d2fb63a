"""Extract a frozen model's features once, keep them on disk, and score heads on them: what `Strategy.fit` looks at.

Knows rows, a Trainer that is not entered, and a scorer; which heads are tried is the strategy's to know.
"""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from hftl.errors import UserError
from hftl.models.feature_model import FeatureModel, Head, Taps
from hftl.models.fitting import fitting
from hftl.models.head import output_layer
from hftl.run.scorer import Scorer
from hftl.tasks.loading import ABOUT_LABELS
from hftl.train.cache.cache import Cache, Work, digest
from hftl.train.cache.store import NoRoom
from hftl.train.rows import Rows
from hftl.train.trainer import Trainer

SPLITS = ("train", "valid", "test")
CHUNK = 4096
"""Rows of all features that are in memory at once while some of them are read."""


class Look:
    """What a strategy looks at to fit a head: every pooled output of every block, and what the model's head reads.

    Args:
        trainer: holds the model, the strategy, the cache and the device.
        rows: train, valid and test.
        classes: how many there are.
        fresh: the parameters that the checkpoint did not supply.
        scorer: measures a split.
        notes: sentences for the report; some are added.

    Attributes:
        head: what the strategy has fitted, once `fit` is done; it is part of the Trainer's model then.
        The rest is as `hftl.strategies.base.Look` has it.

    Raises:
        UserError: there is no room to keep features, or the model is split over processes.
    """

    head: Head

    def __init__(
        self, trainer: Trainer, rows: dict[str, Rows], classes: int, fresh: set[str], scorer: Scorer, notes: list[str]
    ) -> None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("Features are extracted from whole models. Launch without FSDP and DeepSpeed.")
        self.cache = cast(Cache, trainer.cache)
        if not self.cache.limit:
            raise UserError("Features are kept on disk, and --cache_gb leaves no room. Pass a larger --cache_gb.")
        self.started = time.monotonic()
        self.trainer, self.rows, self.fresh, self.scorer, self.notes = trainer, rows, fresh, scorer, notes
        self.model: Any = trainer.model.eval()
        self.stack, self.classes, self.headline = trainer.anatomy.stack, classes, scorer.headline
        self.labels = np.asarray(rows["train"].labels)
        example = self._moved(trainer.data_collator(rows["train"].plain([0])))
        with fitting(self.model, example):
            self.output = head_of(self.model, example)
        wanted = [f"head {self.output}"] if self.output else []
        wanted += [f"{pool} {name}" for name in self.stack for pool in ("mean", "first")]
        found, beneath = self._probed(wanted, example)
        self.widths = {name: value.shape[1] for name, value in found.items()}
        self.names = list(self.widths)
        self.unread = fresh - beneath  # no feature depends on it and nothing trains it
        if self.output:
            self.unread |= {f"{self.output}.{n}" for n, _ in self.model.get_submodule(self.output).named_parameters()}
        self._taps = Taps(self.model, self.names)
        try:
            readers = self.cache.keep(self._work(), [rows[split] for split in SPLITS], trainer.accelerator)
        except NoRoom as full:
            raise UserError(f"Features are kept on disk, but {full} Pass a larger --cache_gb.") from full
        self._readers = {split: readers[id(rows[split])] for split in SPLITS}

    def _probed(self, wanted: list[str], example: dict[str, Any]) -> tuple[dict[str, torch.Tensor], set[str]]:
        """The features of an example, and the fresh parameters that they depend on.

        What the head reads is left out where it depends on fresh ones that the blocks do not: a new pooler is random.
        """
        weights = dict(self.model.named_parameters())
        fresh = sorted(self.fresh & weights.keys())
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
            self.output, found = None, {name: found[name] for name in found if name not in heads}
            owners = sorted({name.rpartition(".")[0] for name in above})
            self.note(f"What the head of this model reads is random: {', '.join(owners)} is new.")
        if beneath:
            few = ", ".join(sorted(beneath)[:3])
            self.note(f"Features pass through {len(beneath)} new, random parameters, such as {few}.")
        return {name: value.detach() for name, value in found.items()}, beneath

    def _work(self) -> Work:
        """What is computed for the rows: named by the weights it depends on, the precision, and what is read."""
        weights = [name for name, _ in self.model.named_parameters() if name not in self.unread]
        weights += [name for name, _ in self.model.named_buffers()]
        precision = str(self.trainer.accelerator.mixed_precision)
        space = digest(self.model, ["features", *self.names, precision], weights, ABOUT_LABELS)
        size = sum(self.widths.values()) * torch.float32.itemsize
        return Work(space, "Extracting features", self._compute, lambda length: size, 1.0)

    def _compute(self, inputs: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
        with torch.no_grad(), self.trainer.accelerator.autocast():
            found = self._taps(self._moved(inputs))
        return list(zip(*(found[name].cpu() for name in self.names), strict=True))

    def _moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.trainer.args.device) for name, value in inputs.items()}

    # --- what the strategy asks ---

    def features(self, split: str, names: list[str]) -> np.ndarray:
        """(rows, width of these features together), float32."""
        reader, columns = self._readers[split], [self.names.index(name) for name in names]
        found = np.empty((len(reader), sum(self.widths[name] for name in names)), np.float32)
        for start in range(0, len(reader), CHUNK):
            leaves = reader.batch(range(start, min(start + CHUNK, len(reader))), leaves=columns)
            found[start : start + CHUNK] = torch.cat(leaves, dim=1).numpy()
        return found

    def score(self, head: Head) -> tuple[float, float]:
        """The headline metric of a head on valid, negative where less is better, and minus its loss."""
        from hftl.models import classical

        logits, labels = self._logits(head, "valid"), np.asarray(self.rows["valid"].labels)
        found = self.scorer(EvalPrediction(logits.numpy(), labels), compute_result=True)[self.headline]
        return -found if self.headline in self.scorer.lower else found, -classical.loss(logits, labels)

    def note(self, sentence: str, aloud: bool = False) -> None:
        """Have the report say something, and the terminal too."""
        self.notes.append(sentence)
        if aloud and self.trainer.args.process_index == 0:
            print(sentence)

    # --- what the run asks ---

    def evaluate(self, head: Head, split: str) -> dict[str, float]:
        """Every metric of one split; afterwards the scorer holds it."""
        prediction = EvalPrediction(self._logits(head, split).numpy(), np.asarray(self.rows[split].labels))
        return self.scorer(prediction, compute_result=True)

    def _logits(self, head: Head, split: str) -> torch.Tensor:
        return head.decision(torch.from_numpy(self.features(split, head.names)))

    def fit(self) -> None:
        """Have the strategy make a head, and make it part of the model: of its own head, where that can hold it."""
        self.head, trainer = self.trainer.strategy.fit(self), self.trainer
        names, decision = self.head.names, self.head.decision
        pool, place = names[0].split(" ")
        if pool == "head" and decision.kind == "linear":
            layer: Any = self.model.get_submodule(place)
            with torch.no_grad():
                layer.weight.copy_(decision.weight)
                layer.bias.copy_(decision.bias)
        else:
            self.note(
                "Plain transformers loads the frozen model of this folder without its classifier, which is in "
                "features.json and features.safetensors: hftl.load and hftl predict read it."
            )
            found = FeatureModel(self.model, names, decision, self.unread)
            trainer.model = trainer.model_wrapped = found.to(trainer.args.device)
        self.seconds = time.monotonic() - self.started

    def effort(self) -> dict[str, Any]:
        """What the head cost, and what else a report says otherwise of a run without steps."""
        rows, decision = len(self.labels), self.head.decision.cpu()  # what is measured is read from disk
        return {
            "strategy": self.head.said,
            "seconds": self.seconds,
            "examples_per_second": rows / max(self.seconds, 1e-9),
            "forward_passes": self.cache.computed / rows,
            "trainable": sum(getattr(decision, name).numel() for name in ("weight", "bias") if hasattr(decision, name)),
            "rates": [],
            "beside": isinstance(self.trainer.model, FeatureModel),
        }


def head_of(model: nn.Module, example: dict[str, Any]) -> str | None:
    """The output layer, where it has a bias, which a classifier needs; else None."""
    name = output_layer(model, {name: value for name, value in example.items() if name != "labels"})
    return name if name is not None and model.get_submodule(name).bias is not None else None
