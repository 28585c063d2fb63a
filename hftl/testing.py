"""The laws that every strategy keeps on every task, for its author to run: `check_strategy(MyStrategy())`.

Knows tiny models and tiny data, made on the spot; needs no network. Each law is a function of an `Outcome` that raises
AssertionError with a sentence; `check_strategy` runs them all on a text and on an image classification task.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hftl.results import load as hub
from hftl.results.report.report import Report
from hftl.run import outcome
from hftl.run.prepare import Run
from hftl.run.recipe import Recipe
from hftl.run.steps import strategy_of
from hftl.settings import spec
from hftl.strategies import Strategy

GOOD = ("good", "great", "fine", "lovely", "superb", "happy", "warm", "bright")
BAD = ("bad", "awful", "poor", "dreadful", "broken", "sad", "cold", "dull")
PLAIN = ("the", "a", "film", "book", "pan", "was", "is", "and", "very", "i", "it", "this", "that", "with", "of")


@dataclass
class Outcome:
    """What one strategy has come to on one task: the finished run, its report, and the weights that it began with."""

    run: Run
    report: Report
    before: dict[str, torch.Tensor]
    """Every parameter and buffer of the prepared model before the first step, by name."""
    after: dict[str, torch.Tensor]
    """The same after the last step; the report and the folder are of the best checkpoint."""
    probe: dict[str, torch.Tensor]
    """One batch of inputs, and `logits` of the trained model for it."""


def train_tiny(strategy: Strategy | str, settings: dict[str, Any], folder: Path) -> Outcome:
    """Run one strategy on one tiny task into a folder; a target's rows are the task's own, without labels."""
    target = {"unlabelled": settings["data"]} if strategy_of(strategy).streams else {}
    recipe = Recipe(**target | settings | {"strategy": strategy, "output_dir": str(folder), "disable_tqdm": True})
    run = recipe.prepare()
    run.trainer.args.learning_rate /= run.trainer.groups[0].peak  # whatever the strategy, nothing trains faster
    before, last = _state(run.trainer.model), _Last()
    run.trainer.add_callback(last)
    run.train()
    report = outcome.measure(run)
    rows = run.part.rows["test"].plain([0, 1, 2, 3])
    probe = run.part.task.collate(run.part.pretrained.processor)(rows)
    probe.pop("labels")
    with torch.inference_mode():
        probe["logits"] = run.trainer.model.eval()(**probe).logits.clone()
    run.write(report)
    torch.save(probe, folder.parent / f"{folder.name}.probe.pt")
    return Outcome(run, report, before, last.state, probe)


# --- laws ---


def it_learns(made: Outcome) -> None:
    """The training loss over the last epoch is lower than over the first, which saw the same rows."""
    losses = {entry["epoch"]: entry["loss"] for entry in made.report.history if "loss" in entry}
    start, end = (np.mean([x for at, x in losses.items() if e - 1 < at <= e]) for e in (1, np.ceil(max(losses))))
    assert end < start, f"the loss went from {start:.4f} to {end:.4f}: nothing was learned"


def frozen_is_bit_identical(made: Outcome) -> None:
    """What has rate 0 throughout is untouched, the BatchNorm statistics of frozen modules included."""
    trainer = made.run.trainer
    trains = {name for group in trainer.groups for name in group.parameters}
    owners = {name.rpartition(".")[0] for name in trains}
    for name, value in made.before.items():
        free = name in trains or (name not in _parameters(trainer.model) and name.rpartition(".")[0] in owners)
        same = torch.equal(value, made.after[name])
        assert free or same, f"{name} is frozen, and it changed"


def something_trains(made: Outcome) -> None:
    """Every parameter group has moved."""
    for group in made.run.trainer.groups:
        moved = any(not torch.equal(made.before[name], made.after[name]) for name in group.parameters)
        assert moved, f"the group of {next(iter(group.parameters))} did not move"


def the_notation_round_trips(made: Outcome) -> None:
    """Written down and read back, a strategy is the same."""
    strategy = made.run.trainer.strategy
    assert strategy_of(spec.spell(strategy)) == strategy, f"{spec.spell(strategy)} reads back as something else"


def the_folder_gives_the_same_logits(made: Outcome) -> None:
    """Loaded under another seed, the saved folder computes what the trained model did, to 1e-5."""
    transformers.set_seed(987)
    loaded = hub.load_folder(made.report.folder)
    assert loaded.labels == made.run.part.splits.labels, f"the labels came back as {loaded.labels}"
    with torch.inference_mode():
        found = loaded.model(**{name: value for name, value in made.probe.items() if name != "logits"}).logits
    far = (found - made.probe["logits"]).abs().max().item()
    assert far < 1e-5, f"the reloaded model's logits are {far:.2g} off"


def the_report_counts_what_trains(made: Outcome) -> None:
    """`trainable` and `total` are the numbers of elements in the optimizer and in the model, partners left out."""
    beside = made.run.trainer.beside
    theirs = {id(p) for p in beside.partner.parameters()} if beside is not None else set()
    held = [p for group in made.run.trainer.optimizer.param_groups for p in group["params"]]
    trained = sum(p.numel() for p in held if id(p) not in theirs)
    assert made.report.trainable == trained, f"the report says {made.report.trainable}, the optimizer holds {trained}"
    assert made.report.trainable <= made.report.total


LAWS: tuple[Callable[[Outcome], None], ...] = (
    it_learns,
    frozen_is_bit_identical,
    something_trains,
    the_notation_round_trips,
    the_folder_gives_the_same_logits,
    the_report_counts_what_trains,
)


def the_same_seed_gives_the_same_numbers(first: Outcome, again: Outcome) -> None:
    """Two runs with one seed end in the same weights and the same scores."""
    for name, value in first.after.items():
        assert torch.equal(value, again.after[name]), f"{name} differs between two runs with one seed"
    assert first.report.test == again.report.test


def a_fresh_process_gives_the_same_logits(folders: Sequence[Path]) -> None:
    """One new process with another seed loads each folder and meets the logits that were noted beside it."""
    found = subprocess.run(
        [sys.executable, "-c", _FRESH, *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    for folder, far in json.loads(found.stdout.splitlines()[-1]).items():
        assert far < 1e-5, f"{folder}: the logits of a fresh process are {far:.2g} off"


_FRESH = """
import json, sys, torch
from hftl.results.load import load_folder
torch.set_num_threads(1); torch.manual_seed(4711); far = {}
for folder in sys.argv[1:]:
    probe = torch.load(folder + ".probe.pt", weights_only=True)
    logits = probe.pop("logits")
    with torch.inference_mode():
        far[folder] = (load_folder(folder).model(**probe).logits - logits).abs().max().item()
