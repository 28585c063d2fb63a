"""Segmentation: how masks are read and scored, what the linear head computes, runs alone and beside another task."""

from __future__ import annotations

import copy
import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import nn

from hftl import EachAlone, Recipe, Report, load
from hftl.cli.main import hftl, main
from hftl.data.load import load as load_data
from hftl.data.masks import names_in
from hftl.data.types import IGNORED
from hftl.errors import UserError
from hftl.models.shared import MultiTaskModel
from hftl.tasks.image.segmentation import ImageSegmentation, painted
from hftl.tasks.metrics.segments import Segments
from hftl.tasks.networks.dense import as_map, confusion, segmenter_of
from hftl.tasks.sections import Gallery

TASK, NAMES = "image-segmentation", ["grey", "red", "blue"]
QUICK = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "disable_tqdm": True, "num_train_epochs": 5}
ROLES = ImageSegmentation.roles


def quarters(folder: Path, n: int, seed: int = 0, side: int = 64) -> str:
    """Write images/ and masks/: each quarter of an image is grey (2), red (5) or blue (7), its first line nothing."""
    rng, half = np.random.default_rng(seed), side // 2
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        pixels, mask = rng.integers(60, 100, (side, side, 3)), np.full((side, side), 2, np.uint8)
        for y in (0, half):
            for x in (0, half):
                here = slice(y, y + half), slice(x, x + half)
                kind = rng.integers(3)
                mask[here] = (2, 5, 7)[kind]
                if kind:
                    pixels[(*here, (0, 2)[kind - 1])] += 120
        mask[0, :] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = Path(quarters(tmp_path_factory.mktemp("scenes") / "scenes", 80))
    (folder / "names.json").write_text(json.dumps({"id2label": {"2": "grey", "5": "red", "7": "blue"}}))
    return str(folder)


