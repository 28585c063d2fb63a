"""fastai as its tutorial has it, for benchmarks/speed.py: vision_learner on a timm backbone whose weights are a file.

    python benchmarks/with_fastai.py FOLDER MODEL --num_train_epochs 6 [--head]

FOLDER holds images by split and class; MODEL is a folder with config.json and model.safetensors in timm's Hub form.
`fine_tune`: one epoch of the head alone, then the rest of the epochs with all weights; with --head the head alone in
every epoch. fastai's own head, with frozen BatchNorm layers that train, as is its default; no augmentation, and the
best epoch on valid is kept. Prints one line of JSON, as plain_trainer.py does.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from fastai.callback.schedule import Learner  # gives Learner fine_tune and fit_one_cycle
from fastai.callback.tracker import SaveModelCallback
from fastai.data.transforms import get_image_files
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from side import called, tell


def learner(folder: Path, model: Path, batch: int, scratch: str) -> Learner:
    config = json.loads((model / "config.json").read_text("utf-8"))
    loaders = ImageDataLoaders.from_folder(
        folder, train="train", valid="validation", item_tfms=Resize(224), bs=batch, val_bs=64, num_workers=0
    )
    made = vision_learner(
        loaders,
        config["architecture"],
        metrics=accuracy,
        pretrained_cfg_overlay=config["pretrained_cfg"] | {"file": str(model / "model.safetensors")},
        **config.get("model_args", {}),
        path=scratch,
    )
    made.remove_cb(made.progress) if hasattr(made, "progress") else None
    return made


def main() -> None:
    parser = called(__doc__)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--num_train_epochs", type=int, default=6)
    parser.add_argument("--per_device_train_batch_size", type=int, default=16)
    parser.add_argument("--head", action="store_true", help="train the head alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    set_seed(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        learn = learner(Path(given.folder), Path(given.model), given.per_device_train_batch_size, scratch)
        best = SaveModelCallback(monitor="accuracy")
        started = time.perf_counter()
        with learn.no_logging():
            if given.head:
                learn.fit_one_cycle(given.num_train_epochs, given.learning_rate, cbs=best)
            else:
                learn.fine_tune(given.num_train_epochs - 1, given.learning_rate, cbs=best)
        seconds = time.perf_counter() - started
        test = learn.dls.test_dl(get_image_files(Path(given.folder, "test")), with_labels=True, bs=64)
        scores = [float(learn.validate(dl=rows)[1]) for rows in (learn.dls.valid, test)]
    trained = sum(p.numel() for p in learn.model.parameters() if p.requires_grad)
    tell(valid=scores[0], test=scores[1], seconds=seconds, trained=trained)


if __name__ == "__main__":
    main()
