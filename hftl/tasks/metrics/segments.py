"""Scores of masks: intersection over union, bootstrapped over images. Knows counts of pixels, no image and no model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hftl.tasks.metrics import bootstrap
from hftl.tasks.metrics.accumulator import Accumulator, finite, largest, shapes
from hftl.tasks.metrics.bootstrap import Score, Statistic, Values
from hftl.tasks.sections import Section, by_class, confused, per_class

WHITE = (255, 255, 255)
LISTED_CLASSES = 20  # per-class IoU is listed up to here


def colour(index: int) -> tuple[int, int, int]:
    """Red, green and blue of a class in pictures of masks: PASCAL VOC's, far apart for ids near each other."""
    red, green, blue = (
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
    )
    return red, green, blue


class Segments(Accumulator):
    """A class for each pixel. Outputs [n, classes, classes]: of each image the pixels of true class i said to be j.

    mean_iou: the mean of TP / (TP + FP + FN), counted over the pixels of all images, over the classes that occur among
    truths or predictions (scikit-learn's macro Jaccard score); pixel_accuracy; iou_<name> for up to 20 classes.
    An image is a row of the bootstrap, since its pixels are not drawn one by one. n counts images; one without a
    labelled pixel is dropped. Kept of an image are three counts for each class, never its pixels.
    """

    headline = "mean_iou"
    unit = "image"
    wrong = "Most pixels wrong, on test"

    def reset(self) -> None:
        super().reset()
        self._confusion = np.zeros((len(self.names), len(self.names)), np.int64)

    @property
    def reported(self) -> list[str]:
        return ["mean_iou", "pixel_accuracy", *self.classes]

    @property
    def classes(self) -> dict[str, str]:
        return {f"iou_{name}": name for name in self.names} if len(self.names) <= LISTED_CLASSES else {}

    def sections(self, scores: Mapping[str, Mapping[str, Score]]) -> list[Section]:
        counts = self.confusion()
        pixels = [sum(row) for row in counts]
        trivial = max(pixels) / sum(pixels) / sum(map(bool, pixels))  # IoU of that class; all others' is 0
        return by_class("IoU", self.names, per_class(counts), scores, "pixels") + confused(self.names, counts, trivial)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch of confusion counts. Raises UserError where they do not fit the classes."""
        counts, classes = finite(np.asarray(logits)), len(self.names)
        if counts.shape != (len(labels), classes, classes):
            raise shapes(f"counts [n, {classes}, {classes}]", counts, np.asarray(labels))
        counts = counts.astype(np.int64)
        pixels, row = counts.sum(axis=(1, 2)), self.arrived(len(counts))
        kept = pixels > 0
        counts = counts[kept]
        self._confusion += counts.sum(axis=0)
        self.keep(hits=np.einsum("nii->ni", counts), actual=counts.sum(axis=2), guessed=counts.sum(axis=1))
        largest = (counts * (1 - np.eye(classes, dtype=np.int64))).reshape(len(counts), -1).argmax(axis=1)
        self.keep(label=pixels[kept], row=row[kept], true=largest // classes, said=largest % classes)

    def confusion(self) -> list[list[int]]:
        """Rows true, columns predicted, in pixels of all images."""
        return self._confusion.tolist()

    def mistakes(self, most: int) -> list[tuple[int, str, str, float]]:
        """The images with the largest share of wrong pixels: the class most often taken for another, this, share."""
        row, true, said = map(self.column, ("row", "true", "said"))
        wrong = 1 - self.column("hits").sum(axis=1) / self.column("label")
        worst = largest(wrong, most)
        return [(int(row[i]), self.names[true[i]], self.names[said[i]], float(wrong[i])) for i in worst]

    def sure(self, much: float) -> str:
        return f"({100 * much:.1f} % of its pixels wrong)"

    def statistics(self) -> list[Statistic]:
        hits, actual, guessed = (self.column(name).astype(np.float64) for name in ("hits", "actual", "guessed"))

        def of(weights: np.ndarray) -> Values:
            hit, true, said = (weights @ part for part in (hits, actual, guessed))
            union = true + said - hit
            each = bootstrap.ratio(hit, union)
            found = {
                "mean_iou": bootstrap.ratio(each.sum(axis=1), (union > 0).sum(axis=1)),
                "pixel_accuracy": hit.sum(axis=1) / true.sum(axis=1),
            }
            return found | {name: each[:, index] for index, name in enumerate(self.classes)}

        return [bootstrap.per_example(len(hits), of)]
