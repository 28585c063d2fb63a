"""Convert report.json of versions before sections, which held a problem type and the material of each figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftl.tasks import sections as drawn
from hftl.tasks.metrics.names import LOWER_IS_BETTER

SINGLE, MULTI, PIXELS = "single_label_classification", "multi_label_classification", "image_segmentation"
UNITS = {"masked_tokens": "masked token", PIXELS: "image", "token_classification": "sentence"}
ARGUMENTS = {MULTI: ", top_k=None", "regression": ', function_to_apply="none"'}


def fields(values: Mapping[str, Any], scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What this version has in place of a problem type, confusion, calibration, wrong and augmented."""
    kind, labels, counts = values.get("problem_type", SINGLE), values.get("labels", []), values.get("confusion", [])
    names = {f"{prefix}_{label}": label for label in labels for prefix in ("f1", "iou")}
    classes = {name: names[name] for name in {**scores["test"], **scores["valid"]} if name in names}
    sums = [sum(row) for row in counts if any(row)]
    trivial = max(sums) / sum(sums) / (len(sums) if kind == PIXELS else 1) if sums else None
    axes = ("probability", "frequency") if kind == MULTI else ("confidence", "accuracy")
    made = []
    if len(counts) == len(labels):
        made += drawn.by_class("IoU" if kind == PIXELS else "F1", labels, drawn.per_class(counts), scores)
    made += drawn.confused(labels, counts, trivial) + drawn.reliability(*axes, values.get("calibration", []))
    wrong, pairs = (list(map(_example, values.get(name, []))) for name in ("wrong", "augmented"))
    for heading, examples in (("Wrong, on test", wrong), ("Training rows before and after augmentation", pairs)):
        made += [drawn.Gallery(heading=heading, examples=examples, wide=kind == PIXELS)] if examples else []
    usage = dict(values.get("usage", {}))
    if kind in ARGUMENTS:
        usage["arguments"] = usage.get("arguments", "") + ARGUMENTS[kind]
    if "only" in usage:
        usage["only"] = "Its head is hftl's own, which plain transformers does not have."
    lower, unit = sorted(LOWER_IS_BETTER), UNITS.get(kind, "row")
    return {"sections": made, "classes": classes, "lower": lower, "unit": unit, "usage": usage}


def _example(values: Mapping[str, Any]) -> drawn.Example:
    """A wrong prediction (text or image, label, prediction), or a training row before and after augmentation."""
    shown = [str(values[name]) for name in ("text", "text_pair", "image", "before", "after") if values.get(name)]
    images = [one for one in shown if one.startswith("data:image/")]
    texts = [one for one in shown if one not in images]
    return drawn.Example(
        texts=texts, images=images, label=str(values.get("label", "")), prediction=values.get("prediction")
    )
