"""The bundled image backbone: its folder is in timm's Hub form, it transfers to digits, its script makes it anew."""

from __future__ import annotations

import importlib.util
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import hftl

GLYPHS = Path(hftl.__file__).parent / "data" / "samples" / "glyphs"
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "pretrain_glyphs.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pretrain_glyphs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def features(model: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    network = model.eval().timm_model
    with torch.no_grad():
        return network.forward_head(network.forward_features(pixels), pre_logits=True).numpy()


def test_the_folder_is_small_and_its_card_states_licence_fonts_and_origin():
    assert (GLYPHS / "model.safetensors").stat().st_size <= 3_000_000
    card = (GLYPHS / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    for word in ("DejaVu", "BaKoMa", "STIX", "pretrain_glyphs.py", "no digit"):
        assert word in card


def test_transformers_loads_every_weight_and_the_class_names():
    model, info = AutoModelForImageClassification.from_pretrained(GLYPHS, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    names = json.loads((GLYPHS / "config.json").read_text(encoding="utf-8"))["label_names"]
    assert list(model.config.id2label.values()) == names
    stored = load_file(GLYPHS / "model.safetensors")
    for name, value in model.timm_model.state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_no_class_is_a_digit():
    names = json.loads((GLYPHS / "config.json").read_text(encoding="utf-8"))["label_names"]
    assert len(set(names)) == len(names) > 50
    assert not any(unicodedata.digit(char, None) is not None for name in names for char in name)


def test_the_image_processor_scales_a_digit_to_what_the_network_was_trained_on():
    image = Image.fromarray((load_digits().images[0] * 255 / 16).astype(np.uint8)).convert("RGB")
    pixels = AutoImageProcessor.from_pretrained(GLYPHS)(image)["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.min() == -1  # black
    assert pixels.max() > 0.9  # white
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 127.5 - 1
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-6)


def test_with_ten_classes_only_the_classifier_is_fresh():
    model, info = AutoModelForImageClassification.from_pretrained(
        GLYPHS, num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True
    )
    fresh = {key for key, *_ in info["mismatched_keys"]} | set(info["missing_keys"])
    assert {name.split(".")[-2] for name in fresh} == {"fc"}
    assert model(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 10)


def test_its_features_beat_random_weights_and_the_pixels_on_handwritten_digits():
    digits = load_digits()
    pictures = [Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB") for image in digits.images]
    pixels = AutoImageProcessor.from_pretrained(GLYPHS)(pictures)["pixel_values"]
    order = np.random.default_rng(0).permutation(len(pixels))
    train = np.concatenate([order[digits.target[order] == digit][:20] for digit in range(10)])
    test = np.setdiff1d(order, train)

    def accuracy(inputs: np.ndarray) -> float:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
        return probe.fit(inputs[train], digits.target[train]).score(inputs[test], digits.target[test])

    torch.manual_seed(0)
    random = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(GLYPHS))
    glyphs = accuracy(features(AutoModelForImageClassification.from_pretrained(GLYPHS), pixels))
    assert glyphs > 0.95
    assert glyphs > accuracy(features(random, pixels)) + 0.03
    assert glyphs > accuracy(digits.data) + 0.03


def test_the_script_draws_no_digit(script):
    wanted = script.characters("DejaVuSans", dict.fromkeys(range(0x110000), 0))
    wanted |= {char: label for font in script.LETTERS_ONLY for char, label in script.characters(font, {}).items()}
    assert len(wanted) > 500
    assert not any(unicodedata.digit(char, None) is not None for char in wanted)
    assert not any(unicodedata.numeric(char, None) is not None for char in wanted)


def test_glyphs_that_look_alike_share_a_class(script):
    assert script.name("o") == script.name("O")
    assert script.name("I") == script.name("l") == script.name("|")
    assert script.name("b") != script.name("B")


def test_distortion_is_seeded_and_differs_from_glyph_to_glyph(script):
    from matplotlib import get_data_path

    path = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    glyph = torch.from_numpy(script.draw(path, "A").copy())[None, None].repeat(8, 1, 1, 1) / 255
    images, again = (script.distort(glyph, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(images, again)
    assert images.shape == (8, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    assert len({image.sum().item() for image in images}) == 8


def test_the_script_writes_a_folder_that_transformers_loads(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "HELD_OUT", ("cmss10",))
    monkeypatch.setattr(script, "ALPHABETS", ())
    monkeypatch.setattr(script, "GREEK", "")
    monkeypatch.setattr(script, "SYMBOLS", "")
    monkeypatch.setattr(sys, "argv", ["pretrain_glyphs.py", "--output", str(tmp_path / "new"), "--steps", "2"])
    script.main()
    assert "2 steps, accuracy on fonts that were held out: 0." in capsys.readouterr().out
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"]
    assert len(model.config.id2label) == 41
