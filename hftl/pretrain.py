"""A recipe that learns from rows without labels, and leaves an encoder that every other recipe takes as its `--model`.

Knows which settings that takes, and how another recipe is started on what came out; what is hidden and guessed is
known to the tasks `fill-mask` and `image-feature-extraction`.
"""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.recipe import HOW, OF_MASKS, OUT, TWO_DOMAINS, Recipe
from hftl.settings import flag, own_settings
from hftl.startup import Clock

if TYPE_CHECKING:
    from hftl.report import Report
    from hftl.run import Run


@dataclass(init=False)
class PretrainRecipe(Recipe):
    """A `Recipe` for self-supervised pre-training on the target's own data (Gururangan et al. 2020; Xie et al. 2022).

    Example:
        PretrainRecipe(data="papers.csv", model="bert-base-uncased", output_dir="runs/mlm").run()
    """

    hidden: ClassVar[tuple[str, ...]] = (
        *("text_pair", "label", "problem_type", "class_weights", "metrics", "packing"),
        *("cache_gb", "cache_dtype", "cache_views", *OF_MASKS, *TWO_DOMAINS),
    )

    mask: float | None = flag(
        None, "the share of tokens or patches to hide; else 0.15 of tokens, 0.6 of patches, 0.75 for MAE", HOW
    )
    whole_words: bool = flag(False, "for texts: hide whole words, never single pieces of one", HOW)
    add_tokens: int = flag(
        0, "for texts: add this many of the most frequent words that the tokenizer splits to the vocabulary", HOW
    )
    method: str = flag(
        "auto",
        "for images: simmim or mae (hidden patches; of a ViT, DeiT, Swin), simclr (two views); auto by model",
        HOW,
    )
    then: str | None = flag(
        None, 'the recipe to run next on what came out, with its flags: "recipes/text_cls.py --data x.csv"', OUT
    )

    def prepare(self, clock: Clock | None = None) -> Run:
        """As `Recipe.prepare`.

        Raises:
            UserError: as there, and for what cannot be written as one model in the end.
        """
        from hftl.run import strategy_of

        self._refuse()
        if strategy_of(self.strategy).streams:
            raise UserError(f"{self.strategy} adapts what labels taught, and there are none here. Use it in --then.")
        run = super().prepare(clock)
        model = run.trainer.model
        if hasattr(model, "peft_config") and not hasattr(model, "merge_and_unload"):
            raise UserError("What this strategy adds cannot be merged into the model. Use LoRA or DoRA, or Full.")
        if run.trainer.is_fsdp_enabled or run.trainer.is_deepspeed_enabled:
            raise UserError("Pre-training does not split weights over processes yet. Launch it with a DDP config.")
        return run

    def run(self) -> Report | None:
        """Train, select on valid, read test once, write the folder; then run the recipe of `then` on it.

        Raises:
            UserError: as `Recipe.run`, and a `then` that names no recipe or a setting that it lacks.
            SystemExit: the second recipe's own exit code, where it is not 0.
        """
        words = self._next()
        report = super().run()
        if report is not None and words:
            print(f"\nthen         {shlex.join(words)}", flush=True)
            code = subprocess.run([sys.executable, *words], check=False).returncode
            if code:
                raise SystemExit(code)
        return report

    def reproducible(self) -> dict[str, Any]:
        """As `Recipe.reproducible`, without what means nothing here."""
        left_out = (*self.hidden, "then")
        return {name: value for name, value in super().reproducible().items() if name not in left_out}

    def _refuse(self) -> None:
        own = own_settings(type(self))
        for name in [name for name in self.hidden if name in own and getattr(self, name) != own[name].default]:
            raise UserError(f"--{name} means nothing to pre-training, which reads no label. Leave it out.")
        if self.training.get("label_smoothing_factor"):
            raise UserError("--label_smoothing_factor is for labels, and pre-training reads none. Leave it out.")

    def _next(self) -> list[str]:
        """The words of the second command, checked now: a typo should not wait for the end of the first run."""
        from hftl.cli import merge

        if self.then is None:
            return []
        try:
            script, *flags = shlex.split(self.then)
        except ValueError as failure:
            raise UserError(f"--then does not read as a command: {failure}. Quote it once, as a whole.") from failure
        if not script.endswith(".py") or not Path(script).is_file():
            raise UserError(
                f"--then starts with the file of a recipe, such as recipes/text_cls.py; {script!r} is none."
            )
        if any(word.split("=")[0] in ("--model", "--model_name_or_path") for word in flags):
            raise UserError("--then is given this run's folder as its --model. Leave --model out of it.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "--then starts one process, and this run has several. Leave it out, and launch the second recipe "
                f"yourself with --model {self.output_dir}."
            )
        recipe = runpy.run_path(script).get("RECIPE")
        if not isinstance(recipe, Recipe):
            raise UserError(f"--then {script} holds no RECIPE. Name one of hftl's recipes, or your own.")
        merge(recipe, flags)
        return [script, *flags, "--model", self.output_dir]
