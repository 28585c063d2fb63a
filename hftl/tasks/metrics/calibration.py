"""How far a confidence can be believed: equal-width bins of it against what came true; knows numbers in 0..1 only."""

from __future__ import annotations

import numpy as np

from hftl.tasks.metrics.bootstrap import sums

ECE_BINS = 15  # Guo et al. 2017, section 5


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> list[dict[str, float]]:
    """Return the non-empty bins `low < confidence <= high` of a reliability diagram of examples [n]."""
    index = _bin(confidence, bins)
    counts, certain, correct = (np.bincount(index, part, bins) for part in (None, confidence, right))
    return [
        {
            "low": at / bins,
            "high": (at + 1) / bins,
            "confidence": float(certain[at] / counts[at]),
            "accuracy": float(correct[at] / counts[at]),
            "count": int(counts[at]),
        }
        for at in np.flatnonzero(counts).tolist()
    ]


def expected_error(weights: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the expected calibration error [b] of weighted examples [b, n] (Guo et al. 2017, equation 3)."""
    gaps = sums(weights * (right - confidence), _bin(confidence, ECE_BINS), ECE_BINS)
    return np.abs(gaps).sum(axis=1) / weights.sum(axis=1)


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
