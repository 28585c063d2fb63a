"""What a person sees while a run trains: one bar with the loss, and one line for each evaluation. Times its start."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import huggingface_hub
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.utils import logging

from hftl.errors import UserError

if TYPE_CHECKING:
    from hftl.train.startup import Clock


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers says errors only, and shows no bars for files, which would tear ours. Downloads keep theirs."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    with warnings.catch_warnings():
        # peft 0.21 still reads the old name of activation checkpointing
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def evaluated(headline: str, state: Any, logs: dict[str, Any]) -> str | None:
    """One line for an evaluation on valid; None for any other entry of the log."""
    if f"eval_{headline}" not in logs:
        return None
    score, loss = float(logs[f"eval_{headline}"]), float(logs["eval_loss"])
    return f"epoch {state.epoch:<6.3g} valid {headline} {score:.3f}   loss {loss:.3f}"


class FirstStep(TrainerCallback):
    """Marks the last stages of a start: the first batch is there, and the first update is about to be made."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "first batch" not in self.clock.seconds:
            self.clock.mark("first batch")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "first step" not in self.clock.seconds:
            self.clock.mark("first step")


class Finite(TrainerCallback):
    """Ends a run whose loss is no number any more.

    Raises:
        UserError: it is not, at a logging step.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)):
            raise UserError(
                f"The training loss became {loss} at step {state.global_step}. Lower --learning_rate "
                f"(it is {args.learning_rate:g}), or look for infinite values in the data."
            )


class Lines(TrainerCallback):
    """The lines without the bar, for `--disable_tqdm`."""

    def __init__(self, headline: str) -> None:
        self.headline = headline

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (line := evaluated(self.headline, state, logs or {})):
            print(line)


class Progress(ProgressCallback):
    """transformers' progress bar, without a printed dict at every logging step."""

    def __init__(self, headline: str) -> None:
        super().__init__()
        self.headline = headline

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None and self.prediction_bar.n == 1:
            self.prediction_bar.leave = False  # else the measurements after training leave two bars above the table
            self.prediction_bar.set_description("evaluating")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if line := evaluated(self.headline, state, logs):
            self.training_bar.write(line)
