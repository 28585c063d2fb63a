"""Images and masks as people have them: what of a folder is read, what pixels become, and what is said of the rest."""

from __future__ import annotations

import ast
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_imports import SOURCES, name_of

from hftl.data.formats.decode import as_rgb, open_image, read_mask
from hftl.data.load import load
from hftl.data.new_rows import new_rows
from hftl.data.types import Splits
from hftl.errors import UserError
from hftl.tasks.image.classification import ImageClassification
from hftl.tasks.image.masked import MaskedImage
from hftl.tasks.image.segmentation import ImageSegmentation

IMAGES = ImageClassification.roles
rng = np.random.default_rng(0)


def noise(*shape: int, low: int = 0, high: int = 256) -> np.ndarray:
    return rng.integers(low, high, shape).astype(np.uint8)


def put(path: Path, pixels: np.ndarray | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 6, 3) if pixels is None else pixels).save(path, **options)
    return path


def classes(folder: Path, n: int = 6, names: tuple[str, ...] = ("blue", "red")) -> Path:
    for name in names:
        for i in range(n):
            put(folder / name / f"{i}.png")
    return folder


def said(splits: Splits, name: str) -> str:
    return " | ".join(check.sentence for check in splits.checks if check.name == name)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.valid), len(splits.test)


# --- one opener ---


def test_no_other_module_opens_an_image() -> None:
    """V1: a mask that is EPS reached Ghostscript where it was opened by another call than `opened`."""
    for path in (path for path in SOURCES if name_of(path) != "data.formats.decode"):
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        texts = [ast.unparse(call.func) for call in calls]
        assert not {"Image.open", "PIL.Image.open", "ImageOps.exif_transpose", "decode_image", "imread"} & set(texts)
        assert not [
            c for c in calls if ast.unparse(c.func) == "datasets.Image" and "decode=False" not in ast.unparse(c)
        ]


def test_a_postscript_file_is_no_image_and_no_mask_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for reader in (open_image, read_mask):
        with pytest.raises(UserError, match=r"a\.png; it cannot be read \(cannot identify"):
            reader(tmp_path / "a.png")


def test_an_error_of_a_loaders_worker_is_one_sentence(tmp_path: Path) -> None:
    """V12: torch put the worker's traceback of 3,981 characters before it."""
    from torch._utils import ExceptionWrapper

    try:
        open_image(tmp_path / "gone.png")
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError) as raised:
        wrapped.reraise()
    assert (
        str(raised.value)
        == f"Expected an image in {tmp_path}/gone.png; it cannot be read (No such file or directory). Correct it."
    )


# --- pixels ---

WIDE = np.array([[0, 32896, 65535]], np.uint16)
CLEAR = np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [200, 0, 0, 128]]], np.uint8)


def palette(colour: int) -> Image.Image:
    made = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "P")
    made.putpalette([9, 9, 9, 0, 0, colour])
    return made


@pytest.mark.parametrize(
    ("image", "ending", "wanted"),
    [
        (Image.fromarray(WIDE), "png", [0, 128, 255]),
        (Image.fromarray(WIDE), "tiff", [0, 128, 255]),
        (Image.fromarray(WIDE), "pgm", [0, 128, 255]),
        (Image.fromarray(WIDE.astype(np.int32)), "tiff", [0, 128, 255]),
        (Image.fromarray((WIDE / 65535).astype(np.float32)), "tiff", [0, 128, 255]),
        (Image.fromarray(np.array([[0, 1.0, 255]], np.float32)), "tiff", [0, 1, 255]),
        (Image.fromarray(np.array([[0, 1, 1]], bool)), "png", [0, 255, 255]),
        (Image.fromarray(CLEAR), "png", [0, 255, (227, 127, 127)]),
        (Image.fromarray(CLEAR[..., 2:]), "png", [0, 255, 127]),
        (palette(70), "png", [(9, 9, 9), (0, 0, 70), (0, 0, 70)]),
    ],
)
def test_pixels_are_scaled_by_the_range_of_their_type_and_laid_on_white(
    image: Image.Image, ending: str, wanted
) -> None:
    """V2, V3: wide numbers were cut off at 255, and drawings in the alpha channel were all black."""
    file = io.BytesIO()
    image.save(file, ending.replace("pgm", "ppm"))
    found = np.asarray(open_image(file.getvalue()))[0]
    assert found.tolist() == [list(one) if isinstance(one, tuple) else [one] * 3 for one in wanted]


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    file = io.BytesIO()
    palette(70).save(file, "png", transparency=0)
    assert np.asarray(open_image(file.getvalue()))[0].tolist() == [[255] * 3, [0, 0, 70], [0, 0, 70]]


def test_numbers_of_no_known_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"from -1000 to 3000, where 0 to 255 is white; save it in 8 bits"):
        open_image(Image.fromarray(np.array([[-1000, 3000]], np.float32)))


