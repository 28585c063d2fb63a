"""What `test_bad_input` feeds the commands: files, model folders, machines that give out. Knows no assertion."""

from __future__ import annotations

import errno
import json
import os
import pickle
import runpy
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from hftl.cli import main as cli
from hftl.run.recipe import Recipe
from hftl.train.trainer import Trainer

RECIPES = Path(__file__).parents[1] / "recipes"
QUICK = "--head random --num_train_epochs 1 --per_device_train_batch_size 64 --disable_tqdm true"
QUICK += " --output_dir earlier --overwrite"
"""Every run is aimed at a folder that holds a finished run and is allowed to replace it; when it fails, it must not."""

ROWS = "".join(
    f"the film was {'good' if i % 2 else 'bad'} w{i},{'positive' if i % 2 else 'negative'}\n" for i in range(40)
)
GOOD = "text,label\n" + ROWS


@dataclass(frozen=True)
class World:
    """Where a case happens: `here` is its empty working directory, beside models and data that it may read."""

    here: Path
    bert: str
    cnn: str
    csv: str
    colours: str
    patch: pytest.MonkeyPatch

    def copy(self, model: str, name: str = "model") -> Path:
        """A copy of a model's folder to spoil."""
        return Path(shutil.copytree(model, self.here / name))


@dataclass(frozen=True)
class Case:
    """One mistake: `argv` has the places of World in braces; `says` are pieces of the one sentence."""

    argv: str
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    given: Callable[[World], None] | None = None
    command: str = "text"
    code: int = 2
    leaves: tuple[str, ...] = ()
    """What may lie in the working directory afterwards besides what was there before."""


def arrange(case: Case, world: World) -> None:
    """Lay out the files of a case, and whatever else it needs."""
    for path, content in case.files.items():
        (world.here / path).parent.mkdir(parents=True, exist_ok=True)
        (world.here / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    if case.given:
        case.given(world)


def recipe(name: str) -> Recipe:
    """The RECIPE of a script in recipes/."""
    return runpy.run_path(str(RECIPES / f"{name}.py"))["RECIPE"]


def run(command: str, words: list[str], world: World) -> None:
    """Type a command: a recipe's script with quick settings before `words`, or `hftl`."""
    if command == "hftl":
        return cli.hftl(words)
    where = {
        "text": ("text_cls", ["--model", world.bert, "--data", world.csv]),
        "image": ("image_cls", ["--model", world.cnn, "--data", world.colours]),
    }
    script, quick = where[command]
    cli.main(recipe(script), [*quick, *QUICK.split(), *words])
    return None


def words(case: Case, world: World) -> list[str]:
    """The words of a case's command line."""
    places = {"bert": world.bert, "cnn": world.cnn, "csv": world.csv, "colours": world.colours}
    return shlex.split(case.argv.format(**places))


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, and the content of each file."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# --- data ---


def picture(path: Path, seed: int = 0) -> None:
    """Write 32 x 32 pixels of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3)).astype("uint8")).save(path)


def photos(w: World) -> None:
    """`photos/`: ten noise images in each of two classes."""
    for i in range(20):
        picture(w.here / "photos" / ("cat", "dog")[i % 2] / f"{i}.jpg", i)


def broken_jpeg(w: World) -> None:
    """The same, with one jpeg cut in half."""
    photos(w)
    path = w.here / "photos" / "cat" / "cut.jpg"
    picture(path, 99)
    path.write_bytes(path.read_bytes()[:400])


def one_class(w: World) -> None:
    picture(w.here / "photos" / "cat" / "a.jpg", 1)
    picture(w.here / "photos" / "cat" / "b.jpg", 2)


# --- models ---


def planted(w: World, trap: str = "owned") -> None:
    """`model/`: its only weights are a pickle that makes a file when it is opened carelessly."""
    folder = w.copy(w.bert)
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(w.here / trap),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


def planted_adapter(w: World) -> None:
    """`model/`: an adapter whose weights are such a pickle."""
    planted(w)
    folder = w.here / "model"
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "base_model_name_or_path": w.bert, "target_modules": ["query"], "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))


def without(name: str) -> Callable[[World], None]:
    """`model/`: a text model without one of its files."""
    return lambda w: (w.copy(w.bert) / name).unlink()


def truncated(w: World) -> None:
    path = w.copy(w.bert) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def foreign_code(w: World) -> None:
    """`model/`: its config asks for code of its own, which makes a file when it is run."""
    folder = w.copy(w.bert)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(w.here / 'owned')!r})\n")


def bad_config(content: str) -> Callable[[World], None]:
    return lambda w: (w.copy(w.bert) / "config.json").write_text(content) and None


def albert(w: World) -> None:
    """`albert/`: a model whose layers share one block."""
    config = transformers.AlbertConfig(
        vocab_size=100, embedding_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    folder = w.copy(w.bert, "albert")
    transformers.AlbertModel(config).save_pretrained(folder)


def other_weights(w: World) -> None:
    """`other.safetensors`: tensors that no network of timm has."""
    save_file({"a": torch.zeros(2)}, w.here / "other.safetensors")


# --- machines and persons that give out ---


def fail(owner: Any, name: str, error: Callable[[], BaseException], after: int = 0) -> Callable[[World], None]:
    """Let a function of `owner` work `after` times, and then raise."""

    def arrange(w: World) -> None:
        works, calls = getattr(owner, name), []

        def called(*args: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) > after:
                raise error()
            return works(*args, **named)

        w.patch.setattr(owner, name, called)

    return arrange


def read_only(w: World, path: str) -> None:
    """One folder that cannot be made."""
    makedirs = os.makedirs

    def made(name: Any, *args: Any, **named: Any) -> None:
        if str(name).endswith(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        makedirs(name, *args, **named)

    w.patch.setattr(os, "makedirs", made)


def interrupted(w: World) -> None:
    """`half/`: a run that was stopped after its first checkpoint."""
    steps = "--no_overwrite --output_dir half --eval_strategy steps --eval_steps 1 --per_device_train_batch_size 16"
    with pytest.MonkeyPatch.context() as patch:
        fail(Trainer, "training_step", KeyboardInterrupt, after=1)(replace(w, patch=patch))
        with pytest.raises(SystemExit):
            run("text", steps.split(), w)


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")
