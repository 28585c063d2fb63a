"""A checkpoint against its model: which tensors came, whose classes the head knows, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import adaptable
from safetensors.torch import load_file, save_file

from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.tasks.base import Source
from hftl.tasks.text.classification import TextClassification


@pytest.fixture(scope="module")
def tuned(tiny_bert, tmp_path_factory) -> Path:
    """A folder of a model that has been fine-tuned for two classes."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    save(tiny_bert, folder, "Positive", "negative")
    return folder


def save(source: str, folder: Path, *names: str) -> None:
    told = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    transformers.AutoModelForSequenceClassification.from_pretrained(source, **told).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def built(folder: Path, *names: str) -> Any:
    return TextClassification().build(Source(str(folder)), Labels("single_label_classification", list(names)))


def said(made: Any) -> str:
    return "\n".join(check.sentence for check in made.checks)


def changed(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors", {"format": "pt"})
    return to


def head(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["classifier.weight"]


def test_a_head_of_the_same_classes_in_another_order_is_put_into_the_datas(tuned):
    made = built(tuned, "negative", "positive")
    assert torch.equal(made.model.classifier.weight, head(tuned)[[1, 0]])
    assert made.fresh == {"classifier.weight", "classifier.bias"}, "an adapter has to keep what the base has otherwise"
    assert "another order" in said(made)


def test_a_head_of_other_classes_is_fresh(tuned):
    made = built(tuned, "ham", "spam")
    assert made.fresh == {"classifier.weight", "classifier.bias"}
    assert not torch.equal(made.model.classifier.weight, head(tuned))
    assert "other classes (Positive, negative)" in said(made)


def test_a_head_that_names_its_classes_alike_is_kept(tuned):
    made = built(tuned, "Positive", "negative")
    assert torch.equal(made.model.classifier.weight, head(tuned))
    assert said(made) == "41 of 41 tensors came from the checkpoint"


def test_a_head_without_names_is_kept_and_said(tiny_bert, tmp_path):
    save(tiny_bert, tmp_path / "model", "LABEL_0", "LABEL_1")
    assert "does not name its 2 classes" in said(built(tmp_path / "model", "ham", "spam"))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_what_a_wrapper_put_before_all_names_is_taken_off(prefix, tuned, tmp_path):
    wrapped = changed(tuned, tmp_path / "wrapped", lambda held: {prefix + name: value for name, value in held.items()})
    made = built(wrapped, "Positive", "negative")
    assert torch.equal(made.model.classifier.weight, head(tuned))
    assert "41 of 41" in said(made)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda held: {"x.y": torch.ones(2), "z": torch.ones(1)}, "None of the 41 tensors .* it names x.y, z"),
        (lambda held: held | {"bert.pooler.dense.bias": torch.full((32,), torch.nan)}, "no numbers, in bert.pooler.de"),
    ],
)
def test_weights_of_another_model_and_weights_that_are_no_numbers_are_refused(change, sentence, tuned, tmp_path):
    size = head(tuned).shape[1]
    folder = changed(tuned, tmp_path / "bad", lambda held: {k: v[:size] for k, v in change(held).items()})
    with pytest.raises(UserError, match=sentence):
        built(folder, "Positive", "negative")


def test_a_tokenizer_with_more_words_than_the_model_has_vectors_is_refused(tuned, tmp_path):
    folder = changed(tuned, tmp_path / "grown", dict)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<product>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"Resize the model \(resize_token_embeddings\)"):
        built(folder, "Positive", "negative")


def test_the_token_that_pads_is_the_tokenizers(tuned, tmp_path):
    folder = changed(tuned, tmp_path / "padded", dict)
    config = transformers.AutoConfig.from_pretrained(folder, pad_token_id=7)
    config.save_pretrained(folder)
    made = built(folder, "Positive", "negative")
    assert made.model.config.pad_token_id == made.processor.pad_token_id != 7


def test_a_dropout_that_leaves_nothing_is_said(tuned, tmp_path):
    folder = changed(tuned, tmp_path / "deaf", dict)
    config = transformers.AutoConfig.from_pretrained(folder, classifier_dropout=0.999)
    config.save_pretrained(folder)
    assert "dropout drops 99.9% of what it reads in training" in said(built(folder, "Positive", "negative"))


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_an_end_token_inside_a_text_is_text_to_a_head_that_reads_the_last_one(tiny_bert, tmp_path, name):
    """T12."""
    model = adaptable(name, 2)
    model.config.eos_token_id = 3
    model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    tokenizer.save_pretrained(tmp_path)
    task = TextClassification()
    built = task.build(Source(str(tmp_path)), Labels("single_label_classification", ["a", "b"]))
    rows = {"text": ["good [SEP] film", "a film", "[SEP][SEP]"], "text_pair": ["bad", "a [SEP]", "b"]}
    made = task.encoder(built.processor, rows)(rows)
    assert [ids.count(3) for ids in made["input_ids"]] == [2, 2, 2]
    encoded = [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]
    batch = task.collate(built.processor)(encoded)
    batch.pop("token_type_ids", None)
    assert built.model(**batch).logits.isfinite().all()
