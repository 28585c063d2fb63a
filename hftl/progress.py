"""What a person sees while a run trains: one bar with the loss, and one line for each evaluation."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback


def evaluated(headline: str, state: Any, logs: dict[str, Any]) -> str | None:
    """One line for an evaluation on valid; None for any other entry of the log."""
    if f"eval_{headline}" not in logs:
        return None
    score, loss = float(logs[f"eval_{headline}"]), float(logs["eval_loss"])
    return f"epoch {state.epoch:<6.3g} valid {headline} {score:.3f}   loss {loss:.3f}"


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

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if line := evaluated(self.headline, state, logs):
            self.training_bar.write(line)
