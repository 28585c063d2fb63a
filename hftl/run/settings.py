"""Everything that one run needs, as flat data: what `recipe.yaml` holds and the command line sets.

Knows who owns a setting, and asks the owners alone what it is: this recipe, the data, the task, the target domain, or
`transformers.TrainingArguments`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hftl.data.types import Data, Target
from hftl.errors import UserError, suggest
from hftl.settings.fields import GONE, HOW, IN, OUT, RUN, SAFE, Setting, flag, own_settings, training_settings
from hftl.settings.values import checked_all
from hftl.tasks.base import DEFAULT, Task

HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
"""TrainingArguments that say where the finished folder goes; the base Trainer is not given them."""
LABELLED = "tasks with labels"
TOGETHER = "Several tasks"
Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Adaptation:
    """How a run that has a target domain is judged."""

    of_several: ClassVar[str] = "never"

    select: str = flag(
        "source",
        "what chooses the checkpoint: source (valid), without target labels entropy, snd, iwv or dev, with them oracle",
        HOW,
        choices=("source", "entropy", "snd", "iwv", "dev", "oracle"),
    )


@dataclass(frozen=True)
class Together:
    """Several tasks that train on one encoder, each with a head of its own; micro-batches are of one task each."""

    tasks: list[str] = flag(
        None,
        "several tasks in place of one: name=source, where a source is what --data takes; after commas its task, "
        "valid, test, max_train_samples, and what is of that task, such as stsb=stsb/,label=score (--help --task NAME)",
        TOGETHER,
        factory=list,
    )
    mixing: str = flag(
        "proportional",
        "how often a task comes: by its rows; uniform, temperature, or annealed",
        TOGETHER,
        choices=("proportional", "uniform", "temperature", "annealed"),
    )
    temperature: float = flag(
        2.0, "with --mixing temperature: by the T-th root of its rows", TOGETHER, range="(0, inf)"
    )
    weighting: str = flag(
        "none",
        "of the losses: none, or uncertainty (learnt; Kendall et al. 2018)",
        TOGETHER,
        choices=("none", "uncertainty"),
    )
    pcgrad: bool = flag(False, "project conflicts between tasks of one update away (Yu et al. 2020)", TOGETHER)
    adapters: bool = flag(False, "a LoRA adapter for each task over a frozen shared encoder", TOGETHER)


@dataclass(init=False, repr=False, eq=False)
class RecipeSettings:
    """The settings of a recipe as attributes: its own, those of the other owners, and any TrainingArguments by name."""

    task: str = flag(DEFAULT, "what is learned, by the Hub's pipeline tag", IN, of_several="each")
    model: str = flag(
        "sentence-transformers/all-MiniLM-L6-v2", "a local folder, a Hub id, timm/... on the Hub, or timm:NAME", IN
    )
    revision: str | None = flag(None, "branch, tag or commit of a Hub model", IN)

    strategy: Any = flag("Full", "how weights meet the task: LoRA(r=16) | LayerDecay(0.9); see hftl strategies", HOW)
    learning_rate: float | None = flag(
        None, "peak learning rate; else the strategy's own, else 5e-5", HOW, range="(0, inf)"
    )
    head: str = flag(
        "auto",
        "what a fresh output layer starts from: auto (solved on frozen features, pooled as held-out rows say), own "
        "(solved, in the model's own class), or random",
        HOW,
        choices=("auto", "own", "random"),
    )
    num_train_epochs: float = flag(3.0, "passes over the training rows", HOW, range="(0, inf)")
    per_device_train_batch_size: int = flag(16, "rows a step on each device", HOW, range="[1, inf)")
    gradient_accumulation_steps: int = flag(1, "micro-batches summed into one update", HOW, range="[1, inf)")
    weight_decay: float = flag(0.01, "decoupled weight decay; biases and norms are spared", HOW, range="[0, inf)")
    warmup_steps: float = flag(0.1, "steps of linear warm-up; below 1 a share of the run", HOW, range="[0, inf)")
    lr_scheduler_type: str = flag("linear", "shape of the schedule after warm-up", HOW)
    early_stopping_patience: int = flag(
        3,
        "evaluations without a better metric before stopping; 0 never; not where a strategy reads the target",
        HOW,
        range="[0, inf)",
    )

    seed: int = flag(
        42,
        "fixes splits, initial weights, order and dropout",
        RUN,
        range="[0, 4294967295]",  # numpy's generator takes 32 bits
    )
    bf16: bool | None = flag(None, "bfloat16 autocast; by default where the hardware is faster with it", RUN)
    fp16: bool = flag(False, "train in float16 autocast", RUN)
    fit_batch: bool = flag(
        False,
        "find the largest micro-batch that fits into memory, and accumulate up to the batch asked for",
        RUN,
        of_several="never",
    )
    cache_gb: float = flag(
        20.0,
        "room on disk to keep what frozen layers and image decoding gave; 0: none",
        RUN,
        range="[0, inf)",
        of_several="never",
    )
    cache_dtype: str = flag(
        "auto",
        "how frozen activations are kept: float32, bfloat16, or auto as computed",
        RUN,
        choices=("auto", "float32", "bfloat16"),
        of_several="never",
    )
    max_steps: int = flag(-1, "stop after this many updates, whatever the epochs", RUN, range="[-1, inf)")
    resume: bool = flag(False, "go on with the interrupted run in --output_dir", RUN)

    output_dir: str = flag("runs/last", "the folder for model, report and card", OUT)
    overwrite: bool = flag(False, "replace a finished run in --output_dir", OUT)
    show_rates: bool = flag(False, "print each module's rate at 0, 25, 50, 75 and 100 % of the run, and stop", OUT)

    allow_pickle: bool = flag(False, "read weights from a pickle file, which may run code when opened", SAFE)
    trust_remote_code: bool = flag(False, "run code that comes with a Hub model", SAFE)

    training: dict[str, Any] = field(default_factory=dict)
    """Other TrainingArguments, by name."""

    def __init__(self, **settings: Any) -> None:
        task = settings.get("task", own_settings(type(self))["task"].default)
        several = bool(settings.get("tasks"))
        own, theirs = self.own(task, several), training_settings()
        settings = dict(settings.pop("training", None) or {}) | settings
        for name in settings:
            if name not in own and name not in theirs:
                hint = f" {GONE[name]}" if name in GONE else suggest(name, own | theirs)
                raise UserError(foreign(name, task, several) or f"Recipe has no setting {name!r}.{hint}")
        chosen = checked_all(settings, theirs | own)
        for name, setting in own.items():
            setattr(self, name, chosen.get(name, setting.default))
        self.training = {name: value for name, value in chosen.items() if name not in own}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Settings of the data, the task and the target domain are attributes, too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.settings() == other.settings()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    @classmethod
    def own(cls, task: str, several: bool = False) -> dict[str, Setting]:
        """What can be set beside TrainingArguments' names, where this is the task; every name has one owner.

        Args:
            several: whether it is one of several tasks, which have some settings each.

        Raises:
            UserError: there is no such task.
        """
        kind = task_class(task)
        owners = (cls, Data, kind, *((Target, Adaptation, Together) if "label" in kind.roles else ()))
        found = {name: setting for owner in owners for name, setting in own_settings(owner).items()}
        return {name: setting for name, setting in found.items() if not (several and of_one(setting))}

    @property
    def several(self) -> bool:
        """Whether several tasks share the encoder."""
        return bool(self.part(Together).tasks)

    def part(self, owner: type[Owner]) -> Owner:
        """An owner with its settings; with defaults, where this recipe's task has no use for it."""
        held = vars(self)
        return owner(**{name: held[name] for name in own_settings(owner) if name in held})

    def settings(self) -> dict[str, Any]:
        """All settings as one flat dict, as they stand in `recipe.yaml`."""
        return {name: getattr(self, name) for name in self.own(self.task, self.several)} | self.training

    def reproducible(self) -> dict[str, Any]:
        """The settings that decide the numbers, for `recipe.yaml`; where the results go is left to the next run."""
        from hftl.results import privacy
        from hftl.settings import spec

        where = ("output_dir", "resume", "overwrite", "show_rates", *HUB)
        kept = {name: value for name, value in self.settings().items() if name not in where}
        kept["strategy"] = self.strategy if isinstance(self.strategy, str) else spec.spell(self.strategy)
        if not isinstance(kept.get("data", ""), str):
            kept["data"] = "(a data set made in Python)"  # fails by name when it is read back, and does not mislead
        if metrics := kept.get("metrics"):
            kept["metrics"] = [one if isinstance(one, str) else f"(the function {one.__name__})" for one in metrics]
        return privacy.shared(kept)


