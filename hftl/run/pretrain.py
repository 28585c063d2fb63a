"""A recipe that learns from rows without labels, and leaves an encoder that every other recipe takes as its `--model`.

Knows which settings that takes; what is hidden and guessed is known to the tasks `fill-mask` and
`image-feature-extraction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError
from hftl.run.recipe import Recipe
from hftl.run.settings import HOW, OF_MASKS, TWO_DOMAINS
from hftl.settings.fields import flag, own_settings
from hftl.train.startup import Clock

if TYPE_CHECKING:
    from hftl.run.prepare import Run


@dataclass(init=False)
class PretrainRecipe(Recipe):
    """A `Recipe` for self-supervised pre-training on the target's own data (Gururangan et al. 2020; Xie et al. 2022).

    Example:
        PretrainRecipe(data="papers.csv", model="bert-base-uncased", output_dir="runs/mlm").run()
    """

    hidden: ClassVar[tuple[str, ...]] = (
        *("text_pair", "label", "problem_type", "class_weights", "metrics", "packing"),
        *("cache_gb", "cache_dtype", *OF_MASKS, *TWO_DOMAINS),
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

    def prepare(self, clock: Clock | None = None) -> Run:
        """As `Recipe.prepare`.

        Raises:
            UserError: as there, and for what cannot be written as one model in the end.
        """
        from hftl.run.steps import strategy_of

        self._refuse()
        if strategy_of(self.strategy).streams:
            raise UserError(
                f"{self.strategy} adapts what labels taught, and there are none. Use it in the next recipe."
            )
        run = super().prepare(clock)
        model = run.trainer.model
        if hasattr(model, "peft_config") and not hasattr(model, "merge_and_unload"):
            raise UserError("What this strategy adds cannot be merged into the model. Use LoRA or DoRA, or Full.")
        if run.trainer.is_fsdp_enabled or run.trainer.is_deepspeed_enabled:
            raise UserError("Pre-training does not split weights over processes yet. Launch it with a DDP config.")
        return run

    def reproducible(self) -> dict[str, Any]:
        """As `Recipe.reproducible`, without what means nothing here."""
        return {name: value for name, value in super().reproducible().items() if name not in self.hidden}

    def _refuse(self) -> None:
        own = own_settings(type(self))
        for name in [name for name in self.hidden if name in own and getattr(self, name) != own[name].default]:
            raise UserError(f"--{name} means nothing to pre-training, which reads no label. Leave it out.")
        if self.training.get("label_smoothing_factor"):
            raise UserError("--label_smoothing_factor is for labels, and pre-training reads none. Leave it out.")
