"""Augmentations: each against a closed form, in the notation, and wired so that train alone changes, by the seed."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from reports import HOSTILE, PIXEL

from hftl import Recipe, testing
from hftl.data.load import load
from hftl.errors import UserError
from hftl.results.report.page import html
from hftl.results.report.report import Report
from hftl.settings import spec
from hftl.tasks.augment import Augmentation, augmentation_of, pixels, read
from hftl.tasks.augment.image import (
    FDA,
    AugMix,
    ColorStats,
    Flip,
    HistogramMatch,
    RandAugment,
    Rotate,
    Scale,
    Shift,
    Sketch,
)
from hftl.tasks.augment.text import EDA, BackTranslation, MaskedLM, WordDropout, changed
from hftl.tasks.image.classification import ImageClassification
from hftl.tasks.sections import Example, Gallery
from hftl.tasks.text.classification import TextClassification


def noise(seed: int, height: int = 24, width: int = 32, low: int = 60, high: int = 180) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.float64)


def picture(seed: int, **size: int) -> Image.Image:
    return pixels.to_image(noise(seed, **size))


# --- images, against closed forms ---


def spectra(image: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(image, axes=(0, 1)), axes=(0, 1))


def test_fda_with_beta_0_or_with_itself_as_target_is_the_identity():
    image = noise(1)
    np.testing.assert_array_equal(pixels.fda(image, noise(2), 0.0), image)
    np.testing.assert_allclose(pixels.fda(image, image, 0.2), image, atol=1e-6)
    assert np.abs(pixels.fda(image, noise(2), 0.2) - image).max() > 1


@pytest.mark.parametrize("size", [(24, 32), (25, 31)])
def test_fda_swaps_the_amplitude_of_the_low_band_and_nothing_else(size):
    image, target = noise(1, *size), noise(2, *size)
    made, own, other = (spectra(x) for x in (pixels.fda(image, target, 0.1), image, target))
    b, rows, columns = math.floor(0.1 * min(size)), np.arange(size[0]), np.arange(size[1])
    near = (np.abs(rows - size[0] // 2)[:, None] <= b) & (np.abs(columns - size[1] // 2) <= b)
    assert near.sum() == (2 * b + 1) ** 2
    np.testing.assert_allclose(np.abs(made[near]), np.abs(other[near]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.abs(made[~near]), np.abs(own[~near]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.exp(1j * np.angle(made)), np.exp(1j * np.angle(own)), atol=1e-6)


def test_fda_gives_an_image_the_mean_colour_of_the_target_whatever_the_size_of_both():
    image, target = picture(1, low=100, high=140), Image.new("RGB", (50, 70), (150, 110, 130))
    made = FDA(beta=0.01).apply(image, np.random.default_rng(0), lambda: target)
    assert made.size == image.size
    np.testing.assert_allclose(np.asarray(made).mean((0, 1)), (150, 110, 130), atol=0.5)  # rounding


def test_histogram_match_gives_each_channel_the_quantiles_of_the_target():
    image, target = (x.astype(np.uint8) for x in (noise(1), noise(2, 40, 50, low=10, high=90) ** 2 / 40))
    made = pixels.histogram_match(image, target)
    shares = np.linspace(0.05, 0.95, 19)
    for channel in range(3):
        wanted = np.quantile(target[..., channel], shares)
        np.testing.assert_allclose(np.quantile(made[..., channel], shares), wanted, atol=0.03 * np.ptp(target))
    np.testing.assert_array_equal(pixels.histogram_match(image, image), image)


@pytest.mark.parametrize("space", ["lab", "rgb"])
def test_color_stats_gives_the_mean_and_the_spread_of_the_target(space):
    image, target = noise(1), noise(2, 40, 50, low=100, high=240) * (1, 0.5, 0.8)
    made = pixels.color_stats(image, target, space)
    made, target = (pixels.to_lab(x) if space == "lab" else x for x in (made, target))
    np.testing.assert_allclose(made.mean((0, 1)), target.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(made.std((0, 1)), target.std((0, 1)), rtol=1e-6)
    flat = np.full((4, 4, 3), 7.0)
    np.testing.assert_allclose(pixels.color_stats(flat, noise(2), space).std((0, 1)), 0, atol=1e-6)


def test_lab_and_back_is_the_same_colour():
    np.testing.assert_allclose(pixels.from_lab(pixels.to_lab(noise(3))), noise(3), atol=1e-6)


@pytest.mark.parametrize("style", ["pencil", "edges"])
@pytest.mark.parametrize("gray", [0, 1, 100, 255])
def test_a_sketch_of_a_constant_image_is_white_and_a_line_is_dark(style, gray):
    sketch, flat = Sketch(p=1, style=style), Image.new("RGB", (20, 16), (gray,) * 3)
    assert np.asarray(sketch.apply(flat, np.random.default_rng(0))).min() == 255
    if gray == 255:
        flat.paste((0, 0, 0), (10, 0, 11, 16))
        made = np.asarray(sketch.apply(flat, np.random.default_rng(0)))
        assert made[8, 9:12].min() < 60
        assert made[8, 0].min() > 200


@pytest.mark.parametrize(
    ("change", "name", "settings"),
    [
        (Flip(), "RandomHorizontalFlip", {"p": 0.5}),
        (Rotate(), "RandomAffine", {"degrees": 10}),
        (Shift(), "RandomAffine", {"degrees": 0, "translate": (0.1, 0.1)}),
        (Scale(), "RandomAffine", {"degrees": 0, "scale": (0.9, 1.1)}),
    ],
)
def test_an_augmentation_does_what_its_name_says_and_nothing_else(change, name, settings):
    """V16: flip also rotated, shifted and scaled."""
    from torchvision.transforms import v2

    image, wanted = picture(1), getattr(v2, name)(**settings)
    for seed in range(6):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        assert change.apply(image, np.random.default_rng(seed)) == wanted(image)
    assert read(type(change).__name__.lower()) == change


@pytest.mark.parametrize("kind", [Sketch, HistogramMatch, ColorStats, FDA])
def test_the_share_of_changed_images_is_p(kind):
    image, target, rng = picture(1, height=8, width=8), picture(2, height=8, width=8), np.random.default_rng(0)
    changed = sum(kind(p=0.3).apply(image, rng, lambda: target) is not image for _ in range(300))
    assert 60 < changed < 120
    assert kind(p=0.0).apply(image, rng, lambda: target) is image


@pytest.mark.parametrize("augmentation", [Sketch(), FDA(), AugMix(), RandAugment(), Shift() | Flip()])
def test_equal_random_states_give_equal_images_and_leave_torch_alone(augmentation):
    image, target = picture(1), picture(2)
    before = torch.random.get_rng_state()
    one, same, other = (augmentation.apply(image, np.random.default_rng(s), lambda: target) for s in (3, 3, 4))
    assert one == same
    assert one.mode == "RGB"
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one != other or isinstance(augmentation, FDA | Sketch)


# --- texts ---

WORDS = "one two three four five six seven eight nine ten"


def test_a_swap_keeps_the_words_and_changes_their_order():
    made = [EDA(alpha=0.3, operations=("swap",)).apply(WORDS, np.random.default_rng(i)) for i in range(20)]
    assert all(Counter(text.split()) == Counter(WORDS.split()) for text in made)
    assert sum(text != WORDS for text in made) > 15


def test_new_words_come_from_the_target_or_from_the_text_as_many_as_alpha_says():
    def run(operation: str, source: str) -> Counter:
        eda = EDA(alpha=0.3, words=source, operations=(operation,))
        return Counter(eda.apply(WORDS, np.random.default_rng(1), lambda: "alien words").split())

    for operation, length in (("insert", 13), ("replace", 10)):
        assert run(operation, "data").total() == run(operation, "text").total() == length
        assert sum(n for word, n in run(operation, "data").items() if word in ("alien", "words")) == 3
        assert not set(run(operation, "text")) - set(WORDS.split())


def test_words_are_dropped_with_probability_p_and_one_at_least_stays():
    rng = np.random.default_rng(0)
    lengths = [len(WordDropout(0.2).apply(WORDS, rng).split()) for _ in range(300)]
    assert 7.7 < np.mean(lengths) < 8.3
    assert WordDropout(1.0).apply(WORDS, rng) in WORDS.split()
    assert EDA(alpha=1.0, operations=("delete",)).apply(WORDS, rng) in WORDS.split()
    assert WordDropout(0.5).apply("", rng) == "" == EDA().apply("", rng)


def test_versions_that_were_computed_ahead_are_drawn_with_their_chance():
    back, rng = BackTranslation("a", "b", p=0.25), np.random.default_rng(0)
    drawn = Counter(changed(back, "own", ["x", "y"], rng) for _ in range(400))
    assert 270 < drawn["own"] < 330
    assert min(drawn["x"], drawn["y"]) > 25
    masked = MaskedLM(model="m") | WordDropout(0.0)
    assert {changed(masked, "own", ["x", "y"], rng) for _ in range(50)} == {"x", "y"}


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory) -> str:
    """A random masked language model over the words of the sentences."""
    folder = tmp_path_factory.mktemp("mlm") / "mlm"
    testing.tiny_bert(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig.from_pretrained(folder, vocab_size=len(tokenizer))
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def test_a_masked_model_draws_a_share_p_of_the_words_and_the_others_stay(masked_lm):
    texts = [text for text, _ in testing.sentences(40)]
    made = MaskedLM(p=0.3, model=masked_lm, versions=3).rewrite(texts)
    assert all(len(versions) == 3 for versions in made)
    pairs = [
        (a, b)
        for text, versions in zip(texts, made, strict=True)
        for v in versions
        for a, b in zip(text.split(), v.split(), strict=True)
    ]
    assert 0.2 < np.mean([a != b for a, b in pairs]) < 0.4
    assert not any("[" in b for _, b in pairs)
    assert made == MaskedLM(p=0.3, model=masked_lm, versions=3).rewrite(texts)
    assert MaskedLM(p=0.0, model=masked_lm, versions=1).rewrite(texts) == [[text] for text in texts]


def test_back_translation_runs_both_models_and_repeats_itself(tmp_path):
    folder = tmp_path / "t5"
    tokenizer = transformers.AutoTokenizer.from_pretrained(testing.tiny_bert(folder))
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    texts = ["good film", "the book was bad"]
    back = BackTranslation(str(folder), str(folder), versions=2)
    made = back.rewrite(texts)
    assert [len(versions) for versions in made] == [2, 2]
    assert made[0][0] != made[0][1]
    assert made == back.rewrite(texts)
    assert all(version.strip() for versions in made for version in versions)


# --- the notation ---


@pytest.mark.parametrize(
    "text",
    ["Sketch(p=0.3) | FDA(beta=0.05)", "AugMix(severity=4) | Flip", "EDA(operations=('swap',)) | WordDropout(p=0.2)"],
)
def test_the_notation_round_trips(text):
    assert spec.spell(read(text)) == text
    assert read(spec.spell(read(text))) == read(text)


def test_lower_case_names_of_old_mean_what_they_meant():
    assert read("none") is None
    assert read("shift") == Shift()
    assert read("flip | Sketch") == Flip() | Sketch()


def test_every_augmentation_names_its_kind():
    ours = [kind for kind in Augmentation.known().values() if kind.__module__.startswith("hftl.")]
    assert {kind.kind for kind in ours} == {"image", "text"}


@pytest.mark.parametrize(
    ("text", "kind", "fragment"),
    [
        ("FDA", "image", "FDA reads target images. Pass --unlabelled with a folder of them."),
        ("EDA", "image", "EDA changes texts, and this task reads images. Use one of "),
        ("Sketch", "text", "Sketch changes images, and this task reads texts. Use one of BackTranslation, EDA,"),
        ("EDA(alpha=2)", "text", "EDA(alpha) takes a number from 0 to 1; 2.0 came"),
        ("EDA(operations=['swop'])", "text", "Did you mean 'swap'?"),
        ("FDA(beta=0.7)", "image", "from 0 to 0.5; 0.7 came"),
        ("RandAugment(magnitude=31)", "image", "from 0 to 30; 31 came"),
        ("MaskedLM", "text", "Pass one, as in MaskedLM(model='bert-base-uncased')"),
        ("BackTranslation('a')", "text", "missing a required argument: 'backward'"),
        ("EDA | MaskedLM(model='m')", "text", "so it comes first"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(text, kind, fragment):
    with pytest.raises(UserError) as refused:
        augmentation_of(text, kind)
    assert fragment in str(refused.value)


# --- in a run ---


@pytest.fixture
def ready(request, tiny_bert, tiny_cnn, reviews_csv, colour_folder, tmp_path):
    """Prepare a recipe on texts or on images."""

    def prepare(kind: str, name: str = "run", **settings):
        text = {"model": tiny_bert, "data": reviews_csv}
        image = {"task": "image-classification", "model": tiny_cnn, "data": colour_folder}
        common = {"per_device_train_batch_size": 16, "disable_tqdm": True, "learning_rate": 1e-3, "logging_steps": 1}
        chosen = common | {"text": text, "image": image}[kind] | settings
        return Recipe(output_dir=str(tmp_path / name), **chosen).prepare()

    return prepare


def inputs(rows, numbers=(0, 1, 2)) -> list:
    return [
        [np.asarray(row[k]).tolist() for k in ("pixel_values", "input_ids") if k in row]
        for row in rows.plain(list(numbers))
    ]


@pytest.mark.parametrize(("kind", "augment"), [("image", "Sketch(p=1.0) | flip"), ("text", "WordDropout(p=0.3)")])
def test_a_row_changes_with_epoch_seed_and_number_and_with_nothing_else(kind, augment, ready):
    rows = ready(kind, augment=augment).part.rows["train"]
    first = inputs(rows)
    torch.manual_seed(99)
    assert inputs(rows) == first
    assert inputs(rows, [2, 1])[::-1] == first[1:]
    assert torch.random.initial_seed() == 99
    rows.set_epoch(1)
    assert inputs(rows) != first
    assert inputs(ready(kind, "again", augment=augment).part.rows["train"]) == first
    twice = ready(kind, "other", augment=augment, seed=7).part.rows["train"]
    assert inputs(twice, range(20)) != inputs(rows, range(20))


def test_equal_images_at_two_places_get_noise_of_their_own(tiny_cnn, tmp_path):
    folder = Path(testing.colour_images(tmp_path / "same", 40))
    rows = load(str(folder), ImageClassification.roles).train.select([0] * 4)
    processor = transformers.AutoImageProcessor.from_pretrained(tiny_cnn)
    task = ImageClassification(augment="shift")
    made = [np.asarray(row["pixel_values"]) for row in task.encode(rows, processor, train=True)]
    assert len({image.tobytes() for image in made}) == 4


@pytest.mark.parametrize(("kind", "augment"), [("image", "Sketch(p=1.0)"), ("text", "EDA(alpha=0.5)")])
def test_valid_and_test_stay_as_they_are(kind, augment, ready):
    plain, augmented = ready(kind).part.rows, ready(kind, "augmented", augment=augment).part.rows
    for split in ("valid", "test"):
        assert inputs(plain[split], range(8)) == inputs(augmented[split], range(8))
    assert inputs(plain["train"], range(8)) != inputs(augmented["train"], range(8))


def test_texts_keep_the_length_that_they_came_with_and_are_cut_at_the_limit(ready):
    plain = ready("text", max_length=8).part.rows["train"]
    rows = ready("text", "long", max_length=8, augment="EDA(alpha=1.0, operations=('insert',))").part.rows["train"]
    assert rows.lengths.tolist() == plain.lengths.tolist()
    assert max(len(row["input_ids"]) for row in rows.plain(list(range(30)))) == 8


def test_words_of_the_target_enter_the_texts(ready, tmp_path):
    (tmp_path / "target.csv").write_text("text\n" + "w49 w49 w49\n" * 5)
    augment = "EDA(alpha=0.5, operations=('replace',))"
    run = ready("text", augment=augment, unlabelled=str(tmp_path / "target.csv"))
    word = run.part.pretrained.processor.convert_tokens_to_ids("w49")
    assert all(word in row["input_ids"] for row in run.part.rows["train"].plain(list(range(20))))


def test_a_masked_model_is_run_once_over_all_runs_and_its_versions_are_read(ready, masked_lm, monkeypatch):
    from hftl.tasks.augment import models

    called, filled = [], models.filled
    monkeypatch.setattr(models, "filled", lambda texts, *others: called.append(len(texts)) or filled(texts, *others))
    augment = f"MaskedLM(p=0.9, model='{masked_lm}', versions=2) | WordDropout(p=0.0)"
    rows, seen = ready("text", augment=augment).part.rows["train"], {}
    assert sum(called) == len(rows)
    assert models.loaded.cache_info().currsize == 0, "the model stays in memory"
    for epoch in range(8):
        rows.set_epoch(epoch)
        for i, row in enumerate(rows.plain([0, 1, 2])):
            seen.setdefault(i, set()).add(tuple(row["input_ids"]))
    assert all(1 <= len(versions) <= 2 for versions in seen.values())
    assert max(map(len, seen.values())) == 2
    ready("text", "again", augment=augment, seed=42)
    assert sum(called) == len(rows)


def test_of_augmented_rows_nothing_is_kept(ready, tmp_path, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "kept"))
    run = ready("text", "free", augment="WordDropout(p=0.4)", strategy="LastLayers(1)", num_train_epochs=4)
    run.train()
    assert run.trainer.cache.computed == 0
    assert not list((tmp_path / "kept").rglob("*.bin"))


def test_the_report_shows_rows_before_and_after(tiny_cnn, colour_folder, tiny_bert, reviews_csv, tmp_path):
    target = testing.colour_images(tmp_path / "target", 40)
    common = {"max_steps": 2, "disable_tqdm": True, "learning_rate": 1e-3}
    image = {"task": "image-classification", "model": tiny_cnn, "data": colour_folder, "unlabelled": target}
    text = {"model": tiny_bert, "data": reviews_csv}
    for name, settings, augment, start in (
        ("image", image, "Sketch(p=0.5) | FDA(beta=0.05)", "data:image/jpeg;base64,"),
        ("text", text, "EDA(alpha=0.5)", ""),
    ):
        Recipe(output_dir=str(tmp_path / name), augment=augment, **common, **settings).run()
        report = json.loads((tmp_path / name / "report.json").read_text("utf-8"))
        pairs = [one["images" if start else "texts"] for one in report["sections"][-1]["examples"]]
        assert len(pairs) == 8
        assert all(side.startswith(start) for pair in pairs for side in pair)
        assert sum(before != after for before, after in pairs) >= 6
        page = (tmp_path / name / "report.html").read_text("utf-8")
        assert "before and after augmentation" in page
        assert page.count('alt="after"') == (8 if name == "image" else 0)
    Recipe(output_dir=str(tmp_path / "plain"), **common, **text).run()
    assert "before and after" not in (tmp_path / "plain" / "report.html").read_text("utf-8")


def test_text_is_tokenised_as_without_augmentation_where_nothing_changes(tiny_bert, reviews_csv):
    rows = load(reviews_csv, TextClassification.roles).train
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    tasks = [TextClassification(augment=augment) for augment in ("none", "EDA(p=0.0)")]
    plain, same = (task.encode(rows, tokenizer, train=True) for task in tasks)
    for one, other in zip(plain.select(range(20)), same.select(range(20)), strict=True):
        assert one == other


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_read_what_the_process_itself_reads_and_another_thing_in_each_epoch(persistent, ready):
    settings = {"augment": "Sketch(p=0.5)", "num_train_epochs": 2, "max_train_samples": 32, "learning_rate": 1e-2}
    losses = []
    for name, workers in (
        ("alone", {}),
        ("helped", {"dataloader_num_workers": 1, "dataloader_persistent_workers": persistent}),
    ):
        run = ready("image", name, **settings, **workers)  # without dropout, whose draws workers shift
        run.train()
        losses.append([entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_page_shows_foreign_text_as_text_and_no_address_as_an_image():
    def page_of(**shown) -> str:
        gallery = Gallery(heading="Training rows before and after augmentation", examples=[Example(**shown)])
        return html(Report.from_dict(Report(task="t", model="m", sections=[gallery]).as_dict()))

    page = page_of(texts=[HOSTILE[1], "<script>alert(1)</script>"])
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "https:" not in page_of(images=[PIXEL, "https://example.com/a.png"])
    assert page_of(images=[PIXEL, PIXEL]).count("<img") == 2