def of_one(setting: Setting) -> bool:
    """Whether a run on several tasks has no such setting for all of them."""
    return setting.of_several in ("each", "never")


def of_each(setting: Setting) -> bool:
    """Whether each of several tasks may have its own, after its source."""
    return setting.of_several in ("each", "both")


def task_class(name: str) -> type[Task]:
    """A task from its pipeline tag.

    Raises:
        UserError: there is no such task.
    """
    known = Task.known()
    if not isinstance(name, str) or name not in known:
        raise UserError(f"There is no task {name!r}; hftl has {', '.join(sorted(known))}.{suggest(str(name), known)}")
    return known[name]


@functools.cache
def of_tasks() -> dict[str, dict[str, Setting]]:
    """Settings that only some tasks have: name -> whose it is -> how it is declared."""
    found: dict[str, dict[str, Setting]] = {}
    whose = {name: own_settings(kind) for name, kind in Task.known().items()}
    for owner, settings in (whose | {LABELLED: _labelled()}).items():
        for name, setting in settings.items():
            found.setdefault(name, {})[owner] = setting
    return found


def _labelled() -> dict[str, Setting]:
    return own_settings(Target) | own_settings(Adaptation) | own_settings(Together)


def foreign(name: str, task: str, several: bool = False) -> str:
    """The sentence that refuses a setting of other tasks; "" for one that nobody has."""
    whose = of_tasks().get(name, {})
    declared = [*RecipeSettings.own(task).values(), *whose.values()]
    if several and (setting := next((one for one in declared if one.name == name and of_one(one)), None)):
        cure = f"Write it after a task's source: --tasks NAME=SOURCE,{name}=VALUE."
        return f"--{name} is for one task; here there are several. {cure if of_each(setting) else 'Leave it out.'}"
    if not whose:
        return ""
    *others, last = sorted(whose)
    owners = f"{', '.join(others)} and {last}" if others else last
    return f"--{name} belongs to {owners}; this recipe's task is {task}. Leave it out."


def fitting(settings: Mapping[str, Any], own: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings without those of other tasks that are empty or as by default.

    An older recipe.yaml holds the settings of every task, and a recipe may be told another `--task`.

    Args:
        own: what the task at hand has.
    """
    unset = {name: [None, *(s.default for s in whose.values())] for name, whose in of_tasks().items()}
    return {name: value for name, value in settings.items() if name in own or value not in unset.get(name, ())}
