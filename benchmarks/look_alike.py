"""Augmentations that make the source look like the target, on digits whose paper and ink have other colours.

    python benchmarks/look_alike.py [--seeds 3]

Source: scikit-learn's digits, white on black (`hftl:digits`), 20 a class. Target: digits that train does not have, pale
on a brown that varies from image to image, with less contrast: those of valid without labels, and 400 of test. Prints
one Markdown row for each augmentation. `valid`, of the source, selects; no label of the target is read before the end.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hftl import Recipe
from hftl.data.load import load
from hftl.tasks.image.classification import ImageClassification

COMPARED = [
    ("none", "Full"),
    ("ColorStats(p=0.5)", "Full"),
    ("HistogramMatch(p=0.5)", "Full"),
    ("FDA(beta=0.1)", "Full"),
    ("none", "MixStyle(layers=1)"),
]
"""Augmentations and strategies."""
SETTINGS = {
    "task": "image-classification",
    "model": "hftl:glyphs",
    "data": "hftl:digits",
    "learning_rate": 1e-3,
    "num_train_epochs": 15,
    "disable_tqdm": True,
}


def recolour(rows: list[dict], folder: Path) -> None:
    """Write digits, 0 to 255 on black, as pale ones on brown paper into folders by class."""
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        ink = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) / 255
        paper = np.array([170, 130, 90]) + rng.normal(0, 12, 3)
        pixels = paper + ink * np.array([50, 90, 120]) + rng.normal(0, 2, ink.shape)
        (folder / str(row["label"])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / str(row["label"]) / f"{i}.png")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seeds", type=int, default=3)
    seeds = words.parse_args().seeds
    with tempfile.TemporaryDirectory() as scratch:
        digits = load("hftl:digits", ImageClassification.roles)
        unlabelled, tested = Path(scratch) / "unlabelled", Path(scratch) / "tested"
        recolour(list(digits.valid), unlabelled)
        recolour(list(digits.test.shuffle(0).select(range(400))), tested)
        lines = []
        for augment, strategy in COMPARED:
            found: dict[str, list[float]] = {"source": [], "target": []}
            for seed in range(1, seeds + 1):
                recipe = Recipe(
                    **SETTINGS | {"augment": augment, "strategy": strategy, "seed": seed},
                    unlabelled=str(unlabelled),
                    target_test=str(tested),
                    output_dir=f"{scratch}/{len(lines)}-{seed}",
                )
                report = recipe.run()
                assert report is not None
                found["source"].append(report.test["accuracy"].value)
                found["target"].append(report.target["accuracy"].value)
            said = [f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in found.values()]
            lines.append(f"| `{augment}` | `{strategy}` | {said[0]} | {said[1]} | {seeds} |")
    print("| augmentation | strategy | test of the source | test of the target | seeds |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
