"""What benchmarks/speed.py compares: jobs, and for each side the command line that does one. Runs nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCKS = 6
"""Of MiniLM."""


@dataclass(frozen=True)
class Job:
    """The same training by several sides: same rows, epochs, batch and learning rate, evaluated after each epoch.

    Attributes:
        data: sst2, longtail, ants_bees or pacs_small.
        strategy: hftl's.
        plain: flags of plain_trainer.py that train the same weights.
        frozen: share of a forward pass that gives the same in every epoch.
        probed: epochs in which the head alone trains, before all do.
        backward: what a backward pass costs, in forward passes: 2, or 1 where hardly a weight has a gradient (LoRA).
        rows: training rows at most.
        tests: the seconds hold the measurement on test, too.
    """

    data: str
    strategy: str
    epochs: int
    batch: int
    rate: float
    plain: tuple[str, ...] = ()
    frozen: float = 0.0
    probed: int = 0
    backward: float = 2.0
    sides: tuple[str, ...] = ("hftl", "plain")
    flags: tuple[str, ...] = ()
    rows: int | None = None
    tests: bool = False

    @property
    def floor(self) -> float:
        """Passes over the training rows that the training cannot do without: frozen work once, the rest each time."""
        return self._once + (1 + self.backward) * self._each

    @property
    def floor_evaluating(self) -> float:
        """Passes over the rows evaluated that they cannot do without."""
        return self._once + self._each

    @property
    def _once(self) -> float:
        return 1.0 if self.probed else self.frozen

    @property
    def _each(self) -> float:
        return (self.epochs - self.probed) * (1 - self.frozen)


ALL, LAST2 = ("--freeze", "all"), ("--freeze", "last:2")
JOBS = {
    "probe-sst2": Job("sst2", "LinearProbe", 10, 128, 3e-2, ALL, frozen=1),
    "probe32-sst2": Job("sst2", "LinearProbe", 10, 32, 1e-2, ALL, frozen=1),
    "probe-ants": Job("ants_bees", "LinearProbe", 10, 32, 1e-2, ALL, frozen=1, sides=("hftl", "plain", "fastai")),
    "probe-pacs": Job("pacs_small", "LinearProbe", 10, 32, 1e-2, ALL, frozen=1, sides=("hftl", "plain", "fastai")),
    "last2-sst2": Job("sst2", "LastLayers(2)", 5, 32, 1e-4, LAST2, frozen=1 - 2 / BLOCKS),
    "full-sst2": Job("sst2", "Full", 1, 32, 1e-4, sides=("hftl", "hftl float32", "plain", "plain, padded to 128")),
    "full-longtail": Job("longtail", "Full", 1, 32, 1e-4, sides=("hftl", "hftl packed", "plain")),
    "lora-sst2": Job("sst2", "LoRA(r=16)", 1, 32, 1e-3, ("--lora", "16"), backward=1),
    "lpft-sst2": Job("sst2", "ProbeThenTune(0.5)", 4, 32, 1e-4, probed=2, sides=("hftl", "hftl, Full half as long")),
    "full-ants": Job("ants_bees", "Full", 6, 16, 1e-3),
    "tune-ants": Job("ants_bees", "ProbeThenTune(0.166, boost=10)", 6, 16, 1e-3, probed=1, sides=("hftl", "fastai")),
    "again-sst2": Job(
        "sst2", "LinearProbe", 10, 128, 3e-2, frozen=1, sides=("hftl", "hftl again", "hftl again, ProbeThenTune")
    ),
    "features-sst2": Job(
        "sst2",
        "Features(pool='mean')",
        1,
        32,
        0,
        frozen=1,
        sides=("hftl", "hftl again", "scikit-learn"),
        tests=True,
    ),
    "features-ants": Job(
        "ants_bees", "Features", 1, 32, 0, frozen=1, sides=("hftl", "hftl again", "scikit-learn"), tests=True
    ),
    "few-sst2": Job("sst2", "Full", 10, 16, 1e-4, sides=("hftl", "plain", "SetFit"), rows=32),
}


@dataclass(frozen=True)
class Call:
    """What a side is asked: a job on a folder of data, with a model."""

    job: Job
    data: Path
    model: str
    seed: int
    out: str
    threads: int

    @property
    def is_text(self) -> bool:
        return (self.data / "train.csv").is_file()


def hftl(call: Call, *flags: str) -> list[str]:
    """A recipe of hftl's."""
    common = ["--model", call.model, "--data", str(call.data), "--seed", str(call.seed), "--output_dir", call.out]
    common += ["--disable_tqdm", *call.job.flags, *flags]
    by_steps = [] if call.job.strategy.startswith("Features") else [*steps(call.job), "--early_stopping_patience", "0"]
    recipe = ROOT / "recipes" / ("text_cls.py" if call.is_text else "image_cls.py")
    return [sys.executable, str(recipe), "--strategy", call.job.strategy, *common, *by_steps]


def tuning_alone(call: Call) -> list[str]:
    """The second part of ProbeThenTune(0.5) without the first."""
    return hftl(replace(call, job=replace(call.job, strategy="Full", epochs=call.job.epochs // 2)))


def other_strategy(call: Call) -> list[str]:
    """A strategy that is frozen up to the same place for a while."""
    return hftl(replace(call, job=replace(call.job, strategy="ProbeThenTune(0.5)", epochs=4)))


def beside(script: str, call: Call, *flags: str) -> list[str]:
    """A script of this folder, which prints one line of JSON."""
    common = [str(call.data), call.model, "--seed", str(call.seed), "--threads", str(call.threads)]
    return [sys.executable, str(ROOT / "benchmarks" / script), *common, *flags]


def plain(call: Call, *flags: str) -> list[str]:
    return beside("plain_trainer.py", call, "--output_dir", call.out, *steps(call.job), *call.job.plain, *flags)


def steps(job: Job) -> list[str]:
    """Flags that hftl's recipes and the plain scripts share."""
    how = {"learning_rate": job.rate, "num_train_epochs": job.epochs, "per_device_train_batch_size": job.batch}
    return [word for name, value in how.items() for word in (f"--{name}", str(value))]


SIDES: dict[str, Callable[[Call], list[str]]] = {
    "hftl": hftl,
    "hftl float32": lambda call: hftl(call, "--bf16", "false"),
    "hftl packed": lambda call: hftl(call, "--packing"),
    "hftl, Full half as long": tuning_alone,
    "hftl again": lambda call: hftl(replace(call, seed=call.seed + 100)),
    "hftl again, ProbeThenTune": other_strategy,
    "plain": plain,
    "plain, padded to 128": lambda call: plain(call, "--pad_to", "128"),
    "scikit-learn": functools.partial(beside, "plain_features.py"),
    "SetFit": lambda call: beside("with_setfit.py", call, "--output_dir", call.out),
    "fastai": lambda call: beside(
        "with_fastai.py", call, *steps(call.job), *(["--head"] if call.job.frozen == 1 else [])
    ),
}
"""Name -> the command line. Those called "again" find the cache that the side before them has left."""
PEERS = {"SetFit": "setfit", "fastai": "fastai"}
"""Side -> the package that it needs, of the extra `bench`."""