@pytest.fixture(scope="module")
def settings(tiny_cnn, scenes):
    given = {"task": TASK, "model": tiny_cnn, "data": scenes, "classes": f"{scenes}/names.json", "image_size": "64"}
    return QUICK | given


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment") / "run"
    script = Path(__file__).parent.parent / "recipes" / "segment.py"
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value)) if name != "task"]
    argv, sys.argv = sys.argv, [str(script), *words, "--output_dir", str(folder)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = argv
    return folder


# --- the metric ---


def masks_and_logits(n: int = 30, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    true = torch.randint(classes - 1, (n, 12, 16), generator=generator)  # the last class is never there
    logits = torch.randn((n, classes, 12, 16), generator=generator)
    logits.scatter_add_(1, true[:, None], torch.full((n, 1, 12, 16), 1.5))
    true[:, :3] = IGNORED
    return true, logits


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_the_iou_is_scikit_learns_over_all_pixels(batch):
    true, logits = masks_and_logits()
    metric, task = Segments(["a", "b", "c", "d"]), ImageSegmentation()
    for start in range(0, len(true), batch):
        part = slice(start, start + batch)
        metric.update(task.outputs(logits[part], true[part]).numpy(), true[part].numpy())
    kept = true != IGNORED
    flat, said = true[kept].numpy(), logits.argmax(1)[kept].numpy()
    values = metric.values()
    assert values["mean_iou"] == pytest.approx(jaccard_score(flat, said, average="macro"))
    for index, name in enumerate(metric.names):
        assert values[f"iou_{name}"] == pytest.approx(jaccard_score(flat, said, average=None)[index])
    assert values["pixel_accuracy"] == pytest.approx((flat == said).mean())
    assert list(values) == metric.reported
    assert np.sum(metric.confusion()) == len(flat)


def test_the_iou_by_hand_and_its_interval_over_images():
    counts = np.array([[[6, 2], [1, 3]], [[4, 0], [8, 0]], [[0, 0], [0, 0]]])
    metric = Segments(["a", "b"])
    metric.update(counts, np.zeros((3, 3, 4)))
    a, b = 10 / (10 + 2 + 9), 3 / (3 + 2 + 9)
    scores = metric.compute()
    assert scores["mean_iou"].value == pytest.approx((a + b) / 2)
    assert scores["mean_iou"].n == 2, "an image without a labelled pixel counts for nothing"
    first, second = (6 / 9 + 3 / 6) / 2, (4 / 12 + 0) / 2  # the resamples that hold one image twice
    assert scores["mean_iou"].low == pytest.approx(second)
    assert scores["mean_iou"].high == pytest.approx(first)
    assert metric.mistakes(5) == [(1, "b", "a", pytest.approx(8 / 12)), (0, "a", "b", 3 / 12)]


def test_a_class_that_is_neither_there_nor_said_does_not_lower_the_mean():
    metric = Segments(["a", "b", "never"])
    metric.update(np.array([[[5, 0, 0], [0, 5, 0], [0, 0, 0]]]), np.zeros((1, 2, 5)))
    assert metric.values()["mean_iou"] == 1


def test_broken_logits_stop_the_run():
    broken = confusion(torch.full((2, 3, 3), torch.nan), torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(UserError, match="lower --learning_rate"):
        Segments(["a", "b"]).update(broken[None].numpy(), np.zeros((1, 3, 3)))


# --- masks ---


def test_classes_are_the_pixel_values_that_the_file_names_and_others_are_ignored(scenes):
    named = load_data(scenes, ImageSegmentation(classes=f"{scenes}/names.json").roles)
    assert (named.labels.names, named.labels.values) == (NAMES, [2, 5, 7])
    found = load_data(scenes, ROLES)
    assert (found.labels.names, found.labels.values) == (["2", "5", "7"], [2, 5, 7])
    fewer = load_data(scenes, ImageSegmentation(ignored=[255, 2]).roles)
    assert fewer.labels.values == [5, 7]
    table = next(check for check in named.checks if check.name == "rows").details
    assert sum(row[split] for row in table for split in ("train", "valid", "test")) == 80 * 64 * 63


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("a.txt", "sky\nroad\n", {0: "sky", 1: "road"}),
        ("a.txt", "sky\n\nroad\n", {0: "sky", 2: "road"}),
        ("a.json", '["sky", "road"]', {0: "sky", 1: "road"}),
        ("a.json", '{"1": "road", "0": "sky"}', {0: "sky", 1: "road"}),
        ("a.json", '{"name": "x", "label_names": ["sky"]}', {0: "sky"}),
    ],
)
def test_names_read_from_lines_and_from_json(file, text, names, tmp_path):
    (tmp_path / file).write_text(text)
    assert names_in(str(tmp_path / file)) == names


def test_folders_tables_and_parquet_of_the_same_masks_are_the_same_data(scenes, tmp_path):
    rows = [(f"images/{i}.png", f"masks/{i}.png") for i in sorted(range(80), key=str)]
    with (Path(scenes) / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "mask"), *rows])
    inside = [[{"bytes": Path(scenes, name).read_bytes(), "path": None} for name in pair] for pair in rows]
    data = datasets.Dataset.from_dict(dict(zip(("image", "mask"), zip(*inside, strict=True), strict=True)))
    data.to_parquet(f"{tmp_path}/a.parquet")
    for split in ("train", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
        for name in ("images", "masks"):
            (tmp_path / "split" / split / name).symlink_to(Path(scenes) / name)
    read = lambda source: load_data(source, ROLES)  # noqa: E731
    one = read(scenes)
    assert one.fingerprints == read(f"{scenes}/table.csv").fingerprints
    assert one.fingerprints == read(f"{tmp_path}/a.parquet").fingerprints
    assert len(read(str(tmp_path / "split")).test) == 80


def test_a_mask_is_resized_with_its_image_and_no_class_is_mixed_in_between(scenes, tiny_cnn):
    task = ImageSegmentation(image_size="32x48")
    splits = load_data(scenes, ImageSegmentation(classes=f"{scenes}/names.json").roles)
    made = task.build(source_of(tiny_cnn), splits.labels)
    batch = task.collate(made.processor)(task.encode(splits.train, made.processor).__getitems__([0, 1]))
    assert batch["pixel_values"].shape == (2, 3, 32, 48)
    assert batch["labels"].shape == (2, 32, 48)
    assert set(batch["labels"].unique().tolist()) <= {IGNORED, 0, 1, 2}
    pixels, labels = batch["pixel_values"], batch["labels"]
    for channel, label in ((0, 1), (2, 2)):  # where it is red the mask says red, but for the edges of quarters
        bright = pixels[:, channel] > 0.2
        inner = torch.zeros_like(bright)
        inner[:, 2:14, 2:22] = inner[:, 18:30, 26:46] = True
        assert torch.equal(bright[inner], (labels == label)[inner])
    light = task.labels(None, splits.train, made.processor)
    assert torch.equal(light[1], labels[1])


def source_of(folder: str):
    from hftl.tasks.base import Source

    return Source(folder)


# --- models ---


def test_the_loss_of_the_head_is_the_cross_entropy_of_labelled_pixels(tiny_cnn):
    config = transformers.AutoConfig.from_pretrained(tiny_cnn, num_labels=3)
    model = segmenter_of(config)(config).eval()
    pixels, labels = torch.randn(2, 3, 64, 96), torch.randint(3, (2, 64, 96))
    labels[0, :40] = IGNORED
    outputs = model(pixels, labels)
    assert outputs.logits.shape == (2, 3, 2, 3)
    features = model.timm_model.forward_features(pixels)
    weight, bias = model.head.weight[:, :, 0, 0], model.head.bias
    by_hand = torch.einsum("kc,nchw->nkhw", weight, features) + bias[:, None, None]
    torch.testing.assert_close(outputs.logits, by_hand, atol=1e-5, rtol=1e-5)
    large = nn.functional.interpolate(by_hand, (64, 96), mode="bilinear", align_corners=False)
    each = -large.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(outputs.loss, each[labels != IGNORED].mean())
    assert model(pixels, torch.full_like(labels, IGNORED)).loss == 0


def test_feature_maps_of_every_order_are_maps():
    places = torch.randn(2, 7, 3, 5)
    tokens = places.flatten(2).transpose(1, 2)
    started = torch.cat([torch.zeros(2, 1, 7), tokens], dim=1)
    for made in (places, places.permute(0, 2, 3, 1), tokens, started):
        assert torch.equal(as_map(made, 7, (48, 80), None), places)
    assert torch.equal(as_map(started, 7, (48, 80), 1), places)
    with pytest.raises(UserError, match="no grid"):
        as_map(torch.randn(2, 41, 7), 7, (48, 80), 0)


def tiny_model(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    if kind == "segformer":
        config = transformers.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            hidden_sizes=[16, 32],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        )
        transformers.SegformerModel(config).save_pretrained(folder)
        processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 64})
    else:
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["segformer", "vit"])
def test_models_with_a_head_of_their_own_and_without_learn_and_load_back(kind, settings, scenes, tmp_path):
    model = tiny_model(tmp_path / "model", kind)
    own = settings | {"model": model, "output_dir": str(tmp_path / "run"), "num_train_epochs": 8, "learning_rate": 5e-3}
    report = Recipe(**own).run()
    assert report.test["mean_iou"].value > 0.5
    again = load(tmp_path / "run")
    assert type(again.model).__name__ == {"segformer": "Segformer", "vit": "ViT"}[kind] + "ForSemanticSegmentation"
    said = again(f"{scenes}/images/3.png")["mask"]
    assert said.size == (64, 64)
    true = np.asarray(Image.open(f"{scenes}/masks/3.png"))
    right = np.array([2, 5, 7])[np.asarray(said)] == true
    assert right[true != 255].mean() > 0.6
    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert ("plain transformers does not have" in card) == (kind == "vit")
    if kind == "segformer":
        pipe = transformers.pipeline(TASK, model=str(tmp_path / "run"))
        assert {one["label"] for one in pipe(f"{scenes}/images/3.png")} <= set(NAMES)


