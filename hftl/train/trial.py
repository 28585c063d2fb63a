"""Try one batch before training: what would end the first epoch is said now. Knows a Trainer; no task, no file.

The model, its statistics, gradients and modes, and all random numbers are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hftl.errors import UserError
from hftl.models.fitting import LONELY, first_broken, fitting
from hftl.models.frozen import frozen_modules
from hftl.models.untouched import untouched
from hftl.train.items import count
from hftl.train.memory import has_batchnorm

ROWS = 8
"""At most so many are tried, so that this costs less than a step."""


def try_batch(trainer: Any) -> list[str]:
    """Run one batch of each task forward and backward; see to what BatchNorm needs.

    Returns:
        Sentences for the terminal and the report.

    Raises:
        UserError: the batch does not fit the model, or gives a loss or gradients that are no numbers.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []  # no process holds the whole model
    args, rows, batch = trainer.args, trainer.train_dataset, trainer._train_batch_size
    with _as_it_trains(trainer):
        for part in getattr(rows, "parts", [rows]):
            _pass(trainer, _inputs(trainer, part, min(len(part), batch, ROWS)))
        if not has_batchnorm(trainer.model):
            return []
        if args.world_size > 1:
            return [
                f"BatchNorm trains on the rows of each of the {args.world_size} processes apart: an update is not that "
                "of one process."
            ]
        alone = batch > 1 and len(rows) % batch == 1 and trainer.max_tokens is None and not hasattr(rows, "parts")
        if alone and not args.dataloader_drop_last and _refuses_one_row(trainer):
            args.dataloader_drop_last = True
            return [f"BatchNorm cannot train on the last batch of an epoch, one row of {len(rows):,}: it is left out."]
    return []


@contextmanager
def _as_it_trains(trainer: Any) -> Iterator[None]:
    """What ever trains asks for gradients, and the rest is in eval mode; afterwards all is as it was."""
    trained = {id(p) for group in trainer.groups for p in group.parameters.values()}
    beside, resting = trainer.beside, trainer._eval_modules
    number = None if beside is None else beside._last
    trainer.current_gradient_accumulation_steps = 1
    trainer._eval_modules = frozen_modules(trainer.model, trained)
    try:
        with trainer.frozen(), untouched(trainer.model):
            yield
    finally:
        trainer._eval_modules = resting
        if beside is not None:
            beside._last = number


def _inputs(trainer: Any, rows: Any, number: int) -> dict[str, Any]:
    """The first rows as a batch on the device."""
    inputs = trainer.data_collator([rows[i] for i in range(number)])
    inputs.pop("row", None)  # nothing is kept of these
    return trainer._prepare_inputs(inputs)


def _pass(trainer: Any, inputs: dict[str, Any]) -> None:
    model = trainer.model.train()
    with fitting(model, inputs):
        loss = trainer.compute_loss(model, dict(inputs))
        loss.backward()
    items = count(inputs)
    if items is not None and not items:
        return  # a mean over nothing
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if loss.isfinite() and not bad:
        return
    what = f"a loss of {loss.item():g}" if not loss.isfinite() else f"gradients of {bad[0]} that are no numbers"
    with torch.no_grad():
        where = first_broken(model, lambda: trainer.compute_loss(model, dict(inputs)))
    cause = f"{where} is the first to make no numbers of numbers" if where else "look for such values in the data"
    raise UserError(f"The first batch gives {what}: {cause}. Pass another --strategy or --model.")


def _refuses_one_row(trainer: Any) -> bool:
    try:
        with torch.no_grad():
            trainer.compute_loss(trainer.model.train(), _inputs(trainer, trainer.train_dataset, 1))
    except ValueError as failure:
        if LONELY not in str(failure):
            raise
        return True
    return False
