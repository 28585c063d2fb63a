"""An encoder, the mean of what it says of each token, and one linear layer: sentence-transformers' Transformer, Pooling
and Dense. Knows torch and the form of such a folder; no task and no data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from hftl.errors import UserError
from hftl.models.feature_model import pool

POOLING, DENSE = "1_Pooling", "2_Dense"
MODES = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
"""What is read of the tokens, as sentence-transformers names it."""


class Pooling(nn.Module):
    """(rows, tokens, width) and their mask -> (rows, width); a module, so that what lies before it can be kept."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return pool(self.how, states, mask)


class PooledModel(nn.Module):
    """What `AutoModelForSequenceClassification` makes, but the output layer reads a pooling of all tokens.

    Mean pooling is worth ten points over a pooler with 100 rows, and BERT's own class cannot say it. In training and
    for every strategy it is a model like any other.

    Args:
        model: of transformers' class; its encoder is taken, and its head is left out.
        how: mean of all tokens, or first.
    """

    main_input_name = "input_ids"

    def __init__(self, model: Any, how: str) -> None:
        super().__init__()
        self.config, self.how, self.architecture = model.config, how, type(model).__name__
        self.encoder = model.base_model
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # nobody reads it, and DDP waits for each gradient
        self.pooling = Pooling(how)
        share = getattr(self.config, "hidden_dropout_prob", getattr(self.config, "dropout", 0.1))
        self.dropout = nn.Dropout(share if isinstance(share, float) else 0.1)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def forward(self, labels: torch.Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        states = self.encoder(**inputs).last_hidden_state
        logits = self.classifier(self.dropout(self.pooling(states, inputs.get("attention_mask"))))
        loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    @property
    def device(self) -> torch.device:
        """As a model of transformers."""
        return self.classifier.weight.device

    def get_input_embeddings(self) -> nn.Module:
        """As a model of transformers."""
        return self.encoder.get_input_embeddings()

    def gradient_checkpointing_enable(self, *args: Any, **named: Any) -> None:
        """As a model of transformers."""
        self.encoder.gradient_checkpointing_enable(*args, **named)

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Any] | None = None, **others: Any) -> None:
        """Write a folder that `SentenceTransformer(folder)` reads, too: its `encode` gives the logits."""
        state, folder = state_dict or self.state_dict(), Path(folder)
        own = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
        self.encoder.save_pretrained(folder, state_dict=own)
        self.say(folder)
        kinds = {"": "Transformer", POOLING: "Pooling", DENSE: "Dense"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ]
        (folder / "modules.json").write_text(json.dumps(modules, indent=2), "utf-8")
        longest = {"max_seq_length": getattr(self.config, "max_position_embeddings", 512), "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(longest, indent=2), "utf-8")
        (folder / DENSE).mkdir(exist_ok=True)
        dense = {"in_features": self.config.hidden_size, "out_features": self.config.num_labels, "bias": True}
        dense |= {"activation_function": "torch.nn.modules.linear.Identity"}
        (folder / DENSE / "config.json").write_text(json.dumps(dense, indent=2), "utf-8")
        held = {f"linear.{name}": state[f"classifier.{name}"].contiguous() for name in ("weight", "bias")}
        save_file(held, folder / DENSE / "model.safetensors")

    def say(self, folder: Path) -> None:
        """Write what is pooled, which an adapter does not hold, and the class that the config is of."""
        self.config.architectures = [self.architecture]
        self.config.save_pretrained(folder)
        (folder / POOLING).mkdir(exist_ok=True)
        told = {"word_embedding_dimension": self.config.hidden_size}
        told |= {mode: name == self.how for name, mode in MODES.items()}
        (folder / POOLING / "config.json").write_text(json.dumps(told, indent=2), "utf-8")


def can_pool(model: Any) -> bool:
    """Whether the tokens of a model can be pooled: it is one encoder, or one decoder, of texts."""
    body, config = getattr(model, "base_model", model), getattr(model, "config", None)
    whole = body is not model and getattr(model, "main_input_name", "") == "input_ids"
    return whole and not getattr(config, "is_encoder_decoder", False) and hasattr(config, "hidden_size")


def pooled(model: Any, folder: Path) -> nn.Module:
    """A model of transformers' class as the folder says that its tokens are pooled, where it does.

    Raises:
        UserError: the folder's files are damaged.
    """
    if not (folder / POOLING / "config.json").is_file():
        return model
    try:
        told = json.loads((folder / POOLING / "config.json").read_text("utf-8"))
        made = PooledModel(model, next(how for how, mode in MODES.items() if told.get(mode)))
        if (dense := folder / DENSE / "model.safetensors").is_file():
            made.classifier.load_state_dict({k.removeprefix("linear."): v for k, v in load_file(dense).items()})
        return made
    except (OSError, ValueError, KeyError, AttributeError, StopIteration, RuntimeError, SafetensorError) as failure:
        raise UserError(f"{folder} holds a head that cannot be read ({failure}). Train it again.") from failure