print(json.dumps(far))
"""


def check_strategy(strategy: Strategy | str, tasks: Sequence[str] = ("text", "image")) -> None:
    """Run every law for a strategy on the tiny tasks.

    Raises:
        AssertionError: a law is broken; the message says which, on what, and how.
        UserError: the strategy refuses the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for task in tasks:
            settings = TINY[task](Path(scratch) / task)
            folders.append(Path(scratch) / f"{task}-run")
            made = train_tiny(strategy, settings, folders[-1])
            for law in LAWS:
                try:
                    law(made)
                except AssertionError as broken:
                    raise AssertionError(f"{law.__name__}, {strategy} on {task}: {broken}") from None
            the_same_seed_gives_the_same_numbers(made, train_tiny(strategy, settings, Path(scratch) / f"{task}-again"))
        a_fresh_process_gives_the_same_logits(folders)


# --- tiny tasks ---


def tiny_text(folder: Path) -> dict[str, Any]:
    """Recipe settings for 120 short texts and a random 2-layer BERT; both are written to the folder."""
    return _TRAINING | {
        "task": "text-classification",
        "model": tiny_bert(folder / "bert"),
        "data": reviews_csv(folder / "reviews.csv", 160),
    }


def tiny_image(folder: Path) -> dict[str, Any]:
    """Recipe settings for 120 small images and a random ResNet with BatchNorm; both are written to the folder."""
    return _TRAINING | {
        "task": "image-classification",
        "model": tiny_cnn(folder / "cnn"),
        "data": colour_images(folder / "colours"),
    }


def tiny_choice(folder: Path) -> dict[str, Any]:
    """Recipe settings for 160 questions, each with a good text among bad ones, and the tiny BERT; both are written."""
    rng, rows = random.Random(0), []
    for i in range(160):
        choices = [" ".join(rng.choices(GOOD if i % 3 == at else BAD, k=3)) for at in range(3)]
        rows.append({"question": f"what is good w{i % 50}", "choices": choices, "label": i % 3})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return _TRAINING | {
        "task": "multiple-choice",
        "model": tiny_bert(folder / "bert"),
        "data": str(folder / "rows.jsonl"),
    }


TINY: dict[str, Callable[[Path], dict[str, Any]]] = {"text": tiny_text, "image": tiny_image, "choice": tiny_choice}
"""Tiny tasks by name. A task with rows here keeps the laws under some strategies, "text" and "image" under all."""
_TRAINING = {"learning_rate": 2e-3, "num_train_epochs": 4, "per_device_train_batch_size": 8, "weight_decay": 0.0}


def tiny_bert(folder: Path) -> str:
    """Write a random 2-layer BERT without a head or pooler, and a word-level tokenizer; return the folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN, *(f"w{i}" for i in range(50))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["mask_token"] = "[UNK]"  # no word of the sentences is unknown
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_cnn(folder: Path) -> str:
    """Write a random small ResNet for 32-pixel images in timm's Hub form; return the folder."""
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(  # type: ignore[call-arg]  # its base takes more than it declares
        architecture="resnet10t",
        num_labels=5,
        model_args={"stem_width": 8, "channels": [8, 16, 16, 32]},
        pretrained_cfg={"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    )
    transformers.TimmWrapperForImageClassification(config).save_pretrained(folder)
    return str(folder)


def sentences(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts whose label a tiny model can learn: each holds good or bad words among plain ones."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        words = [*rng.choices(PLAIN, k=rng.randint(1, 9)), *rng.choices((GOOD, BAD)[i % 2], k=3), f"w{i % 50}"]
        rng.shuffle(words)
        rows.append((" ".join(words), ("positive", "negative")[i % 2]))
    return rows


def reviews_csv(path: Path, n: int = 120) -> str:
    """Write labelled sentences as csv; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *sentences(n)])
    return str(path)


def colour_images(folder: Path, n: int = 120) -> str:
    """Write reddish and bluish noise of 32 x 32 pixels in a folder by class; return the folder."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name, channel = (("red", 0), ("blue", 2))[i % 2]
        pixels = rng.integers(0, 120, (32, 32, 3))
        pixels[..., channel] += 100
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{i}.png")
    return str(folder)


class _Last(transformers.TrainerCallback):
    """Keeps the weights after the last step, before the best checkpoint takes their place."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.state = _state(model)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in named.items()}


def _parameters(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}