# --- runs ---


def test_a_run_learns_its_masks_and_its_report_shows_them(run):
    report = Report.from_folder(run)
    assert (report.headline, report.labels) == ("mean_iou", NAMES)
    assert report.test["mean_iou"].value > 0.7
    assert report.test["mean_iou"].n == 8
    assert report.classes["iou_red"] == "red"
    [gallery] = report.of(Gallery)
    assert all(image.startswith("data:image/jpeg") for one in gallery.examples for image in one.images)
    page = (run / "report.html").read_text("utf-8")
    assert "its pixels wrong" in page
    assert "IoU of each of 3 classes" in page
    assert "Always answering the most frequent class would give 0.1" in page, "a third of the pixels, over 3 classes"
    assert '<i style="background:#800000"></i>red' in page
    card = (run / "README.md").read_text("utf-8")
    assert "library_name: hftl" in card
    assert "Labels: `grey`, `red`, `blue`" in card
    assert "predict(" in card


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_folder_of_a_run_says_what_the_run_measured(kind, run, scenes, settings, tmp_path):
    if kind == "adapter":
        run = tmp_path / "lora"
        Recipe(**settings | {"strategy": "LoRA(r=4)", "num_train_epochs": 2, "output_dir": str(run)}).run()
        assert (run / "adapter_config.json").is_file()
    splits = load_data(scenes, ImageSegmentation(classes=settings["classes"]).roles)
    predictor, metric = load(run), Segments(NAMES)
    for row in splits.test:
        said = torch.from_numpy(np.asarray(predictor({"image": row["image"]})["mask"]).astype(np.int64))
        ids = np.full(256, IGNORED)
        ids[splits.labels.values] = range(3)
        true = torch.from_numpy(ids[np.asarray(Image.open(row["label"]["path"]))])
        metric.update(
            confusion(nn.functional.one_hot(said, 3).permute(2, 0, 1).float(), true)[None].numpy(), true[None]
        )
    assert metric.values()["mean_iou"] == pytest.approx(Report.from_folder(run).test["mean_iou"].value, abs=1e-6)


