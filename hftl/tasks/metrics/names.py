"""What a metric is called; a metric that is not listed bears its own name."""

from __future__ import annotations

from hftl.settings.visible import visible

METRICS = {
    "accuracy": "Accuracy",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "ece": "Calibration error",
    "exact_match": "Exact match",
    "f1_entity": "Entity F1",
    "f1_macro": "Macro F1",
    "f1_micro": "Micro F1",
    "log_loss": "Log loss (nats)",
    "mae": "Mean absolute error",
    "matthews": "Matthews correlation",
    "mean_iou": "Mean IoU",
    "mse": "Mean squared error",
    "pearson": "Pearson correlation",
    "pretext_loss": "Pre-training loss",
    "pseudo_perplexity": "Pseudo-perplexity",
    "pixel_accuracy": "Pixel accuracy",
    "precision": "Entity precision",
    "recall": "Entity recall",
    "spearman": "Spearman correlation",
    "tag_accuracy": "Accuracy of tags",
}

LOWER_IS_BETTER = {"loss", "log_loss", "mse", "mae", "ece", "pseudo_perplexity", "pretext_loss"}
"""By name, where no accumulator says it: the loss, metrics of `evaluate`, and report.json of earlier versions."""


def metric_name(name: str) -> str:
    """`f1_macro` -> `Macro F1`; a name that is not known is only tidied."""
    return METRICS.get(name) or visible(name).replace("_", " ")
