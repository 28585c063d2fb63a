"""Text classification: one text or a pair; one label, several, or a number. Knows tokenizers, nothing of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.data.roles import Role
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.settings.fields import HOW, IN, RUN, flag
from hftl.tasks.augment import Augmentation, augmentation_of
from hftl.tasks.augment.base import some
from hftl.tasks.base import Pretrained
from hftl.tasks.classification import PROBLEM_TYPES, REGRESSION, Classification
from hftl.tasks.sections import Baseline, Example, Section
from hftl.tasks.text.texts import Texts, altered, read_part

if TYPE_CHECKING:
    import datasets
    import torch

PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("question", "passage"), ("question", "context"), ("query", "passage"), ("query", "document")),
    *(("sentence_a", "sentence_b"), ("text_a", "text_b"), ("text1", "text2"), ("claim", "evidence")),
    *(("sent1", "sent2"), ("#1 string", "#2 string")),
)
"""Columns that are the two texts of a row, as GLUE, SuperGLUE and retrieval data name them."""
CHEAP = 2 * 10**11
"""Parameters times rows up to which an untrained encoder is asked first: a minute of one core on short texts."""
LABELS = ("label", "labels", "target", "class", "category", "sentiment", "intent", "score", "coarse_label")


@dataclass
class TextClassification(Classification, Texts):
    """A label for a text or for a pair of texts, by any `AutoModelForSequenceClassification`."""

    name: ClassVar[str] = "text-classification"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    pools: ClassVar[tuple[str, ...]] = ("mean", "first")
    usage: ClassVar[dict[str, str]] = {
        "auto": auto,
        "script": "recipes/text_cls.py",
        "new": "new.csv",
        "example": '"one text"',
        "example_pair": '{"text": "one text", "text_pair": "another"}',
        "processor": "tokenizer",
        "arguments": ", truncation=True",  # a pipeline does not cut long texts unless told, and fails on them
    }
    roles: ClassVar[dict[str, Role]] = {
        "text": Role("text", ("text", "sentence", "sentence1", "premise", "question1", "question", "review")),
        "text_pair": Role("text", ("text_pair", "sentence2", "hypothesis", "question2"), required=False, pairs=PAIRS),
        "label": Role("label", LABELS, reads=PROBLEM_TYPES),
    }

    text_pair: str | None = flag(None, "the column that holds the second text of a pair", IN)
    augment: str = flag(
        "none", "random changes of train: EDA() | MaskedLM(); see hftl augmentations", HOW, of_several="never"
    )
    packing: bool = flag(False, "pack texts end to end in place of padding them", RUN, of_several="never")

    def augmentation(self) -> Augmentation | None:
        return augmentation_of(self.augment, "text", self._target)

    def untrained(self, pretrained: Pretrained, test: datasets.Dataset, labels: Labels) -> list[Section]:
        """Of pairs with a number: the correlation with it of the cosine of two texts, each the mean of its tokens."""
        model, tokenizer = pretrained.model, pretrained.processor
        encoder, size = getattr(model, "base_model", model), sum(p.numel() for p in model.parameters())
        pairs = labels.read_as == REGRESSION and "text_pair" in test.column_names and encoder is not model
        if not pairs or model.config.is_encoder_decoder or size * len(test) > CHEAP:  # type: ignore[union-attr]
            return []
        import numpy as np
        import torch

        from hftl.models.untouched import untouched

        def pooled(texts: list[str | None]) -> torch.Tensor:
            read, limit = read_part([one or "" for one in texts]), self.limit(tokenizer, False)
            inputs = tokenizer(read, truncation=True, max_length=limit, padding=True, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            return (encoder(**inputs).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

        with untouched(model), torch.no_grad():
            model.eval()
            found = [
                torch.nn.functional.cosine_similarity(pooled(batch["text"]), pooled(batch["text_pair"]))
                for batch in test.iter(32)
            ]
        cosines, truth = torch.cat(found).float().numpy(), np.asarray(test["label"][:], float)
        if min(np.ptp(cosines), np.ptp(truth)) == 0:
            return []
        title = "The cosine of the two texts in the untrained encoder"
        return [Baseline(heading="", title=title, value=float(np.corrcoef(cosines, truth)[0, 1]))]

    def before_after(self, encoded: Any) -> list[Example]:
        import numpy as np

        found = self.augmentation()
        if found is None:
            return []
        rng, plain = np.random.default_rng(0), encoded.with_format(None)
        words = plain if self._target is None else self._target
        return [
            Example(texts=[*self.show(row).texts, *self.show(altered(row, found, rng, words)).texts])
            for row in some(encoded)
        ]

    def stream(self, view: str, rows: datasets.Dataset, processor: Any) -> tuple[Any, Callable]:
        """As any task; "masked" hides 15 % of the tokens as BERT does, "strong" masks 20 % and asks for none."""
        if view not in ("masked", "strong"):
            return super().stream(view, rows, processor)
        if processor.mask_token is None:
            raise UserError(
                "The strategy masks tokens, and this model's tokenizer has no mask token. Pass another --model."
            )
        import transformers

        encoded, plain = super().stream("unlabelled", rows, processor)
        how: dict[str, float] = {"mlm_probability": 0.15}
        if view == "strong":
            how = {"mlm_probability": 0.2, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
        hide = transformers.DataCollatorForLanguageModeling(processor, **how)  # type: ignore[arg-type]

        def batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            made = plain(rows)
            ids, wanted = hide.torch_mask_tokens(made["input_ids"])
            return made | {"input_ids": ids} | ({"labels": wanted} if view == "masked" else {})

        return encoded, batch
