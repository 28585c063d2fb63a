"""A loaded model as ONNX, compared with itself before it is called done. Knows torch.onnx and onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftl.errors import UserError
from hftl.paths import expanded
from hftl.results.merging import TOLERANCE, distance
from hftl.results.predict import Predictor, load

NEEDED = ("onnx", "onnxscript", "onnxruntime")
SHAPES = ((0, 3), (3, 4), (1, 8))
"""Rows of the examples that both are compared on: other numbers of rows and other lengths than were traced."""


class _Logits(nn.Module):
    """The model as a function from tensors, in this order, to logits."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


def export(folder: str | Path, out: str | Path, overwrite: bool = False) -> str:
    """Write the model of a folder (or a Hub repository) as ONNX; return what to say.

    Its inputs are the model's own, by name, with any number of rows and, of texts, any length; its output is `logits`.

    Raises:
        UserError: packages that are missing, a model that torch.onnx cannot trace, or outputs that differ.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'Exporting needs {" and ".join(missing)}: pip install "hftl[export]".')
    out = expanded(out)
    if out.suffix != ".onnx" or not out.parent.is_dir():
        raise UserError(f"Expected a file that ends in .onnx, in a folder that exists; {out} came.")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; pass --overwrite to replace it, or name another file.")
    predictor = load(folder)
    predictor.model.cpu()
    rows = predictor.task.examples(8)
    part = out.with_suffix(".partial.onnx")
    try:
        write(predictor, predictor.batch(rows[2:5]), part, str(folder))
        far = max(compare(predictor, rows[start:stop], part) for start, stop in SHAPES)
        if not far <= TOLERANCE:
            raise UserError(
                f"As ONNX the model of {folder} gives other logits ({far:.1g} off), so nothing was written."
            )
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return (
        f"{out}: {out.stat().st_size:,} bytes; logits differ by {far:.1g} at most from the model's, on batches of "
        f"{', '.join(str(stop - start) for start, stop in SHAPES)} rows."
    )


def write(predictor: Predictor, batch: dict[str, torch.Tensor], path: Path, name: str) -> None:
    """Trace the model on a batch and write it; rows, and the length of texts, may differ later."""
    model: Any = predictor.model
    prompted = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning
    inner = model.get_base_model() if hasattr(model, "peft_config") and not prompted else model
    rows = torch.export.Dim.DYNAMIC
    shapes = [{0: rows, 1: rows} if value.ndim == 2 else {0: rows} for value in batch.values()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                _Logits(inner, list(batch)).eval(),
                tuple(batch.values()),
                str(path),
                input_names=list(batch),
                output_names=["logits"],
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as failure:  # torch.export raises errors of many kinds, and none of ours
        why = " ".join(str(failure).split())[:160].rstrip(".")
        raise UserError(f"torch.onnx cannot export the model of {name} ({type(failure).__name__}: {why}).") from failure


def compare(predictor: Predictor, rows: list[dict[str, Any]], path: Path) -> float:
    """How far the logits of both are apart on some rows, as `hftl.results.merging.distance` counts."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = predictor.batch(rows)
    wanted = {one.name for one in session.get_inputs()}
    (found,) = session.run(["logits"], {k: v.numpy() for k, v in batch.items() if k in wanted})
    with torch.inference_mode():
        own = predictor.model(**batch).logits.float().numpy()
    return distance([own], [np.asarray(found)])
