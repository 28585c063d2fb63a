"""Kill -9 at random moments, go on with `--resume`, and compare with the run that was never killed, byte for byte.

    python benchmarks/kills.py --kills 30 --seed 1

Needs no data and no network: tiny models and tiny data are made on the spot. A moment is chosen at random in a phase:
training and evaluation by the time between two checkpoints of the reference run, the writing of a checkpoint, of the
cache and of the folder by watching for what they begin with.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hftl import testing

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300
"""Seconds after which a run is given up."""
PHASES = ("training", "evaluation", "checkpoint", "cache", "report")
COSTS = re.compile(r"seconds|_runtime|_per_second|startup|peak_memory|command|^folder$")
"""Parts of a report that say what a run cost, or how it was called: they differ between any two runs."""
COMMON = (
    "--per_device_train_batch_size 8 --num_train_epochs 3 --learning_rate 0.005 --save_total_limit 1 --disable_tqdm"
)


@dataclass
class Arm:
    """A way to train that is to survive."""

    name: str
    recipe: str
    flags: list[str]
    processes: int = 1
    cached: bool = False

    @property
    def weights(self) -> str:
        return "adapter_model.safetensors" if any("LoRA" in flag for flag in self.flags) else "model.safetensors"

    def command(self, folder: Path, *more: str) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        words = [str(ROOT / "recipes" / self.recipe), *self.flags, *COMMON.split(), "--output_dir", str(folder)]
        return [sys.executable, *(launcher if self.processes > 1 else []), *words, *more]


@dataclass
class Watched:
    """A run that goes on in the background, and when its checkpoints began and were whole."""

    arm: Arm
    home: Path
    seconds: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))

    def start(self, *more: str) -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"HFTL_CACHE": str(self.home / "kept"), "CUDA_VISIBLE_DEVICES": ""}
        where: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.arm.command(self.folder, *more), env=env, start_new_session=True, **where)

    @property
    def folder(self) -> Path:
        return self.home / "run"

    def begun(self) -> set[Path]:
        with contextlib.suppress(FileNotFoundError):  # a run that starts clears away an empty folder
            return set(self.folder.glob("checkpoints/checkpoint-*"))
        return set()

    def caching(self) -> bool:
        return any(self.home.glob("kept/*/*.partial"))

    def reporting(self) -> bool:
        return (self.folder / ".partial").is_dir()

    def wait(self, process: subprocess.Popen[str], until: Callable[[], Any]) -> bool:
        """Whether something came true before the run ended."""
        limit = time.monotonic() + LIMIT
        while not until():
            if process.poll() is not None or time.monotonic() > limit:
                return False
            time.sleep(0.0005)
        return True

    def whole(self, count: int) -> bool:
        """Whether the checkpoint of this number was written: by its step, since older ones go."""
        steps = [int(path.name[11:]) for path in self.begun() if (path / "manifest.json").exists() and _size(path)]
        return bool(steps) and max(steps) >= count


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return (path / "manifest.json").stat().st_size
    return 0


def reference(arm: Arm, home: Path) -> Watched:
    """The run that is never killed, with the time of each phase."""
    run = Watched(arm, home)
    process = run.start()
    steps: list[int] = []
    marks: dict[str, float] = {}
    while process.poll() is None:
        now = time.monotonic()
        for path in run.begun():
            step = int(path.name[11:])
            if step not in steps:
                steps.append(step)
                marks[f"begun {step}"] = now
            if f"whole {step}" not in marks and _size(path):
                marks[f"whole {step}"] = now
        for name, there in (("cache", run.caching()), ("report", run.reporting())):
            if there:
                run.seconds[name] = [*run.seconds[name][:1], now] if run.seconds[name] else [now]
        time.sleep(0.001)
    if process.returncode:
        raise SystemExit(f"{arm.name}: the reference run failed: {process.stderr.read()[-2000:]}")  # type: ignore[union-attr]
    run.seconds = {name: [times[-1] - times[0]] for name, times in run.seconds.items()}  # type: ignore[assignment]
    run.seconds["steps"] = [float(step) for step in sorted(steps)]
    run.seconds["checkpoint"] = [marks.get(f"whole {s}", marks[f"begun {s}"]) - marks[f"begun {s}"] for s in steps]
    pairs = itertools.pairwise(steps)
    run.seconds["between"] = [marks[f"begun {b}"] - marks.get(f"whole {a}", marks[f"begun {a}"]) for a, b in pairs]
    history = json.loads((run.folder / "report.json").read_text("utf-8"))["history"]
    run.seconds["evaluation"] = [row["eval_runtime"] for row in history if "eval_runtime" in row]
    return run


def kill(run: Watched, told: Watched, phase: str, rng: random.Random) -> bool:
    """Start a run and kill all its processes in a phase; whether that came before its end: later is no kill."""
    process, times = run.start(), told.seconds
    if phase in ("cache", "report"):
        reached = run.wait(process, run.caching if phase == "cache" else run.reporting)
        pause = rng.random() * times[phase][0]
    else:
        number = rng.randrange(len(times["steps"]) - 1)
        here, following = int(times["steps"][number]), int(times["steps"][number + 1])
        if phase == "checkpoint":
            reached = run.wait(process, (run.folder / f"checkpoints/checkpoint-{following}").exists)
            pause = rng.random() * times["checkpoint"][number + 1]
        else:
            reached = run.wait(process, lambda: run.whole(here))
            between, evaluation = times["between"][number], times["evaluation"][number + 1]
            inside = rng.random()
            pause = inside * (between - evaluation) if phase == "training" else between - inside * evaluation
    if reached:
        time.sleep(max(0.0, pause))
    alive = process.poll() is None
    end(process.pid)
    process.wait()
    ended = (run.folder / "report.json").is_file() and not run.begun()
    return alive and reached and not ended


def end(number: int) -> None:
    """SIGKILL to a process and to all below it, each of which a launcher puts into a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        whole = psutil.Process(number)
        for one in [whole, *whole.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def go_on(run: Watched) -> tuple[str, str]:
    """The same command again, as the message says; how, and what went wrong."""
    how = "--resume"
    process = run.start("--resume")
    said = process.communicate(timeout=LIMIT)[1]
    if "Leave --resume out" in said:
        how = "anew"
        process = run.start()
        said = process.communicate(timeout=LIMIT)[1]
    if process.returncode and "nothing to resume" in said:
        return "finished", ""
    return how, "" if process.returncode == 0 else said[-1500:]


def told_apart(arm: Arm, one: Path, other: Path, anew: bool) -> str:
    """What differs between two finished folders; empty where nothing but costs does."""
    first, second = (_steady(json.loads((path / "report.json").read_text("utf-8"))) for path in (one, other))
    if (one / arm.weights).read_bytes() != (other / arm.weights).read_bytes():
        pairs = zip(first["history"], second["history"], strict=False)
        since = next((a["step"] for a, b in pairs if a != b), None)
        return f"{arm.weights}, from step {since} on"
    if anew and arm.cached:  # what the killed run had kept is not computed again, and the report says so
        first.pop("forward_passes"), second.pop("forward_passes")
    first |= {f"settings: {name}": value for name, value in first.pop("settings").items()}
    second |= {f"settings: {name}": value for name, value in second.pop("settings").items()}
    return ", ".join(name for name in first if first[name] != second.get(name))


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _steady(inner) for name, inner in value.items() if not COSTS.search(name)}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def arms(home: Path) -> list[Arm]:
    """Text and image, full, LoRA and cached, one process and two; valid is large, so that evaluation takes long."""
    bert, cnn = testing.tiny_bert(home / "bert"), testing.tiny_cnn(home / "cnn")
    train, valid = testing.reviews_csv(home / "train.csv", 200), testing.reviews_csv(home / "valid.csv", 1000)
    test = testing.reviews_csv(home / "test.csv", 100)
    colours, seen = testing.colour_images(home / "colours", 160), testing.colour_images(home / "seen", 200)
    text = ["--model", bert, "--data", train, "--valid", valid, "--test", test]
    image = ["--model", cnn, "--data", colours, "--valid", seen, "--test", colours]
    lora, last = ["--strategy", "LoRA(r=4)"], ["--strategy", "LastLayers(1)"]
    return [
        Arm("text full", "text_cls.py", text),
        Arm("text LoRA", "text_cls.py", [*text, *lora, "--cache_gb", "0"]),
        Arm("text cached", "text_cls.py", [*text, *last], cached=True),
        Arm("image full", "image_cls.py", [*image, "--cache_gb", "0"]),
        Arm("image LoRA", "image_cls.py", [*image, *lora, "--cache_gb", "0"]),
        Arm("image cached", "image_cls.py", [*image, *last], cached=True),
        Arm("text, 2 processes", "text_cls.py", text, processes=2),
        Arm("text cached, 2 processes", "text_cls.py", [*text, *last], processes=2, cached=True),
    ]


