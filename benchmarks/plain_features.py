"""The script that a user of scikit-learn would write: features from a frozen model in a loop, logistic regression.

    python benchmarks/plain_features.py FOLDER MODEL

FOLDER is as for plain_trainer.py. Batches of 32 in the order of the rows; the mean over the tokens of a text, or what
timm's model pools. Prints one line of JSON: accuracy on valid and test, seconds from the first batch to the scores,
weights fitted, peak memory in bytes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import load_dataset
from side import called, csv_files, tell
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hftl.tasks.origin import resolve


def text_features(batch: dict[str, list], tokenizer: Any, model: Any) -> torch.Tensor:
    inputs = tokenizer(batch["text"], padding=True, truncation=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)


def image_features(batch: dict[str, list], processor: Any, model: Any) -> torch.Tensor:
    images = [image.convert("RGB") for image in batch["image"]]
    return model(**processor(images, return_tensors="pt")).pooler_output


def main() -> None:
    parser = called(__doc__)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    is_text = Path(given.folder, "train.csv").is_file()
    if is_text:
        rows, auto, extract = (
            load_dataset("csv", data_files=csv_files(given.folder)),
            transformers.AutoTokenizer,
            text_features,
        )
    else:
        rows = load_dataset("imagefolder", data_dir=given.folder)
        auto, extract = transformers.AutoImageProcessor, image_features
    name = resolve(given.model)
    processor, model = auto.from_pretrained(name), transformers.AutoModel.from_pretrained(name).float().eval()
    started = time.perf_counter()
    features = {}
    with torch.no_grad():
        for split, part in rows.items():
            batches = (part[start : start + 32] for start in range(0, len(part), 32))
            features[split] = np.concatenate([extract(batch, processor, model).numpy() for batch in batches])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=given.seed))
    fitted.fit(features["train"], rows["train"]["label"])
    scores = {split: fitted.score(features[split], rows[split]["label"]) for split in ("validation", "test")}
    seconds = time.perf_counter() - started
    trained = int(fitted[-1].coef_.size + fitted[-1].intercept_.size)
    tell(valid=scores["validation"], test=scores["test"], seconds=seconds, trained=trained)


if __name__ == "__main__":
    main()
