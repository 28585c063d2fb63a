"""Every family of models goes the whole way: loaded with a fresh head, trained, saved, and loaded again to predict."""

from __future__ import annotations

import datasets
import families
import numpy as np
import pytest
import torch
import transformers

from hftl import Recipe, load, testing
from hftl.data.formats.decode import open_image

QUICK = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "disable_tqdm": True}
STATISTICS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> str:
    return testing.colour_images(tmp_path_factory.mktemp("families") / "colours", 40)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return testing.reviews_csv(tmp_path_factory.mktemp("families") / "reviews.csv", 40)


@pytest.fixture
def checkpoint(request, tmp_path, tiny_bert) -> str:
    """A folder as the Hub would give it: five labels of other data, and a processor."""
    name, folder = request.param, tmp_path / "model"
    torch.manual_seed(0)
    model = families.adaptable(name, 5)
    if name.startswith("timm-"):
        model.config.pretrained_cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    if name in ("t5", "bart"):
        model.config.eos_token_id = 3  # their heads read the position of the end token, here [SEP]
    model.save_pretrained(folder)
    if families.MODALITY[name] == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.add_special_tokens({"eos_token": "[SEP]"})
        tokenizer.save_pretrained(folder)
    elif not name.startswith("timm-"):
        transformers.ViTImageProcessor(**STATISTICS).save_pretrained(folder)
    return str(folder)


def in_turn(modality: str) -> list[tuple[str, str]]:
    """Each family with one of two strategies; `test_peft` and `test_anatomy` have every family with both."""
    names = [name for name, its in families.MODALITY.items() if its == modality]
    chosen = [(name, ("LastLayers(1)", "LoRA(r=2)")[i % 2]) for i, name in enumerate(names)]
    return [
        (name, "BitFit" if name == "albert" else strategy) for name, strategy in chosen
    ]  # its one block has no depth


@pytest.mark.sweep
@pytest.mark.parametrize(("checkpoint", "strategy"), in_turn("text"), indirect=["checkpoint"])
def test_a_text_model_goes_the_whole_way(checkpoint, strategy, texts, tmp_path):
    report = Recipe(model=checkpoint, data=texts, strategy=strategy, output_dir=str(tmp_path / "o"), **QUICK).run()
    assert 0 < report.trainable < report.total
    assert report.labels == ["negative", "positive"]
    found = load(tmp_path / "o")(["good film", "bad pan bad"])
    assert [set(one["scores"]) for one in found] == [{"negative", "positive"}] * 2


@pytest.mark.sweep
@pytest.mark.parametrize(("checkpoint", "strategy"), in_turn("image"), indirect=["checkpoint"])
def test_an_image_model_goes_the_whole_way(checkpoint, strategy, colours, tmp_path):
    recipe = Recipe(
        task="image-classification",
        model=checkpoint,
        data=colours,
        strategy=strategy,
        output_dir=str(tmp_path / "o"),
        **QUICK,
    )
    report = recipe.run()
    assert 0 < report.trainable < report.total
    found = load(tmp_path / "o")([open_image(np_image()), open_image(np_image())])
    assert [set(one["scores"]) for one in found] == [{"blue", "red"}] * 2


def np_image():
    from PIL import Image

    return Image.fromarray(np.full((40, 32, 3), 90, dtype="uint8"))


def test_images_with_several_labels_learn_and_predict_lists(tiny_cnn, colour_folder, tmp_path):
    from pathlib import Path

    files = sorted(Path(colour_folder).rglob("*.png"))
    labels = [[path.parent.name, *(["even"] if int(path.stem) % 4 < 2 else [])] for path in files]
    data = datasets.Dataset.from_dict({"image": [str(path) for path in files], "label": labels})
    data = data.cast_column("image", datasets.Image())
    settings = QUICK | {"max_steps": 60, "learning_rate": 5e-3}
    recipe = Recipe(task="image-classification", model=tiny_cnn, data=data, output_dir=str(tmp_path / "o"), **settings)
    report = recipe.run()
    assert report.headline == "average_precision"
    assert report.test["average_precision"].value > 0.7
    assert "red" in load(tmp_path / "o")(str(next(path for path in files if path.parent.name == "red")))["label"]
