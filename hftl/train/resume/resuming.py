"""A Trainer whose checkpoints are whole or known not to be, and whose run ends alike however often it was cut short.

Knows checkpoints, signals and how processes agree to stop; no strategy, no rows and no cache.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import get_last_checkpoint

from hftl.errors import explained
from hftl.models.wrapped import bare
from hftl.train.resume import manifest
from hftl.train.resume.stopping import NAMES, REQUEST, Stopped

RUNNING = "running.json"
"""Beside a checkpoint: what the base class would count from the last start anew."""


class ResumableTrainer(transformers.Trainer):
    """`transformers.Trainer` that a kill, a signal or a full disk costs at most the steps since the last checkpoint.

    Attributes:
        keeps_arguments: whether a checkpoint holds training_args.bin, a pickle that nothing reads, as the base class's.
    """

    keeps_arguments = True

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._limit: int | None = None
        self._missing: list[str] = []
        self._resumed: str | None = None
        self._spent, self._since = 0.0, time.monotonic()
        self._stopping = _Stopping(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **more: Any) -> Any:
        if resume_from_checkpoint is True:  # None where there is none, which the base class refuses
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        self._resumed = str(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str | Path) else None
        # the base class would count by clock time which checkpoint is the last, and delete it before the run has ended
        given, self._limit = self.args, self.args.save_total_limit
        self.args = copy.copy(given)
        self.args.save_total_limit = None
        added = self._while_training()
        for callback in added:
            self.add_callback(callback)
        try:
            with REQUEST.patient():
                return super().train(resume_from_checkpoint, *others, **more)
        finally:
            self.args = given
            for callback in added:
                self.remove_callback(callback)

    def _while_training(self) -> list[TrainerCallback]:
        """Callbacks of ours, which nobody finds among the user's outside of a training."""
        return [self._stopping]

    # --- writing ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            manifest.begin(folder)
        self.accelerator.wait_for_everyone()  # nobody writes into a folder that is being emptied
        losses = nested_gather(self._tr_loss, self.args.parallel_mode)
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (folder / RUNNING).write_text(json.dumps(self._running(losses)), "utf-8")
                if not self.keeps_arguments:
                    (folder / "training_args.bin").unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()  # everyone's random state is there
            if self.args.should_save:
                manifest.seal(folder)
        except Exception:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # a full disk has more use for the room
            raise
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder.parent, self._limit, {folder.name, Path(best).name if best else ""})

    def _running(self, losses: torch.Tensor) -> dict[str, Any]:
        """What goes on after a resume as if nothing had been; `losses` are those not logged yet, of each process."""
        return {
            "losses": losses.detach().double().flatten().tolist(),
            "logged": self._globalstep_last_logged,
            "loss": self._total_loss_scalar,
            "seconds": self._spent + time.monotonic() - self._since,
        }

    # --- taking up -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with explained("resume", resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self._load_renamed(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with explained("resume", self.state.best_model_checkpoint):
            super()._load_best_model()
            self._load_renamed(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Note what the base class has not found in a checkpoint; what is tied, it has found under another name."""
        model: Any = self.model
        state, missing = model.state_dict(), set(load_result.missing_keys)
        there = {value.data_ptr() for name, value in state.items() if name not in missing}
        self._missing = [name for name in load_result.missing_keys if state[name].data_ptr() not in there]

    def _load_renamed(self, checkpoint: str | None) -> None:
        """Load the weights that the file names otherwise than the model.

        A checkpoint is written with the names of the Hub's files, which for a ViT and others are not the model's; the
        base class looks for the latter alone, warns, and would go on without these weights (transformers 5.24).
        """
        missing, self._missing = self._missing, []
        if not missing or checkpoint is None:
            return
        model: Any = bare(self.model)
        found, info = type(model).from_pretrained(checkpoint, config=model.config, output_loading_info=True)
        state = found.state_dict()
        if beyond := [name for name in missing if name not in state]:  # the class does not know it: SimCLR's projector
            held = {k: v for file in Path(checkpoint).glob("model*.safetensors") for k, v in load_file(file).items()}
            state |= {name: value for name in beyond for k, value in held.items() if f".{k}".endswith(f".{name}")}
        if lost := [name for name in missing if name not in state or name in info["missing_keys"]]:
            raise RuntimeError(f"it lacks {len(lost)} of the model's tensors, such as {lost[0]}")
        # not timm's own way, which takes each name for one of the encoder's
        torch.nn.Module.load_state_dict(model, {name: state[name] for name in missing}, strict=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explained("resume", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explained("resume", checkpoint):
            super()._load_rng_state(checkpoint)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, checkpoint: Any, trial: Any) -> Any:
        trained, inside = super()._init_training_state(max_steps, steps, epochs, checkpoint, trial)
        if checkpoint is None:
            return trained, inside
        if (
            best := self.state.best_global_step
        ) is not None:  # the folder may have been moved, or is named from elsewhere
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{best}"
            self.state.best_model_checkpoint = str(folder) if folder.is_dir() else None
        # a run that had ended, early or not, has no step left; the base class would make one more
        ended = self.args.restore_callback_states_from_checkpoint and self.control.should_training_stop
        return (epochs, 0) if ended else (trained, inside)

    def _take_up(self, told: dict[str, Any]) -> None:
        """Go on from what `_running` gave."""
        losses = told["losses"]
        if len(losses) == self.args.world_size:
            self._tr_loss.fill_(losses[self.args.process_index])
            self._globalstep_last_logged = told["logged"]
        self._total_loss_scalar, self._initial_global_step = told["loss"], 0
        self._spent = told["seconds"]

    def _finalize_training(self, trial: Any, samples: Any, start_time: float) -> Any:
        return super()._finalize_training(trial, samples, start_time - self._spent)


class _Stopping(TrainerCallback):
    """Takes up what ran before, and ends a run that was asked to stop, once a checkpoint of it is whole.

    A step that ends an epoch or the run is evaluated first: a run that goes on from there would not do it any more.
    Processes agree on the step: each tells the others at the end of one whether it was asked, and reads at the end of
    the next what they said, so that nobody waits.
    """

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer
        self.by = ""
        self._group: Any = None
        self._said: tuple[Any, torch.Tensor] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer._spent, trainer._since = 0.0, time.monotonic()
        self.by, self._said = "", None
        if trainer._resumed is not None and (told := Path(trainer._resumed) / RUNNING).is_file():
            with explained("resume", trainer._resumed):
                trainer._take_up(json.loads(told.read_text("utf-8")))
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")  # on the CPU: asking must not wait for a GPU

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.by = self._asked() if args.world_size > 1 else REQUEST.by
        ends = control.should_training_stop or state.epoch == int(state.epoch)
        if self.by and not ends:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.by:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.by:
            raise Stopped(self.by)

    def _asked(self) -> str:
        """By which signal any process was asked to stop up to the step before; "" for none."""
        found = 0
        if self._said is not None:
            work, told = self._said
            work.wait()
            found = int(told)
        mine = torch.tensor(NAMES.index(REQUEST.by), dtype=torch.int32)
        self._said = (dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True), mine)
        return NAMES[found]


def rotate(folder: Path, limit: int | None, kept: set[str]) -> None:
    """Delete the oldest checkpoints beyond a limit, by their step; never those in `kept`, the best and the last."""
    if limit is None or limit <= 0:
        return
    numbered = sorted((int(n), path) for path in folder.glob("checkpoint-*") if (n := path.name[11:]).isdigit())
    spare = [path for _, path in numbered if path.name not in kept]
    for path in spare[: max(0, len(numbered) - max(limit, len(numbered) - len(spare)))]:
        shutil.rmtree(path, ignore_errors=True)
