"""The head that guesses hidden tokens for a classifier: whose weights it has, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from hftl.models.token_head import OwnHead, token_head

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
SMALL |= {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64, "embedding_size": 32, "pad_token_id": 0}
IDS = torch.tensor([[3, 7, 11, 4, 9]])


def checkpoint(folder: Path, family: str, auto: str = "AutoModelForMaskedLM", **changes: int) -> str:
    """A small random model of this family, whose biases are no longer zero."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **changes)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "DebertaV2", "ModernBert"])
def test_a_classifier_gets_the_head_of_its_own_checkpoint(family, tmp_path):
    folder = checkpoint(tmp_path, family)
    whole = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    head = token_head(model)
    assert isinstance(head, OwnHead)
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(head(states), whole(input_ids=IDS).logits[0], rtol=1e-4, atol=1e-5)


def test_the_models_embeddings_decode_and_are_no_part_of_the_head(tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint(tmp_path, "Bert"))
    head = token_head(model)
    embeddings = model.get_input_embeddings().weight
    assert all(parameter is not embeddings for parameter in head.parameters())
    head(torch.randn(3, 32)).sum().backward()
    assert embeddings.grad is not None
    assert all(parameter.grad is not None for parameter in head.parameters())
    with torch.no_grad():
        before = head(torch.ones(1, 32))
        embeddings.mul_(2)
        assert not torch.allclose(head(torch.ones(1, 32)), before)


def test_an_untied_head_keeps_its_own_last_layer(tmp_path):
    folder = checkpoint(tmp_path, "Bert", tie_word_embeddings=False)
    whole = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1][0]
    assert not torch.equal(whole.get_output_embeddings().weight, whole.get_input_embeddings().weight)
    torch.testing.assert_close(token_head(model)(states), whole(input_ids=IDS).logits[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_such_a_head_or_other_embeddings_get_a_new_one(tmp_path):
    plain = checkpoint(tmp_path / "plain", "Bert", "AutoModel")
    without = transformers.AutoModelForSequenceClassification.from_pretrained(plain)
    masked = checkpoint(tmp_path / "masked", "Bert")
    random = transformers.AutoModelForSequenceClassification.from_pretrained(masked)
    with torch.no_grad():
        random.get_input_embeddings().weight.add_(1)
    wider = transformers.AutoModelForSequenceClassification.from_pretrained(masked)
    wider.resize_token_embeddings(60)
    for model, words in ((without, 50), (random, 50), (wider, 60)):
        head = token_head(model)
        assert isinstance(head, nn.Sequential)
        assert head(torch.randn(2, 32)).shape == (2, words)
