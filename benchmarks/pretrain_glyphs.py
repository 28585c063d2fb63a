"""Pre-train `hftl:glyphs`, the small image backbone that the package carries, on rendered letters and symbols.

    python benchmarks/pretrain_glyphs.py --output glyphs --steps 2800  # 8 minutes of one core
    python benchmarks/pretrain_glyphs.py --output glyphs --evaluate    # what it is worth on handwritten digits

Knows matplotlib's fonts, timm and, for `--evaluate`, scikit-learn's digits; uses nothing of hftl. No digit is ever
rendered. The folder is in timm's Hub form and loads with transformers' AutoModelForImageClassification.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

ARCHITECTURE = "resnet10t"
# resnet10t has 5 M parameters for 224 pixels; these widths make it 0.6 M, and stride 8 keeps 4 x 4 places of 32 pixels
MODEL_ARGS = {"channels": [32, 48, 96, 160], "stem_width": 16, "output_stride": 8}
MEAN, STD = 0.5, 0.5
SIZE, CANVAS = 32, 64  # pixels of an image, and of a glyph before it is distorted
BATCH = 128
PER_DIGIT = 20  # labelled digits of each class in --evaluate

ALIKE = "CKOPSUVWXZ"  # capitals that are their small letter at another size
LATIN = "".join(chr(code) for code in [*range(65, 91), *range(97, 123)])
GREEK = "αβγδεζηθλμξπρστφχψωΓΔΘΛΞΠΣΦΨΩ"
SYMBOLS = "!?&%#@$*+<>()[]{}/\\~^=§∞∂∑√≠≈≤≥∈∩∪∀∃∅∧∨∇"
NAMES = {"I": "I or l", "l": "I or l", "|": "I or l", **{letter: f"{letter} or {letter.lower()}" for letter in ALIKE}}
# The Computer Modern fonts have encodings of their own, in which only (Latin or capital) letters are where they belong.
LETTERS_ONLY = dict.fromkeys(("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"), LATIN) | {"cmsy10": LATIN[:26]}
# Code points of mathematical alphabets in STIX and DejaVu: A to Z, a to z from here; script is nearest to handwriting.
ALPHABETS = (0x1D400, 0x1D434, 0x1D468, 0x1D49C, 0x1D4D0, 0x1D538, 0x1D5A0, 0x1D5D4, 0x1D608, 0x1D63C, 0x1D670)
HELD_OUT = ("cmss10", "DejaVuSansMono-Oblique", "DejaVuSerif-Bold", "STIXGeneralItalic")


def characters(font: str, charmap: dict[int, int]) -> dict[str, str]:
    """Return the characters to draw in a font, each with the name of its class."""
    if font in LETTERS_ONLY:
        return {letter: name(letter) for letter in LETTERS_ONLY[font]}
    wanted = {char: name(char) for char in LATIN + GREEK + SYMBOLS}
    for first in ALPHABETS:
        wanted |= {chr(first + index): name(letter) for index, letter in enumerate(LATIN)}
    return {char: label for char, label in wanted.items() if ord(char) in charmap}


def name(char: str) -> str:
    """Return a glyph's class; glyphs that look the same when scaled to one size share one."""
    return NAMES.get(char, NAMES.get(char.upper() if char.upper() in ALIKE else "", char))


def draw(path: str, char: str) -> np.ndarray:
    """Return a glyph in white on black, its longer side 44 of the 64 pixels of the canvas."""
    font = ImageFont.truetype(path, 96)
    left, top, right, bottom = font.getbbox(char)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(image).text((4 - left, 4 - top), char, fill=255, font=font)
    image = image.crop(image.getbbox())
    shrink = 44 / max(image.size)
    image = image.resize([max(1, round(side * shrink)) for side in image.size], Image.Resampling.LANCZOS)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
    return np.asarray(canvas)


