"""A Trainer whose micro-batches are of one task each, in a planned order. Knows rows by task, no kind of task.

An update weighs its tasks by their micro-batches, and within a task it is the mean over all items, as with
`hftl.Trainer`. Every evaluation is of all tasks; the mean of their headline metrics selects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers.trainer_utils import speed_metrics

from hftl.errors import UserError
from hftl.models.wrapped import out_of_peft
from hftl.train.items import count
from hftl.train.mixing import Plan, TaskBatches
from hftl.train.pcgrad import Surgery
from hftl.train.rows import Rows
from hftl.train.sampling import training_order
from hftl.train.trainer import Trainer

MEAN = "mean"
"""The metric that selects: the mean over tasks of each task's headline metric on valid."""


class TaskRows(Dataset):
    """Encoded rows that know the name of their task."""

    def __init__(self, rows: Rows, task: str) -> None:
        self.rows, self.task, self.lengths, self.encoded = rows, task, rows.lengths, rows.encoded

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        return [row | {"task": self.task} for row in self.rows.plain(numbers)]


class MixedRows(Dataset):
    """The rows of several tasks, numbered through; those that are asked for together are of one task."""

    def __init__(self, parts: list[TaskRows]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        part = int(np.searchsorted(self.starts, numbers[0], side="right")) - 1
        return self.parts[part].__getitems__([number - int(self.starts[part]) for number in numbers])


class Collate:
    """Makes a batch as the task of its rows does, and says which task that is."""

    def __init__(self, collates: dict[str, Callable[[list[dict[str, Any]]], dict[str, Any]]]) -> None:
        self.collates = collates

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        task = rows[0]["task"]
        return self.collates[task]([{k: v for k, v in row.items() if k != "task"} for row in rows]) | {"task": task}


class MultiTaskTrainer(Trainer):
    """`hftl.Trainer` for a `MultiTaskModel`.

    Args:
        scorers: task -> its `compute_metrics`, with the name of its headline metric.
        outputs: task -> its `preprocess_logits_for_metrics`.
        mixing, temperature: how often a task comes, as `hftl.train.mixing.proportions` has it.
        pcgrad: project conflicts between the tasks of one update away.
        train_dataset: `MixedRows`. eval_dataset: task -> `TaskRows`. The rest is `hftl.Trainer`'s.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        scorers: dict[str, Any],
        outputs: dict[str, Callable[..., Any]],
        mixing: str = "proportional",
        temperature: float = 1.0,
        pcgrad: bool = False,
        **others: Any,
    ) -> None:
        self.scorers, self.outputs, self.mixing, self.temperature = scorers, outputs, mixing, temperature
        self.whole: Any = model
        self.numbers = {task: i for i, task in enumerate(self.whole.tasks)}
        super().__init__(model, args, compute_metrics=next(iter(scorers.values())), **others)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "One encoder for several tasks is not split over processes. Launch without FSDP, DeepSpeed."
            )
        common = [p for g in self.groups for n, p in g.parameters.items() if self.whole.common(out_of_peft(n))]
        self.surgery = Surgery(common, self._averaged, args.seed) if pcgrad else None

    @property
    def plan(self) -> Plan:
        """Which task comes when, in this run."""
        rows: Any = self.train_dataset
        args = self.args
        return Plan(
            sizes=[len(part) for part in rows.parts],
            micro=self._train_batch_size * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            mixing=self.mixing,
            temperature=self.temperature,
        )

    def order(self, rows: Any) -> TaskBatches:
        orders: Any = [training_order(part, self.args) for part in rows.parts]
        return TaskBatches(self.plan, orders, self.args.world_size, self.args.process_index)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """(tasks,) what the items of a micro-batch of each task are to be divided by in this update."""
        items, batches = torch.zeros(2, len(self.numbers), dtype=torch.int64)
        for batch in batch_samples:
            found = count(batch)
            assert found is not None  # each of these tasks has its labels in a tensor
            items[self.numbers[batch["task"]]] += found.cpu()
            batches[self.numbers[batch["task"]]] += 1
        if self.args.world_size > 1:
            items = self.accelerator.gather(items.to(device)[None]).sum(dim=0).cpu()
        return (items * len(batch_samples) / batches.clamp(min=1)).to(device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        number = None if num_items_in_batch is None else num_items_in_batch[self.numbers[inputs["task"]]]
        return super().compute_loss(model, inputs, return_outputs, number)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.surgery is not None:
            self.surgery.take(inputs["task"])
            if self.accelerator.sync_gradients:
                self.surgery.give(self.state.global_step)
        return loss

    def _averaged(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if self.args.world_size == 1 else self.accelerator.reduce(gradient, "mean")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every metric of one task's rows; without rows those of valid of all tasks, their mean headline and loss."""
        if eval_dataset is not None:
            self._score(eval_dataset.task)
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        started = time.time()
        found: dict[str, float] = {}
        parts: Any = self.eval_dataset
        for task, rows in parts.items():
            self._score(task)
            loader, prefix = self.get_eval_dataloader(rows), f"{metric_key_prefix}_{task}"
            found |= self.evaluation_loop(loader, "Evaluation", None, ignore_keys, prefix).metrics
        headlines = [found[f"{metric_key_prefix}_{task}_{self.scorers[task].headline}"] for task in parts]
        losses = [found[f"{metric_key_prefix}_{task}_loss"] for task in parts]
        found |= {
            f"{metric_key_prefix}_{MEAN}": float(np.mean(headlines)),
            f"{metric_key_prefix}_loss": float(np.mean(losses)),
        }
        found |= speed_metrics(metric_key_prefix, started, num_samples=sum(map(len, parts.values())))
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _score(self, task: str) -> None:
        """Let what is evaluated next be read and scored as one task has it."""
        self.compute_metrics, self.preprocess_logits_for_metrics = self.scorers[task], self.outputs[task]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not hasattr(self.model, "peft_config"):  # weights that are tied are written once, and found again on loading
            state = self.model.state_dict() if state_dict is None else state_dict
            seen: dict[int, str] = {}
            kept = {n: v for n, v in state.items() if seen.setdefault(v.data_ptr(), n) == n or not v.numel()}
            state_dict = {n: v.contiguous() for n, v in kept.items()}  # channels last is no order of a file
        super()._save(output_dir, state_dict)
