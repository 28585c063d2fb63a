"""Texts end to end in one row in place of padded. Knows a model's blocks; no architecture by name, no data.

Before the first block the hidden states (B, L, D) of a padded batch become one row (1, T, D) of its T tokens, so that
every linear layer, norm and activation works on tokens alone; after the last block they are put back among zeros, and
pooler, head and loss are the model's own. Whether a model can do this is not looked up: `Packing.check` runs one batch
both ways and compares.

Computing on tokens alone is the "unpadding" of Zeng et al. 2022 (arXiv 2208.08124).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from hftl.errors import UserError
from hftl.models.packed import NAME, PackedRow, packs, register
from hftl.models.untouched import untouched

if TYPE_CHECKING:
    from hftl.models.anatomy import Anatomy

_OWN = "its attention or its masks are its own, not those of transformers' attention interface"
_States = tuple[torch.Tensor, torch.Tensor | None]  # logits, and what the last block gave


class Packing:
    """Packs the batches of a model from `start` to `stop`, in training and in evaluation.

    Args:
        model: with its adapters, if it has any, and before it is wrapped for several devices.
        anatomy: where its blocks are.

    Raises:
        UserError: the model reads no text, or has no single stack of blocks.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.model = model
        if getattr(model, "main_input_name", "input_ids") != "input_ids":
            raise UserError("--packing is for texts, and this model reads something else. Leave it out.")
        if not anatomy.stack:
            self._refuse("it has no stack of blocks")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            self._refuse("it is an encoder with a decoder, two stacks of blocks")
        named = [(f".{name}", module) for name, module in model.named_modules()]
        self.blocks = [next(m for name, m in named if name.endswith(f".{path}")) for path in anatomy.stack]
        self._checked = False
        self._row: PackedRow | None = None
        self._last: torch.Tensor | None = None
        self._hooks: list[Any] = []
        self._before: list[tuple[Any, str]] = []

    @property
    def on(self) -> bool:
        """Whether batches are packed now."""
        return bool(self._hooks)

    def start(self) -> None:
        """From now on the model packs."""
        if self.on:
            return
        register()
        configs: dict[int, Any] = {id(m.config): m.config for m in self.model.modules() if hasattr(m, "config")}
        known = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
        self._before = [(config, config._attn_implementation) for config in known]
        for config in known:
            config._attn_implementation = NAME
        for block in self.blocks:
            self._hooks.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._hooks.append(self.blocks[-1].register_forward_hook(self._leave, with_kwargs=True))

    def stop(self) -> None:
        """The model is as it was before `start`."""
        for hook in self._hooks:
            hook.remove()
        for config, name in self._before:
            config._attn_implementation = name
        self._hooks, self._before = [], []

    def check(self, inputs: dict[str, Any]) -> None:
        """Run the first padded batch both ways, without dropout and in full precision, and compare; later ones pass.

        The hidden states of every token and the logits must agree to 1e-4 of the largest.

        Raises:
            UserError: they do not, or the model cannot run packed.
        """
        if self._checked or not self.on:
            return
        padding = inputs.get("attention_mask")
        if padding is None:
            self._refuse("its batches come without an attention mask")
        if not packs(padding.bool()):
            return
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        with _calm(self.model):
            self.stop()
            watch = self.blocks[-1].register_forward_hook(self._note)
            try:
                padded = self._run(inputs)
            finally:
                watch.remove()
            self.start()
            reason = self._fault(padded, inputs)
        if reason:
            self.stop()
            self._refuse(reason)
        self._checked, self._row, self._last = True, None, None

    def _fault(self, padded: _States, inputs: dict[str, Any]) -> str:
        """What goes wrong when the model packs; empty where nothing does."""
        try:
            found = self._run(inputs)
            self.model(**inputs)  # as it will run, with autocast: it must not fail
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as failure:
            words = textwrap.shorten(str(failure), 160, placeholder=" ...").rstrip(".")
            theirs = self._row is None or self._row.attended
            return f"its blocks fail on packed texts ({words})" if theirs else _OWN
        if self._row is None or not self._row.attended or found[1] is None or padded[1] is None:
            return _OWN
        tokens = self._row.places
        pairs = [(found[0], padded[0]), *[[part.flatten(0, 1)[tokens] for part in (found[1], padded[1])]]]
        for one, other in pairs:
            far = float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
            if not far <= (1e-4 if other.dtype == torch.float32 else 3e-2):
                return f"packed and padded texts give different outputs, {far:.1g} apart"
        return ""

    def _run(self, inputs: dict[str, Any]) -> _States:
        """One forward pass in the precision of the weights: accelerate's autocast wraps the model's own `forward`."""
        self._row = self._last = None
        forward: Callable[..., Any] = type(self.model).forward
        return forward(self.model, **inputs)["logits"], self._last

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(
            f"--packing does not fit {type(self.model).__name__}: {reason}. Leave it out; batches of like length waste "
            "little padding."
        )

    def _enter(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before a block: pack whatever has a value for each place of the padded batch, if it is not packed yet."""
        row = _row_of(args, kwargs)
        if row is None:
            return None
        self._row = None if self._checked else row
        return _each(lambda part: row.pack(part) if _by_place(part, row) else part, (args, kwargs))

    def _leave(self, block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """After the last block: put the hidden states back among zeros."""
        row = _row_of(args, kwargs)
        if row is None:
            return None
        output = _each(lambda part: row.unpack(part) if part.shape[:2] == (1, row.total) else part, output)
        self._note(block, args, output)
        return output

    def _note(self, block: nn.Module, args: Any, output: Any) -> None:
        """Keep the last hidden states for the check."""
        states = output[0] if isinstance(output, tuple) else output
        if not self._checked and isinstance(states, torch.Tensor):
            self._last = states.detach()


def _row_of(args: tuple, kwargs: dict[str, Any]) -> PackedRow | None:
    """The `PackedRow` that a mask among a block's arguments carries."""
    return next((part.packed_row for part in (*args, *kwargs.values()) if hasattr(part, "packed_row")), None)


def _by_place(part: torch.Tensor, row: PackedRow) -> bool:
    """Whether a tensor has a value or a vector for each place of the padded batch: states, positions, rotations."""
    return part.ndim in (2, 3) and part.shape[1] == row.length and part.shape[0] in (1, row.batch)


def _each(change: Callable[[torch.Tensor], torch.Tensor], values: Any) -> Any:
    """Change every tensor in nested tuples, lists and dicts."""
    if isinstance(values, torch.Tensor):
        return change(values)
    if type(values) in (tuple, list):
        return type(values)(_each(change, value) for value in values)
    if type(values) is dict:
        return {name: _each(change, value) for name, value in values.items()}
    return values


@contextmanager
def _calm(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, and float32 products in full; afterwards all as before."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