def bank() -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Draw every glyph once: images [n, 1, 64, 64] uint8, class ids [n], held out [n], class names."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    images, labels, held = [], [], []
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if not path.stem.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral", *LETTERS_ONLY)):
            continue
        for char, label in characters(path.stem, FT2Font(str(path)).get_charmap()).items():
            images.append(draw(str(path), char))
            labels.append(label)
            held.append(path.stem in HELD_OUT)
    names = sorted(set(labels))
    ids = {label: index for index, label in enumerate(names)}
    stacked = torch.from_numpy(np.stack(images))[:, None]
    return stacked, torch.tensor([ids[label] for label in labels]), torch.tensor(held), names


def distort(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Turn glyphs [b, 1, 64, 64] in 0..1 into handwriting-like, normalised images [b, 3, 32, 32]."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(glyphs), generator=generator) * (high - low) + low

    def some(share: float) -> Tensor:
        return (uniform(0, 1) < share)[:, None, None, None]

    images = glyphs
    for kernel, share in ((3, 0.3), (5, 0.3)):  # thicker strokes
        images = torch.where(some(share), F.max_pool2d(images, kernel, 1, kernel // 2), images)
    images = torch.where(some(0.2), -F.max_pool2d(-images, 3, 1, 1), images)  # thinner ones
    images = _warp(images, uniform, generator)
    images = F.avg_pool2d(images, CANVAS // SIZE)
    # the digits were scanned as 32 x 32 bits and counted in 4 x 4 blocks: 8 x 8 numbers from 0 to 16
    counted = F.avg_pool2d((images > uniform(0.15, 0.5)[:, None, None, None]).float(), 4)
    coarse = F.interpolate(counted, size=SIZE, mode="bicubic", antialias=True).clamp(0, 1)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.1)[:, None, None, None]
    images = torch.where(some(0.7), coarse, (images + noise).clamp(0, 1))
    return ((images - MEAN) / STD).expand(-1, 3, -1, -1)


def _warp(images: Tensor, uniform, generator: torch.Generator) -> Tensor:
    angle, shear = uniform(-0.3, 0.3), uniform(-0.4, 0.4)
    wide, high = uniform(0.65, 1.25), uniform(0.6, 0.9)  # below 1 the glyph grows
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([wide * cos, wide * (shear * cos - sin), uniform(-0.12, 0.12)], 1)]
    rows += [torch.stack([high * sin, high * (shear * sin + cos), uniform(-0.12, 0.12)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    bends = torch.randn(len(images), 2, 4, 4, generator=generator) * uniform(0, 0.12)[:, None, None, None]
    bends = F.interpolate(bends, size=CANVAS, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid + bends, align_corners=False)


def pretrain(minutes: float, steps: int | None, seed: int) -> tuple[torch.nn.Module, list[str], float, int]:
    """Train from random weights; return the model, class names, accuracy on unseen fonts and the steps taken."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    images, labels, held, names = bank()
    shown = torch.nonzero(~held)[:, 0]
    model = timm.create_model(ARCHITECTURE, num_classes=len(names), **MODEL_ARGS)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    kept = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    start, step, done, progress = time.monotonic(), 0, 0.0, tqdm(total=100, unit="%")
    model.train()
    while done < 1:
        for group in optimizer.param_groups:  # 5 % warm-up, then linear to zero
            group["lr"] = 3e-3 * min(done / 0.05 + 1e-3, (1 - done) / 0.95)
        # classes equally often: some are in every font, some in few
        chosen = _balanced(labels[shown], len(names), generator)
        batch = distort(images[shown[chosen]].float() / 255, generator)
        loss = F.cross_entropy(model(batch), labels[shown[chosen]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        done = min(1.0, step / steps if steps else (time.monotonic() - start) / (60 * minutes))
        progress.update(round(100 * done, 1) - progress.n)
        progress.set_postfix(step=step, loss=f"{loss.item():.3f}", refresh=False)
    progress.close()
    return model, names, _accuracy(model, images[held], labels[held], generator), step


def _balanced(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    weights = 1 / torch.bincount(labels, minlength=classes).clamp(min=1).float()
    return torch.multinomial(weights[labels], BATCH, replacement=True, generator=generator)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> float:
    model.eval()
    right = [
        (model(distort(part.float() / 255, generator)).argmax(1) == truth).float()
        for part, truth in zip(images.repeat(4, 1, 1, 1).split(BATCH), labels.repeat(4).split(BATCH), strict=True)
    ]
    return torch.cat(right).mean().item()


def save(model: torch.nn.Module, names: list[str], folder: Path) -> None:
    """Write config.json and model.safetensors in timm's Hub form."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(names),
        "num_features": model.num_features,
        "global_pool": "avg",
        "model_args": MODEL_ARGS,
        "label_names": names,
        "pretrained_cfg": {
            "tag": "hftl_glyphs",
            "custom_load": False,
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": len(names),
            "pool_size": [4, 4],
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "apache-2.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def evaluate(folder: Path, seeds: int) -> None:
    """Print what the checkpoint is worth on handwritten digits, against the same network from random weights."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # the classifier is fresh on purpose
    digits = load_digits()
    pictures = [Image.fromarray((image * 255 / 16).astype(np.uint8)).convert("RGB") for image in digits.images]
    pixels = AutoImageProcessor.from_pretrained(folder)(pictures)["pixel_values"]
    truth = torch.from_numpy(digits.target)
    found: dict[str, list[float]] = {}
    for seed in tqdm(range(seeds)):
        order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
        train = torch.cat([order[truth[order] == digit][:PER_DIGIT] for digit in range(10)])
        test = order[~torch.isin(order, train)]

        def probed(features: np.ndarray, train: Tensor = train, test: Tensor = test) -> float:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000))
            return float(probe.fit(features[train], truth[train]).score(features[test], truth[test]))

        found.setdefault("linear probe of the 64 pixels", []).append(probed(digits.data))
        for weights in ("glyphs", "random weights"):
            torch.manual_seed(seed)
            found.setdefault(f"linear probe, {weights}", []).append(probed(_features(_model(folder, weights), pixels)))
            for epochs in (5, 20):
                torch.manual_seed(seed)
                model = _model(folder, weights)
                _finetune(model, pixels[train], truth[train], epochs)
                with torch.no_grad():
                    right = model.eval()(pixels[test]).logits.argmax(1) == truth[test]
                found.setdefault(f"fine-tuning, {epochs} epochs, {weights}", []).append(right.float().mean().item())
    print(f"accuracy on {len(test)} digits after {PER_DIGIT} a class, {seeds} seeds: mean (lowest to highest)")
    for row, values in found.items():
        print(f"  {row:40s}{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def _model(folder: Path, weights: str) -> torch.nn.Module:
    """Load the checkpoint, or its architecture with weights from torch's current seed, with ten outputs."""
    from transformers import AutoConfig, AutoModelForImageClassification

    if weights == "glyphs":
        return AutoModelForImageClassification.from_pretrained(folder, num_labels=10, ignore_mismatched_sizes=True)
    return AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=10))


@torch.no_grad()
def _features(model: torch.nn.Module, pixels: Tensor) -> np.ndarray:
    timm_model = model.eval().timm_model
    return timm_model.forward_head(timm_model.forward_features(pixels), pre_logits=True).numpy()


def _finetune(model: torch.nn.Module, pixels: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    total = epochs * -(-len(labels) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 5) * (1 - step / total))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[rows]).logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=8, help="training time")
    parser.add_argument("--steps", type=int, help="batches of 128; overrides --minutes and is reproducible")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="train nothing; measure the checkpoint on digits")
    parser.add_argument("--seeds", type=int, default=5, help="training sets to measure on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.evaluate:
        evaluate(arguments.output, arguments.seeds)
        return
    model, names, accuracy, steps = pretrain(arguments.minutes, arguments.steps, arguments.seed)
    save(model, names, arguments.output)
    print(f"{len(names)} classes, {steps} steps, accuracy on fonts that were held out: {accuracy:.3f}")


if __name__ == "__main__":
    main()