def test_predictions_are_masks_beside_a_table(run, scenes, tmp_path, capsys):
    hftl(["predict", str(run), "--data", f"{scenes}/images", "--output", str(tmp_path / "p.csv")])
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert len(rows) == 80
    mask = Image.open(tmp_path / rows[4]["prediction"])
    assert mask.size == (64, 64)
    shares = {name: float(rows[4][f"share_{name}"]) for name in NAMES}
    assert shares == pytest.approx({n: (np.asarray(mask) == i).mean() for i, n in enumerate(NAMES)}, abs=1e-5)
    capsys.readouterr()
    hftl(["predict", str(run), "--data", scenes, "--output", str(tmp_path / "scored.csv")])
    assert "against the labels in 'mask', 80 rows:" in capsys.readouterr().out
    for name in ("a", "b"):
        shutil.copytree(f"{scenes}/images", tmp_path / "classes" / name)
    hftl(["predict", str(run), "--data", str(tmp_path / "classes"), "--output", str(tmp_path / "classes.csv")])
    assert "no row has a label in 'label' that the model knows: nothing was scored" in capsys.readouterr().out
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 161


def test_an_image_and_a_mask_side_by_side_have_the_colours_of_their_classes():
    image = painted(np.array([[0, 1], [2, IGNORED]])).convert("RGB")
    assert [image.getpixel(at) for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (255, 255, 255),
    ]


