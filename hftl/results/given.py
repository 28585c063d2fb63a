"""What people hand to a loaded model, as rows of its roles: paths, bytes, arrays, tensors, tables, generators."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hftl.data.roles import Role
from hftl.errors import UserError


def many(inputs: Any, first: Role) -> list[Any] | None:
    """Several inputs as a list; None of a single one.

    Lists, tables, series, data sets and generators are several; so is an array of texts, or one of images with a
    dimension more than an image has.
    """
    if isinstance(inputs, list):
        return inputs
    if isinstance(inputs, str | bytes | Mapping | tuple | Path | io.IOBase | Image.Image):
        return None
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):  # a DataFrame of pandas
        return inputs.to_dict("records")
    if isinstance(inputs, np.ndarray | torch.Tensor):
        one = first.kind == "image" and inputs.ndim <= 3
        return None if one or inputs.ndim == 0 else list(inputs) if first.kind == "image" else inputs.tolist()
    if isinstance(inputs, Iterator) or hasattr(inputs, "__getitem__") or hasattr(inputs, "__iter__"):
        return list(inputs)
    return None


def row(value: Any, roles: Mapping[str, Role], trained: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One input by role.

    Args:
        trained: role -> the column that training read: where a mapping has all of these, they are read again.

    Raises:
        UserError: a value too many, a role without one, or what no role of this kind reads.
    """
    names, needed = [*roles], [name for name, role in roles.items() if role.required]
    undecoded = isinstance(value, Mapping) and value.keys() == {"bytes", "path"}  # an image as `datasets` holds it
    if isinstance(value, Mapping) and not undecoded:
        columns = {role: name for role, name in (trained or {}).items() if role in roles}
        if columns and columns.keys() >= {*needed} and {*columns.values()} <= value.keys():
            value = {role: value[name] for role, name in columns.items()}
        pair = {"pair": "text_pair"} if "text_pair" in roles and "text_pair" not in value else {}
        given = {pair.get(key, key): cell for key, cell in value.items()}
        if "text_pair" not in roles and "text" in roles and {"pair", "text_pair"} & given.keys():
            raise UserError("Expected one text a row, as in training; a pair came. Leave the second out.")
        if missing := [name for name in needed if name not in given]:
            raise UserError(
                f"Expected the keys {', '.join(names)}; {', '.join(map(str, value))} came. Add {missing[0]}."
            )
        return {name: cell(given[name], name, roles[name]) for name in names if name in given}
    parts = value if isinstance(value, tuple) else (value,)
    if not len(needed) <= len(parts) <= len(names):
        raise UserError(f"Expected {_between(len(needed), len(names))} a row ({', '.join(names)}); {len(parts)} came.")
    return {name: cell(part, name, roles[name]) for name, part in zip(names, parts, strict=False)}


def cell(value: Any, name: str, role: Role) -> Any:
    """A value as its role is read from a file: a text as text, an image as PIL has it or as its path or bytes."""
    if role.kind == "image":
        return _image(value, name)
    value = value.item() if isinstance(value, np.generic) else value
    if role.kind == "text" and not isinstance(value, str):
        raise UserError(f"Expected a text for {name}; {_kind(value)} came.")
    if role.kind == "words" and not isinstance(value, str):
        words = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        if wrong := [word for word in words if not isinstance(word, str)]:
            raise UserError(f"Expected a list of texts for {name}; {_kind(wrong[0])} came.")
        return [str(word) for word in words]
    return value


def _image(value: Any, name: str) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, io.IOBase):
        return {"bytes": value.read(), "path": None}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return _picture(value, name)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | Image.Image | Mapping):
        return value
    raise UserError(f"Expected an image, its path or its bytes for {name}; {_kind(value)} came.")


def _picture(pixels: np.ndarray, name: str) -> Image.Image:
    """(height, width[, channels]) or (channels, height, width); floats are shares of 1."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise UserError(f"Expected pixels of shape (height, width, 3) for {name}; {pixels.shape} came.")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(f"Expected floats from 0 to 1, or integers from 0 to 255, for {name}; others came.")
        pixels = (pixels * 255).round()
    if pixels.dtype != bool and (pixels.min() < 0 or pixels.max() > 255):
        raise UserError(f"Expected integers from 0 to 255 for {name}; {pixels.min()} to {pixels.max()} came.")
    return Image.fromarray(pixels.astype(np.uint8))


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _between(least: int, most: int) -> str:
    return f"{least} value{'s' if least > 1 else ''}" if least == most else f"{least} to {most} values"