@pytest.mark.parametrize("ending", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_upright_as_pillow_turns_them(ending: str, turn: int) -> None:
    from PIL import ImageOps

    tags, file = Image.Exif(), io.BytesIO()
    tags[0x0112] = turn
    Image.fromarray(noise(8, 16, 3)).save(file, ending, exif=tags)
    upright = open_image(file.getvalue())
    assert np.array_equal(upright, ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert open_image(upright) == upright, "and not a second time"


def test_a_good_image_with_a_broken_tag_is_read_and_turned(tmp_path: Path) -> None:
    """V12: orientation 6 beside a rational of -1/0 ended training after the scan had passed it."""
    tags = struct.pack(">HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x011A, 10, 1, 38, 0) + struct.pack(">ii", -1, 0)
    folder = classes(tmp_path)
    put(folder / "red" / "odd.jpg", noise(8, 16, 3), exif=b"Exif\0\0MM\0*\0\0\0\x08" + tags)
    assert open_image(folder / "red" / "odd.jpg").size == (8, 16)
    assert sum(sizes(load(folder, IMAGES))) == 13


def test_the_scan_decodes_as_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that `as_rgb` refuses is found before training, and `--on_bad_row skip` leaves it out."""
    folder = classes(tmp_path)
    put(folder / "red" / "float.tiff", np.full((4, 4), 1e6, np.float32))
    with pytest.raises(UserError, match=r"red/float\.tiff .* \(1 bad of 13 rows\)"):
        load(folder, IMAGES)
    assert sum(sizes(load(folder, IMAGES, on_bad_row="skip"))) == 12


def test_what_decoding_shows_is_said(tmp_path: Path) -> None:
    """V2, V3, V17: constant and dark images, equal pixels in other files or of two classes, further frames."""
    folder = classes(tmp_path / "a", 8)
    for i in range(3):
        put(folder / "red" / f"flat{i}.png", np.full((8, 6, 3), 20 * i, np.uint8))
    drawing = np.zeros((8, 6, 4), np.uint8)
    drawing[2, :, 3] = 255
    put(folder / "red" / "alpha.png", drawing)
    put(folder / "blue" / "white.bmp", np.asarray(as_rgb(Image.fromarray(drawing))))
    frames = [Image.fromarray(noise(8, 6, 3)) for _ in range(2)]
    frames[0].save(folder / "red" / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "red" / "pages.tiff", save_all=True, append_images=frames[1:])
    valid = classes(tmp_path / "b", 1)
    splits = load(folder, IMAGES, valid=str(valid), test=str(valid))
    images = said(splits, "images")
    assert "3 of 27 images have one colour throughout" in images
    assert "2 of 27 images have several frames or pages; the first of each is read" in images
    assert said(splits, "duplicates") == "2 rows of train repeat an earlier one", "in another format, too"
    assert said(splits, "labels").startswith("2 rows of train equal another one whose label differs")
    dark = tmp_path / "c"
    for i in range(12):  # 12 bits in a type of 16
        put(dark / ("x", "y")[i % 2] / f"{i}.png", rng.integers(0, 4096, (8, 8)).astype(np.uint16))
    assert "no pixel of any image is brighter than 64 of 255" in said(load(dark, IMAGES), "images")


# --- folders ---


@pytest.mark.parametrize("train", ["seg_train/seg_train", "Training", "train_set", "train/train", "trainset", "trn"])
def test_folders_that_are_named_after_splits_are_given_splits(train: str, tmp_path: Path) -> None:
    """V7: they became the classes."""
    classes(tmp_path / train)
    classes(tmp_path / train.lower().replace("train", "test").replace("trn", "tst"), 2)
    put(tmp_path / "seg_pred" / "1.png")
    splits = load(tmp_path, IMAGES)
    assert splits.labels.names == ["blue", "red"]
    assert len(splits.test) == 4
    assert "1 (1 image(s) outside splits, classes or metadata)" in said(splits, "files")


@pytest.mark.parametrize("source", [".", "metadata.csv"])
def test_folders_in_file_names_are_given_splits(source: str, tmp_path: Path) -> None:
    """V7: rows of train/ and test/ were split anew."""
    names = [
        put(tmp_path / f"{split}/{i}.png") for split, n in (("train", 8), ("val", 2), ("test", 4)) for i in range(n)
    ]
    put(tmp_path / "train" / "more.png")
    rows = [f"{path.relative_to(tmp_path)},{'ab'[i % 2]}" for i, path in enumerate(names)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    splits = load(tmp_path / source, IMAGES)
    assert sizes(splits) == (8, 2, 4)
    assert any("the folders in the file names of column 'file_name' have them" in note for note in splits.notes)
    if source == ".":
        assert said(splits, "files") == "files that were not read: 1 (1 image(s) not listed in the metadata)"


def test_splits_below_classes_are_given_splits(tmp_path: Path) -> None:
    for name in ("blue", "red"):
        classes(tmp_path / name, 4, ("train", "valid", "test"))
    splits = load(tmp_path, IMAGES)
    assert (splits.labels.names, sizes(splits)) == (["blue", "red"], (8, 8, 8))


def test_a_class_may_be_called_train_and_a_folder_may_hold_the_data_alone(tmp_path: Path) -> None:
    for names in (["bus", "car", "train"], ["test tube", "train station"]):
        assert load(classes(tmp_path / "-".join(names), 6, tuple(names)), IMAGES).labels.names == names
    classes(tmp_path / "b" / "photos")
    splits = load(tmp_path / "b", IMAGES)
    assert splits.labels.names == ["blue", "red"]
    assert any("holds one folder, photos" in note for note in splits.notes)


def test_folders_that_all_classes_have_are_named_as_what_was_not_read_as_classes(tmp_path: Path) -> None:
    for name in ("art", "photo"):
        classes(tmp_path / name, 3, ("cat", "dog"))
    assert said(load(tmp_path, IMAGES), "files") == (
        "the classes are art, photo, and not cat, dog, which are folders in each of them"
    )


def test_file_names_of_a_table_may_have_the_separators_of_windows(tmp_path: Path) -> None:
    rows = [f"photos\\{put(tmp_path / 'photos' / f'{i}.png').name},{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "a.csv").write_text("\n".join(["image,label", *rows]))
    assert sum(sizes(load(tmp_path / "a.csv", IMAGES))) == 8


def test_what_lies_in_a_folder_and_is_not_used_is_said_and_what_is_hidden_never_used(tmp_path: Path) -> None:
    """V9."""
    folder = classes(tmp_path / "data")
    put(folder / "red" / "A ü.JFIF", format="JPEG")
    put(folder / "red" / "a.jp2")
    (folder / "red" / "a.heic").write_bytes(b"1")
    (folder / "red" / "Thumbs.db").write_bytes(b"1")
    (folder / "wasps").mkdir()
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "red/.ipynb_checkpoints", "red/@eaDir"):
        put(folder / name / "1.png")
    for i in range(9):
        put(folder / f"{i}.png")
    put(tmp_path / "elsewhere" / "linked.png")
    (folder / "blue" / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "blue" / "circle").symlink_to(folder / "blue")
    splits = load(folder, IMAGES)
    assert splits.labels.names == ["blue", "red"]
    assert sum(sizes(splits)) == 12 + 3
    assert said(splits, "files") == (
        "folders in which no image can be read: wasps | "
        "files that were not read: 10 (9 image(s) beside the folders of classes, 1 .heic)"
    )


def test_images_without_labels_need_no_folders_of_classes(tmp_path: Path) -> None:
    for split, n in (("train", 12), ("test", 5)):
        for i in range(n):
            put(tmp_path / "a" / split / f"{i}.png")
    splits = load(str(tmp_path / "a"), MaskedImage.roles, read_as="pretext")
    assert (sum(sizes(splits)), len(splits.test)) == (17, 5)
    with pytest.raises(UserError, match="a/train; it holds images alone"):
        load(tmp_path / "a", IMAGES)
    put(classes(tmp_path / "b") / "loose.png")
    assert sum(sizes(load(str(tmp_path / "b"), MaskedImage.roles, read_as="pretext"))) == 13, "all of them"


def test_a_folder_that_cannot_be_read_says_what_lies_deeper(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.heic").write_bytes(b"1")
    with pytest.raises(UserError, match=r"it holds a, b; files that were not read: 2 \(2 \.heic\)\."):
        load(tmp_path, IMAGES)
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"photos\.zip is packed\. Unpack it"):
        load(tmp_path, IMAGES)


# --- masks ---


def pairs(folder: Path, values: tuple[int, ...], image: str = "{}.png", mask: str = "{}.png", **made: Any) -> Path:
    write: Callable[[np.ndarray], np.ndarray] = made.get("write", lambda mask: mask)
    for i in range(made.get("first", 0), 8):
        put(folder / "images" / image.format(i), noise(8, 8, 3))
        put(folder / "masks" / mask.format(i), write(rng.choice(values, (8, 8)).astype(np.uint8)))
    return folder


def masks(folder: Path, names: str = "", **settings: Any) -> Splits:
    if names:
        (folder / "names.txt").write_text(names)
        settings["classes"] = str(folder / "names.txt")
    skip = settings.pop("on_bad_row", "error")
    return load(str(folder), ImageSegmentation(**settings).roles, on_bad_row=skip)


@pytest.mark.parametrize(
    ("values", "settings", "read"),
    [
        ((0, 1, 2, 255), {"ignored": [0]}, {1: "1", 2: "2"}),
        ((0, 128, 255), {}, {0: "0", 128: "128"}),
        ((0, 128, 255), {"ignored": []}, {0: "0", 128: "128", 255: "255"}),
        ((0, 255), {}, {0: "0", 255: "255"}),
        ((0, 255), {"names": "ground\nroad"}, {0: "ground", 255: "road"}),
    ],
)
def test_255_is_no_class_unless_masks_have_nothing_else_beside_0(values, settings, read, tmp_path: Path) -> None:
    """V8."""
    splits = masks(pairs(tmp_path, values), **settings)
    assert dict(zip(splits.labels.values, splits.labels.names, strict=True)) == read
    assert "are classes: " in said(splits, "masks")
    assert ("of them are none (" in said(splits, "masks")) == (255 in values and 255 not in read)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{:03d}.png", "{:03d}_L.png"),
        ("{}.png", "{}_mask.png"),
        ("img_{}.png", "seg_{}.png"),
        ("a_{}_leftImg8bit.png", "a_{}_gtFine_labelIds.png"),
        ("city/{}.png", "city/{}.png"),
    ],
)
def test_names_of_masks_are_those_of_images_but_for_what_all_have(image: str, mask: str, tmp_path: Path) -> None:
    folder = pairs(tmp_path, (0, 1), image, mask)
    put(folder / "masks" / mask.format(77), noise(8, 8))
    splits = masks(folder)
    assert sum(sizes(splits)) == 8
    assert "1 mask(s) without an image" in said(splits, "files")
    number = lambda cell: [part for part in Path(cell["path"]).stem if part.isdigit()][-1 if "8bit" not in image else 0]  # noqa: E731
    for row in splits.train:
        assert number(row["image"]).lstrip("0") == number(row["label"]).lstrip("0")


@pytest.mark.parametrize(
    "write", [lambda m: np.stack([m] * 3, -1), lambda m: m.astype(bool), lambda m: m.astype(np.uint16)]
)
def test_numbers_are_read_from_grey_colours_single_bits_and_wide_types(write, tmp_path: Path) -> None:
    assert masks(pairs(tmp_path, (0, 1), write=write)).labels.values == [0, 1]


@pytest.mark.parametrize(
    ("mask", "write", "why"),
    [
        ("{}.jpg", lambda m: m, r"the mask 0\.jpg .*JPEG changes the numbers of pixels; save masks as \.png"),
        ("{}.png", lambda m: np.stack([m, m, 0 * m], -1), r"0\.png .*colours \(RGB\) instead of numbers"),
    ],
)
def test_masks_without_numbers_are_refused_for_what_they_are(mask: str, write, why: str, tmp_path: Path) -> None:
    """V8: the advice was to pass --ignored."""
    with pytest.raises(UserError, match=why) as refused:
        masks(pairs(tmp_path, (0, 1, 2), mask=mask, write=write))
    assert "--ignored" not in str(refused.value)


def test_prediction_reads_the_images_of_a_folder_and_not_its_masks(tmp_path: Path) -> None:
    """P2: 16 rows came of 8 images."""
    rows = new_rows(str(pairs(tmp_path, (0, 1))), ImageSegmentation.roles).inputs
    assert [Path(cell["path"]).parent.name for cell in rows["image"]] == ["images"] * 8


def test_a_folder_may_hold_the_folder_of_masks_alone_and_classes_are_no_masks(tmp_path: Path) -> None:
    assert sum(sizes(masks(pairs(tmp_path / "outer" / "inner", (0, 1)).parent))) == 8
    with pytest.raises(UserError, match="the name of a class, where each image needs a mask"):
        masks(classes(tmp_path / "classes"))


def test_a_mask_of_several_pages_is_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(noise(8, 8)) for _ in range(2)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="several frames or pages"):
        read_mask(tmp_path / "a.tiff")


def test_names_that_are_off_by_one_get_a_word(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "a", (1, 2, 3))
    with pytest.raises(UserError, match=r"the value 3, .* off by one: the first line of names\.txt names value 0"):
        masks(folder, "sky\nroad\ncar")
    assert "no pixel of train is void; it cannot be learned (if the names" in said(
        masks(folder, "void\na\nb\nc"), "masks"
    )
    (folder / "masks" / "0.png").rename(folder / "masks" / "8.png")
    assert said(masks(folder, on_bad_row="skip"), "files") == "files that were not read: 1 (1 mask(s) without an image)"


def test_an_image_of_a_report_is_named_by_its_file_and_folder(tmp_path):
    """F9."""
    path = tmp_path / "three" / "image_0006.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path)
    assert ImageClassification().show({"image": {"bytes": None, "path": str(path)}}).name == "three/image_0006.png"
    assert ImageClassification().show({"image": {"bytes": path.read_bytes(), "path": None}}).name == ""
