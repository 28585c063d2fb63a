"""Metrics of the `evaluate` library, beside the built-in ones; knows how to load one and what it wants to be given."""

from __future__ import annotations

from typing import Any

import numpy as np

from hftl.errors import UserError
from hftl.tasks.metrics.accumulator import Decide


class Extra:
    """A metric of the `evaluate` library beside the built-in ones; see `extra_metric`."""

    def __init__(self, module: Any, decided: Decide) -> None:
        self._module, self._decided = module, decided
        self._last: dict[str, float] | None = None

    def names(self) -> list[str] | None:
        """What the metric returns, told by two rows of made-up classes; None where it takes no such rows."""
        try:
            return list(self._module.compute(predictions=[0, 1], references=[0, 1]))
        except Exception:  # of the metric's own script: then its names are seen at the first evaluation
            return None

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: predictions are class ids, 0/1 rows or numbers, as `Accumulator.decided` gives them."""
        predictions, references = self._decided(np.asarray(logits), np.asarray(labels))
        self._last = None
        self._module.add_batch(predictions=predictions, references=references)

    def compute(self) -> dict[str, float]:
        """Return what the metric returns, without interval; the next batch starts anew.

        Raises UserError for a metric that refuses the data or returns more than numbers by name.
        """
        if self._last is None:
            try:
                self._last = {name: float(value) for name, value in self._module.compute().items()}
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"Expected numbers from the metric {self._module.name!r}; it failed on these predictions "
                    f"({str(error).strip()}): leave it out or pass the folder of a metric that fits."
                ) from error
        return self._last


class Function:
    """A function of predictions and references, each of all rows, that gives a number or numbers by name."""

    def __init__(self, function: Any) -> None:
        self.function, self.name = function, getattr(function, "__name__", "metric")
        self._held: dict[str, list[Any]] = {"predictions": [], "references": []}

    def add_batch(self, predictions: Any, references: Any) -> None:
        """Keep a batch."""
        self._held["predictions"].append(np.asarray(predictions))
        self._held["references"].append(np.asarray(references))

    def compute(self, predictions: Any = None, references: Any = None) -> dict[str, float]:
        """What the function gives of all batches, or of these rows; then it starts anew."""
        given = {"predictions": predictions, "references": references}
        if predictions is None:
            given = {name: np.concatenate(parts) for name, parts in self._held.items()}
            self._held = {name: [] for name in self._held}
        found = self.function(*given.values())
        return found if isinstance(found, dict) else {self.name: found}


def extra_metric(name: Any, decided: Decide | None) -> Extra:
    """Load an `evaluate` metric by its Hub name or from a local folder; this runs the metric's own Python script.

    Args:
        name: or a function `(predictions, references) -> number`, or numbers by name.
        decided: of the task's own metric, `Accumulator.decided`.

    Raises UserError where it cannot be loaded, for one because there is no network, and where a row has many labels.
    """
    if decided is None:
        raise UserError("--metrics scores one answer a row, and here a row has many. Leave it out.")
    if callable(name):
        return Extra(Function(name), decided)
    import evaluate  # slow to import, and rarely wanted

    try:
        return Extra(evaluate.load(name, keep_in_memory=True), decided)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Expected an evaluate metric's name or folder; {name!r} could not be loaded ({reason}): "
            "with no network, pass the path of a local metric folder."
        ) from error