def drawn(chosen: list[Arm], kills: int, rng: random.Random) -> list[tuple[Arm, str]]:
    """Arms and phases in turn, so that each comes about as often as any other."""
    every = [(arm, phase) for phase in PHASES for arm in chosen if arm.cached or phase != "cache"]
    rng.shuffle(every)
    return [every[i % len(every)] for i in range(kills)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="arms whose name holds this")
    asked = parser.parse_args()
    rng, found = random.Random(asked.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        chosen = [arm for arm in arms(home) if (asked.only or "") in arm.name]
        plan, told = drawn(chosen, asked.kills, rng), {}
        for number, (arm, phase) in enumerate(plan):
            if arm.name not in told:
                told[arm.name] = reference(arm, home / arm.name)
            for again in range(10):
                run = Watched(arm, home / f"kill-{number}-{again}")
                if kill(run, told[arm.name], phase, rng):
                    break
            steps = sorted(int(path.name[11:]) for path in run.begun())
            how, wrong = go_on(run)
            wrong = wrong or told_apart(arm, told[arm.name].folder, run.folder, how == "anew")
            found.append((arm.name, phase, wrong))
            print(f"{number + 1:3} {arm.name:26} {phase:12} {how:10} {steps} {wrong or 'identical'}", flush=True)
            if not wrong:
                shutil.rmtree(run.home)
    print(table([arm.name for arm in chosen], found))


def table(names: list[str], found: list[tuple[str, str, str]]) -> str:
    """Identical of killed, by arm and phase, as markdown."""
    lines = [f"| arm | {' | '.join(PHASES)} | all |", "|---|" + "---|" * (len(PHASES) + 1)]
    for name in [*names, "all"]:
        cells = []
        for phase in [*PHASES, "all"]:
            here = [not w for n, p, w in found if name in (n, "all") and phase in (p, "all")]
            cells.append(f"{sum(here)} of {len(here)}" if here else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
