"""What a person sees while a run trains: one bar with the loss, and one line for each evaluation."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import ProgressCallback


class Progress(ProgressCallback):
    """transformers' progress bar, without a printed dict at every logging step."""

    def __init__(self, headline: str) -> None:
        super().__init__()
        self.headline = headline

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        if (score := logs.get(f"eval_{self.headline}")) is not None:
            epoch = f"epoch {state.epoch:.3g}"
            self.training_bar.write(
                f"{epoch:10} valid {self.headline} {float(score):.3f}  loss {float(logs['eval_loss']):.3f}"
            )