def test_the_loss_of_an_update_is_the_mean_over_its_pixels(settings, scenes, tmp_path):
    """16 rows at once, and 4 times 4 rows with other numbers of labelled pixels, make the same update."""
    data = Path(scenes).parent / "uneven"
    if not data.exists():
        quarters(data, 40, seed=2)
        for i in range(0, 40, 3):
            mask = np.asarray(Image.open(data / "masks" / f"{i}.png")).copy()
            mask[: 3 * i % 60] = 255
            Image.fromarray(mask).save(data / "masks" / f"{i}.png")
    own = settings | {"data": str(data), "max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0}
    own |= {"lr_scheduler_type": "constant", "strategy": "LinearProbe", "cache_gb": 0.0}  # no BatchNorm over batches
    found = []
    for name, size, times in (("one", 16, 1), ("four", 4, 4)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times}
        prepared = Recipe(**own | sizes, output_dir=str(tmp_path / name)).prepare()
        prepared.train()
        found.append({name: p.detach().clone() for name, p in prepared.trainer.model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=0)


def test_frozen_layers_that_are_kept_change_nothing(settings, tmp_path):
    found = []
    for gb in (0.0, 1.0):
        own = settings | {"strategy": "LinearProbe", "cache_gb": gb, "output_dir": str(tmp_path / str(gb))}
        found.append(Recipe(**own | {"num_train_epochs": 3}).run())
    assert "was computed once" in " ".join(found[1].data["notes"])
    assert found[0].test["mean_iou"].value == pytest.approx(found[1].test["mean_iou"].value, abs=1e-6)


def test_an_augmentation_may_change_colours_and_nothing_else(settings, tmp_path):
    own = settings | {"output_dir": str(tmp_path / "o"), "num_train_epochs": 1}
    with pytest.raises(UserError, match="Flip moves what is in an image"):
        Recipe(**own, augment="Sketch(0.5) | Flip").prepare()
    report = Recipe(**own, augment="Sketch(0.5)").run()
    assert report.of(Gallery)[-1].examples[0].images[1].startswith("data:image")


@pytest.fixture(scope="module")
def both(tiny_cnn, colour_folder, scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "run"
    tasks = [
        f"colour={colour_folder},task=image-classification",
        f"quarters={scenes},task={TASK},classes={scenes}/names.json,image_size=64",
    ]
    report = EachAlone(Recipe(model=tiny_cnn, tasks=tasks, output_dir=str(folder), **QUICK)).run()
    return folder, report


def test_classification_and_segmentation_learn_on_one_encoder(both):
    folder, report = both
    colour, quarter = report.tasks
    assert (colour.metric, quarter.metric) == ("accuracy", "mean_iou")
    assert colour.multi.value > 0.9, "half of the rows have either colour"
    assert quarter.multi.value > 0.5, "grey everywhere would give about 0.12"
    assert {row.verdict for row in report.tasks} <= {"gained", "lost", "no difference"}
    assert report.test["mean"].value == pytest.approx((colour.multi.value + quarter.multi.value) / 2)
    assert (folder / "quarters" / "report.html").read_text("utf-8").count("its pixels wrong") > 0


def test_each_of_both_folders_holds_the_one_encoder_and_its_own_head(both, scenes):
    folder, _ = both
    colour, quarter = (load(folder / name) for name in ("colour", "quarters"))
    states = [one.model.timm_model.state_dict() for one in (colour, quarter)]
    shared = [name for name, value in states[1].items() if value.ndim > 1]
    assert len(shared) > 10
    assert all(torch.equal(states[0][name], states[1][name]) for name in shared), "of convolutions there is one"
    means = [name for name in states[1] if name.endswith("running_mean")]
    assert not any(torch.equal(states[0][name], states[1][name]) for name in means), "of BatchNorms each has its own"
    assert colour(f"{scenes}/images/0.png")["label"] in ("red", "blue")
    assert quarter(f"{scenes}/images/0.png")["mask"].size == (64, 64)
    assert quarter.model.config.pretrained_cfg["input_size"] == [3, 64, 64]


@pytest.mark.parametrize("how", [{"adapters": True}, {"pcgrad": True, "weighting": "uncertainty"}])
def test_both_kinds_go_with_every_way_of_sharing(how, tiny_cnn, colour_folder, scenes, tmp_path):
    tasks = [f"quarters={scenes},task={TASK},image_size=64", f"colour={colour_folder},task=image-classification"]
    own = QUICK | {"num_train_epochs": 1, "gradient_accumulation_steps": 2}
    report = Recipe(model=tiny_cnn, tasks=tasks, output_dir=str(tmp_path / "o"), **own, **how).run()
    assert load(tmp_path / "o" / "colour")(f"{scenes}/images/0.png")["label"] in ("red", "blue")
    assert load(tmp_path / "o" / "quarters")(f"{scenes}/images/0.png")["mask"].size == (64, 64)
    assert report.tasks[0].metric == "mean_iou"


def test_the_images_of_one_task_do_not_move_the_statistics_of_another(tiny_cnn):
    config = transformers.AutoConfig.from_pretrained(tiny_cnn, num_labels=3)
    torch.manual_seed(1)
    alone = {"a": segmenter_of(config)(config), "b": segmenter_of(config)(config)}
    alone["b"].timm_model.load_state_dict(alone["a"].timm_model.state_dict())
    pixels = torch.randn(4, 3, 64, 64)
    before = alone["b"].eval()(pixels).logits.detach()
    fresh = {name: {f"head.{part}" for part in ("weight", "bias")} for name in alone}
    both = MultiTaskModel(copy.deepcopy(alone), fresh).train()
    both("a", pixel_values=3 * pixels)
    both.eval()
    torch.testing.assert_close(both("b", pixel_values=pixels).logits, before)
    state = both.state_dict()
    means = [name for name in state if name.endswith("parts.a.running_mean")]
    assert means
    assert not any(torch.equal(state[name], state[name.replace("parts.a", "parts.b")]) for name in means)
    own = [name for name, _ in both.named_parameters() if ".parts.b." in name]
    assert own
    assert not any(both.common(name) for name in own)


def test_a_setting_of_masks_is_refused_for_another_task(tiny_cnn, colour_folder, tmp_path):
    tasks = [f"colour={colour_folder},task=image-classification,image_size=64"]
    with pytest.raises(UserError, match="--image_size belongs to image-segmentation; "):
        Recipe(model=tiny_cnn, tasks=tasks, output_dir=str(tmp_path / "o")).run()
    with pytest.raises(UserError, match="one vector a row, and image-segmentation has more"):
        Recipe(
            strategy="Features",
            task=TASK,
            model=tiny_cnn,
            data=quarters(tmp_path / "q", 20),
            output_dir=str(tmp_path / "p"),
        ).run()


# --- what is refused ---


def test_bad_masks_are_named_in_one_sentence(tiny_cnn, tmp_path, capsys):
    folder = Path(quarters(tmp_path / "bad", 30))
    image = folder / "masks" / "7.png"
    good = image.read_bytes()

    def refused(said: str, *flags: str) -> None:
        words = ["--data", str(folder), "--output_dir", str(tmp_path / "o"), *flags]
        with pytest.raises(SystemExit) as stopped:
            main(Recipe(task=TASK, model=tiny_cnn), words)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert said in error, error
        assert "Traceback" not in error

    def write(pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(image)

    write(np.full((32, 64), 2, np.uint8))
    refused("it has the mask 7.png of 64x32 pixels for an image of 64x64")
    write(np.dstack([np.full((64, 64), i, np.uint8) for i in range(3)]))
    refused("the mask 7.png that cannot be read as numbers of classes (colours (RGB)")
    write(np.full((64, 64), 300, np.uint16))
    refused("the mask 7.png with the value 300, past 0 to 255")
    write(np.full((64, 64), 255, np.uint8))
    refused("a mask of ignored pixels alone")
    image.write_bytes(b"no image")
    refused("the mask 7.png that cannot be read")
    image.unlink()
    refused("it has no mask (1 bad of 30 rows)")
    write(np.full((64, 64), 9, np.uint8))
    (tmp_path / "names.txt").write_text("\n".join("abcdefgh"))
    refused(
        "a mask with the value 9, which is none of the 8 classes of names.txt", "--classes", f"{tmp_path}/names.txt"
    )
    image.write_bytes(good)
    refused("--classes nowhere.txt cannot be read", "--classes", "nowhere.txt")
    refused("Expected two classes or more", "--ignored", "2", "5", "255")
    refused("Expected height x width, 8 pixels or more; 'big' came", "--image_size", "big")
    refused("--class_weights belongs to image-classification and text-classification", "--class_weights", "balanced")
    refused("--metrics belongs to image-classification and", "--metrics", "accuracy")
