"""Everything that one run needs, as flat data: what `recipe.yaml` holds and the command line sets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from hftl.errors import UserError, suggest
from hftl.settings.fields import GONE, Setting, flag, own_settings, training_settings
from hftl.settings.values import checked_all

TWO_DOMAINS = ("unlabelled", "target_test", "domain", "target", "source", "select", "source_only")
"""Settings of a recipe that adapts to a target domain; subclasses that do not hide them."""
OF_MASKS = ("classes", "ignored", "image_size")
"""Settings of a recipe for segmentation; subclasses that have other tasks hide them."""
HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
"""TrainingArguments that say where the finished folder goes; the base Trainer is not given them."""
IN, HOW, RUN, OUT, SAFE = "What goes in", "How it learns", "The run", "What comes out", "Safety"


@dataclass(init=False)
class RecipeSettings:
    """The fields of a recipe, and any `transformers.TrainingArguments` by name."""

    task: str = flag("text-classification", "what is learned, by the Hub's pipeline tag", IN)
    model: str = flag(
        "sentence-transformers/all-MiniLM-L6-v2", "a local folder, a Hub id, timm/... on the Hub, or timm:NAME", IN
    )
    weights: str | None = flag(None, "a .safetensors file for a bare --model timm:NAME", IN)
    revision: str | None = flag(None, "branch, tag or commit of a Hub model", IN)
    data: Any = flag("hftl:reviews", "csv, tsv, jsonl, parquet, arrow, a folder, or a Hub id (name or name:config)", IN)
    data_revision: str | None = flag(None, "branch, tag or commit of a Hub data set", IN)
    valid: str | None = flag(None, "validation data, where it is a source of its own", IN)
    test: str | None = flag(None, "test data, where it is a source of its own", IN)
    text: str | None = flag(None, "the column that holds the text", IN)
    text_pair: str | None = flag(None, "the column that holds the second text of a pair", IN)
    tokens: str | None = flag(None, "the column that holds the words of a text, as a list", IN)
    image: str | None = flag(None, "the column that holds the image or its file name", IN)
    label: str | None = flag(None, "the column that holds the label", IN)
    unlabelled: str | None = flag(None, "rows of a target domain to adapt to; no label of theirs is read", IN)
    target_test: str | None = flag(None, "labelled rows of the target domain, to measure on at the end", IN)
    domain: str | None = flag(None, "the column that names each row's domain; test is measured for each", IN)
    target: str | None = flag(None, "with --domain: the domain to adapt to; its labels are used for measuring only", IN)
    source: list[str] = flag(None, "with --domain: the domains to learn from; else all but --target", IN, factory=list)
    problem_type: str | None = flag(
        None, "single_label_classification, multi_label_classification or regression; guessed from the labels", IN
    )
    classes: str | None = flag(None, "of masks: a file that names the classes, a line each or JSON, by pixel value", IN)
    ignored: list[int] = flag(None, "of masks: pixel values that are no class; 255", IN, factory=lambda: [255])
    image_size: str | None = flag(
        None, "of masks: height x width to resize to, such as 192x256; else the size that the model reads", IN
    )
    max_length: int | None = flag(None, "longest text in tokens, longer ones are cut; else the model's own", IN)
    max_train_samples: int | None = flag(None, "train on this many rows only, chosen with the seed", IN)
    on_bad_row: str = flag("error", "error, or skip and count rows that are empty or unreadable", IN)
    data_sha256: str | None = flag(None, "as recipe.yaml has it: the run says so where the data has changed since", IN)

    strategy: Any = flag("Full", "how weights meet the task: LoRA(r=16) | LayerDecay(0.9); see hftl strategies", HOW)
    learning_rate: float | None = flag(None, "peak learning rate; else the strategy's own, else 5e-5", HOW)
    num_train_epochs: float = flag(3.0, "passes over the training rows", HOW)
    per_device_train_batch_size: int = flag(16, "rows a step on each device", HOW)
    gradient_accumulation_steps: int = flag(1, "micro-batches summed into one update", HOW)
    weight_decay: float = flag(0.01, "decoupled weight decay; biases and norms are spared", HOW)
    warmup_steps: float = flag(0.1, "steps of linear warm-up; below 1 a share of the run", HOW)
    lr_scheduler_type: str = flag("linear", "shape of the schedule after warm-up", HOW)
    class_weights: str | None = flag(None, "balanced: weigh each class by the inverse of its share of train", HOW)
    augment: str = flag("none", "random changes of train: Sketch(0.5) | FDA(beta=0.01); see hftl augmentations", HOW)
    max_tokens_per_batch: int | None = flag(
        None, "fill each batch with texts up to this many tokens, padding counted, in place of a number of rows", HOW
    )
    select: str = flag(
        "source",
        "what chooses the checkpoint: source (valid), without target labels entropy, snd, iwv or dev, with them oracle",
        HOW,
    )
    source_only: bool = flag(
        False, "also train without what reads the target, first, and say whether adapting helped", HOW
    )
    early_stopping_patience: int = flag(
        3, "evaluations without a better metric before stopping; 0 never; not where a strategy reads the target", HOW
    )

    seed: int = flag(42, "fixes splits, initial weights, order and dropout", RUN)
    bf16: bool | None = flag(None, "bfloat16 autocast; by default where the hardware is faster with it", RUN)
    fp16: bool = flag(False, "train in float16 autocast", RUN)
    fit_batch: bool = flag(
        False, "find the largest micro-batch that fits into memory, and accumulate up to the batch asked for", RUN
    )
    packing: bool = flag(False, "pack texts end to end in place of padding them", RUN)
    cache_gb: float = flag(20.0, "room on disk to keep what frozen layers and image decoding gave; 0: none", RUN)
    cache_dtype: str = flag("auto", "how frozen activations are kept: float32, bfloat16, or auto as computed", RUN)
    max_steps: int = flag(-1, "stop after this many updates, whatever the epochs", RUN)
    resume: bool = flag(False, "go on with the interrupted run in --output_dir", RUN)

    output_dir: str = flag("runs/last", "the folder for model, report and card", OUT)
    overwrite: bool = flag(False, "replace a finished run in --output_dir", OUT)
    metrics: list[str] = flag(None, "further metrics of `evaluate`, by name or path", OUT, factory=list)
    show_rates: bool = flag(False, "print each module's rate at 0, 25, 50, 75 and 100 % of the run, and stop", OUT)

    allow_pickle: bool = flag(False, "read weights from a pickle file, which may run code when opened", SAFE)
    trust_remote_code: bool = flag(False, "run code that comes with a Hub model", SAFE)

    hidden: ClassVar[tuple[str, ...]] = ()
    """Settings that mean nothing to a subclass: `--help` leaves them out."""

    training: dict[str, Any] = field(default_factory=dict)
    """Other TrainingArguments, by name."""

    def __init__(self, **settings: Any) -> None:
        own = own_settings(type(self))
        others = training_settings()
        for name in settings:
            if name not in own and name not in others and name != "training":
                hint = f" {GONE[name]}" if name in GONE else suggest(name, [*own, *others])
                raise UserError(f"Recipe has no setting {name!r}.{hint}")
        settings = checked_all(settings, {"training": Setting("training", "dict", None, "", "")} | others | own)
        for f in fields(self):
            if f.name in settings:
                setattr(self, f.name, settings[f.name])
            elif f.name in own:
                setattr(self, f.name, own[f.name].default)
        self.training = dict(settings.get("training") or {})
        self.training |= {name: value for name, value in settings.items() if name not in own and name != "training"}

    def __init_subclass__(cls) -> None:
        cls.__init__ = RecipeSettings.__init__  # type: ignore[method-assign]  # a plain @dataclass would write one of its own

    def settings(self) -> dict[str, Any]:
        """All settings as one flat dict, as they stand in `recipe.yaml`."""
        return {name: getattr(self, name) for name in own_settings(type(self))} | self.training

    def reproducible(self) -> dict[str, Any]:
        """The settings that decide the numbers, for `recipe.yaml`; where the results go is left to the next run."""
        from hftl.results import privacy
        from hftl.settings import spec

        where = ("output_dir", "resume", "overwrite", "show_rates", *HUB)
        kept = {name: value for name, value in self.settings().items() if name not in where}
        kept["strategy"] = self.strategy if isinstance(self.strategy, str) else spec.spell(self.strategy)
        if not isinstance(self.data, str):
            kept["data"] = "(a data set made in Python)"  # fails by name when it is read back, and does not mislead
        return privacy.shared(kept)
