"""What `test_hostile` feeds the commands: files made to run, escape, flood or mislead. Knows no assertion."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import World, fail, photos, picture, run
from PIL import Image

from hftl.train.trainer import Trainer

ESCAPE = "\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b\u202e"
"""Colours a terminal, renames its window, and turns the direction of writing round."""
SMALL = "--per_device_train_batch_size 16 --eval_strategy steps --eval_steps 1"


class Trap:
    """Makes a folder when a pickle of it is opened carelessly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def trap(w: World) -> bytes:
    return pickle.dumps(Trap(w.here / "owned"))


def set_json(path: Path, **changes: Any) -> None:
    """Change some names of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- models ---


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A file in the form of safetensors: the header's length, which may lie, the header, the numbers."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + body


def tensor(start: int, stop: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


LIES = {
    "a header longer than any disk": safetensors({}, length=2**62),
    "a header past the end": safetensors({}, length=5000),
    "tensors that overlap": safetensors({"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}, bytes(12)),
    "a negative offset": safetensors({"a": tensor(-8, 0, 2)}, bytes(12)),
    "a tensor past the end": safetensors({"a": tensor(0, 2**42, 2**40)}, bytes(12)),
    "a hole between tensors": safetensors({"a": tensor(8, 12, 1)}, bytes(12)),
    "a shape past 64 bits": safetensors({"a": tensor(0, 8, 2**63, 2**63)}, bytes(8)),
    "a header of brackets": safetensors(b"[" * 100_000 + b"]" * 100_000),
}


def weights(content: bytes) -> Callable[[World], None]:
    """`model/`: a text model with these bytes for its weights."""
    return lambda w: (w.copy(w.bert) / "model.safetensors").write_bytes(content) and None


def index_outside(w: World) -> None:
    """`model/`: an index whose only weights lie beside the folder."""
    folder = w.copy(w.bert)
    (folder / "model.safetensors").rename(w.here / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(file: str, **changes: Any) -> Callable[[World], None]:
    """`model/`: one of its JSON files names code beside it, which makes a folder when it is imported."""

    def arrange(w: World) -> None:
        folder = w.copy(w.cnn if file == "preprocessor_config.json" else w.bert)
        if not (folder / file).exists():
            (folder / file).write_text("{}")
        set_json(folder / file, **changes)
        (folder / "mine.py").write_text(f"import os\nos.mkdir({str(w.here / 'owned')!r})\n")

    return arrange


def pickles_beside(w: World) -> None:
    """`model/`: good weights, and pickles under every name that a checkpoint has."""
    folder = w.copy(w.bert)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(trap(w))


def timm_checkpoint(w: World) -> None:
    """`model/`: a timm config whose arguments name a pickle to load."""
    folder = w.copy(w.cnn)
    (folder / "evil.pth").write_bytes(trap(w))
    set_json(folder / "config.json", model_args={"checkpoint_path": str(folder / "evil.pth")})


def interrupted_with(name: str) -> Callable[[World], None]:
    """`half/`: a run that was stopped after a checkpoint, of which one file is replaced by a pickle."""

    def arrange(w: World) -> None:
        with pytest.MonkeyPatch.context() as patch:
            fail(Trainer, "training_step", KeyboardInterrupt, after=1)(replace(w, patch=patch))
            with pytest.raises(SystemExit):
                run("text", [*SMALL.split(), "--no_overwrite", "--output_dir", "half"], w)
        checkpoint = w.here / "half" / "checkpoints" / "checkpoint-1"
        if name == "pytorch_model.bin":
            (checkpoint / "model.safetensors").unlink()
        (checkpoint / name).write_bytes(trap(w))
        (checkpoint / "manifest.json").unlink()  # who plants a file can leave out what would tell

    return arrange


def adapter(base: Any) -> Callable[[World], None]:
    """`model/`: an adapter that names another base model."""

    def arrange(w: World) -> None:
        folder = w.copy(w.bert)
        config = {"peft_type": "LORA", "base_model_name_or_path": base, "target_modules": ["query"], "r": 2}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes(safetensors({}))
        set_json(folder / "config.json", architectures=["BertForSequenceClassification"])

    return arrange


# --- data ---


def archive(name: str) -> Callable[[World], None]:
    """An archive of images that would unpack outside its folder, and of a link to a file of the system."""

    def arrange(w: World) -> None:
        picture(w.here / "one.png")
        image = (w.here / "one.png").read_bytes()
        if "zip" in name or name.endswith(".csv"):
            with zipfile.ZipFile(w.here / name, "w") as packed:
                for path in ("train/cat/1.png", "../../evil.png", "/evil.png"):
                    packed.writestr(path, image)
            return
        with tarfile.open(w.here / name, "w:gz" if name.endswith("gz") else "w") as packed:
            for path in ("train/cat/1.png", "../../evil.png", "/evil.png"):
                entry = tarfile.TarInfo(path)
                entry.size = len(image)
                packed.addfile(entry, io.BytesIO(image))
            link = tarfile.TarInfo("train/cat/2.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            packed.addfile(link)

    return arrange


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, rows: int, text: bytes = b"") -> bytes:
    """A PNG that claims a size, with some rows of black; `text` is packed into a comment."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(rows)) + packer.flush()
    comment = chunk(b"zTXt", b"k\0\0" + zlib.compress(text, 9)) if text else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + comment + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def many_frames(frames: int) -> bytes:
    """A GIF that repeats its only frame."""
    file = io.BytesIO()
    Image.new("P", (32, 32)).save(file, "GIF")
    whole = file.getvalue()
    start = whole.index(b",")
    return whole[:start] + whole[start:-1] * frames + b";"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(owned) (w) file closefile\nshowpage\n%%EOF\n"
"""A program in PostScript, which Pillow would hand to Ghostscript."""


def among_photos(content: bytes, name: str = "bad.png") -> Callable[[World], None]:
    def arrange(w: World) -> None:
        photos(w)
        (w.here / "photos" / "cat" / name).write_bytes(content)

    return arrange


def class_named(name: str) -> Callable[[World], None]:
    def arrange(w: World) -> None:
        photos(w)
        (w.here / "photos" / "cat").rename(w.here / "photos" / name)

    return arrange


def target_images(table: str = "", broken: bool = False) -> Callable[[World], None]:
    """`photos/`, and `target/` without labels, with a broken file or a table that names one outside."""

    def arrange(w: World) -> None:
        photos(w)
        for i in range(6):
            picture(w.here / "target" / f"{i}.png", i)
        if broken:
            (w.here / "target" / "cut.png").write_bytes(b"x")
        if table:
            (w.here / "target" / "metadata.csv").write_text(table)

    return arrange


def parquet_naming(path: str) -> Callable[[World], None]:
    """`a.parquet`: images that lie in a file of the data's choice."""

    def arrange(w: World) -> None:
        features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("string")})
        rows = {"image": [{"bytes": None, "path": path}] * 24, "label": ["a", "b"] * 12}
        # datasets' own way would put the file's bytes into the table
        pq.write_table(pa.table(rows, schema=features.arrow_schema), w.here / "a.parquet")

    return arrange


def laughs(start: str) -> str:
    """YAML in which each line holds the one before nine times: nine lines, 400 million words."""
    names = "abcdefghi"
    lines = [f"{start}&a [{','.join(['lol'] * 9)}]"]
    lines += [f"{start}&{new} [{','.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise(names)]
    return "\n".join(lines) + "\n"
