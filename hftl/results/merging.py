"""An adapter folded into its base model, as a folder that needs no PEFT. Knows loaded models; trains nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hftl.errors import UserError
from hftl.results.folder import OutputFolder
from hftl.results.load import fetched
from hftl.results.predict import load
from hftl.results.report.report import Report
from hftl.settings.recipe_file import read_yaml

ROWS = 8
"""Rows on which both models are compared."""
TOLERANCE = 1e-4
"""The largest difference of logits, as a share of the largest one where that is above 1: float32 in another order."""
FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What PEFT raises where a method cannot be merged into a layer."""


def merge(folder: str | Path, out: str | Path, overwrite: bool = False) -> str:
    """Fold the adapter of a folder (or a Hub repository) into its base, and write a full model; return what to say.

    Raises:
        UserError: no adapter, a method that changes no weights, or a result whose logits differ; nothing is written.
    """
    target = OutputFolder(out)
    target.claim(resume=False, overwrite=overwrite)
    here = fetched(str(folder), None)
    predictor = load(here)
    model: Any = predictor.model
    if not hasattr(model, "peft_config"):
        raise UserError(f"{folder} holds a full model and no adapter, so there is nothing to merge. Use it as it is.")
    rows = predictor.task.examples(ROWS)
    before = predictor.logits(rows)
    predictor.model = folded(model, str(folder))
    far = distance(before, predictor.logits(rows))
    if far > TOLERANCE:
        raise UserError(
            f"Merged, the model of {folder} gives other logits ({far:.1g} off): nothing was written. Keep the adapter."
        )
    report = Report.from_folder(here)
    said = f"The adapter was folded into its base model; logits differ by {far:.1g} at most on {ROWS} inputs."
    report = replace(report, adapter=False, folder=Path(out).as_posix())
    report.data = report.data | {"notes": [*report.data.get("notes", []), said]}
    full, weights = predictor.task.written(predictor.model, None)
    target.write(full, predictor.processor, report, read_yaml(here / "recipe.yaml"), weights)
    return f"{said}\nThe full model is in {target.path}: hftl predict {target.path} --data new.csv --output out.csv"


def folded(model: Any, name: str) -> Any:
    """The base model with the adapter in its weights.

    Raises:
        UserError: the method adds inputs in place of changing weights, or PEFT cannot merge it.
    """
    method = str(model.active_peft_config.peft_type.value)
    if model.active_peft_config.is_prompt_learning or not hasattr(model, "merge_and_unload"):
        raise UserError(
            f"{name}: {method} changes no weight of the base model, so it cannot be merged. Keep the adapter."
        )
    try:
        return model.merge_and_unload(safe_merge=True).eval()
    except FAILURES as failure:
        why = " ".join(str(failure).split())[:200].rstrip(".") or type(failure).__name__
        raise UserError(f"{name}: PEFT cannot merge {method} here ({why}). Keep the adapter.") from failure


def distance(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The largest difference of two lists of logits, as a share of the largest one where that is above 1."""
    size = max(1.0, max(float(np.abs(one).max()) for one in first))
    return max(float(np.abs(one - other).max()) for one, other in zip(first, second, strict=True)) / size
