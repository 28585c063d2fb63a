"""Pre-training without labels: what is hidden, what it costs to guess it, and what other recipes find in the folder."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from test_recipes import launch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from hftl import Recipe, Trainer, load, testing
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.tasks.base import Source
from hftl.tasks.image.masked import MaskedImage, plain_vit
from hftl.tasks.metrics.pretext import MaskedTokens
from hftl.tasks.networks.hidden_tokens import HiddenTokens
from hftl.tasks.networks.masking import Masking
from hftl.tasks.networks.views import contrast, mae, patch_mask, simmim
from hftl.tasks.networks.vocabulary import extend, new_words, pieces
from hftl.tasks.origin import resolve
from hftl.tasks.text.masked import MaskedText

SPLIT = ("the", "film")  # words that the tokenizer below does not hold whole
QUICK = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "disable_tqdm": True}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def tokenizer_of_pieces() -> transformers.PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer that holds the sentences' words but two, and every letter."""
    letters = [chr(code) for code in [*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1)]]
    whole = [word for word in (*testing.GOOD, *testing.BAD, *testing.PLAIN) if word not in SPLIT]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *whole, *letters, *(f"##{one}" for one in letters)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=names, **special
    )


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of_pieces()


@pytest.fixture(scope="module")
def bert(tokenizer, tmp_path_factory):
    """A folder with a random 2-layer BERT that has a head for masked tokens."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A csv with texts, and no label."""
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text",), *((text,) for text, _ in testing.sentences(120))])
    return str(path)


@pytest.fixture(scope="module")
def mlm_run(bert, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlm"
    flags = ["--model", bert, "--data", texts, "--output_dir", str(folder), "--eval_on_start", "--disable_tqdm"]
    launch("mlm.py", *flags, "--learning_rate", "0.005", "--per_device_train_batch_size", "8")
    return folder


def vit_folder(folder: Path, kind: str) -> str:
    """Write a random 2-layer ViT or MAE for 32-pixel images; return the folder."""
    torch.manual_seed(0)
    if kind == "mae":
        small = {f"decoder_{name}": max(value // 2, 1) for name, value in SMALL.items()}
        config = transformers.ViTMAEConfig(image_size=32, patch_size=4, **SMALL, **small)
        transformers.ViTMAEForPreTraining(config).save_pretrained(folder)
    else:
        config = transformers.ViTConfig(image_size=32, patch_size=4, **SMALL)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vits(tmp_path_factory):
    root = tmp_path_factory.mktemp("vits")
    return {kind: vit_folder(root / kind, kind) for kind in ("vit", "mae")}


def within_three_sigma(hits: int, n: int, p: float) -> bool:
    return abs(hits - n * p) < 3 * math.sqrt(n * p * (1 - p))


def encoder_hash(folder: str | Path) -> str:
    """Of the tensors of the encoder, by name; heads are left out."""
    tensors = load_file(Path(folder) / "model.safetensors")
    body = {name: value for name, value in tensors.items() if name.startswith("bert.encoder")}
    assert body
    return hashlib.sha256(b"".join(body[name].numpy().tobytes() for name in sorted(body))).hexdigest()


# --- what is hidden in a text ---


@pytest.fixture(scope="module")
def million(tokenizer):
    """A million tokens that are no special ones, masked: true ids, changed ids, labels."""
    torch.manual_seed(1)
    ids = torch.randint(5, len(tokenizer), (1000, 1000))
    return (ids, *Masking(tokenizer, 0.15)(ids))


def test_fifteen_in_a_hundred_tokens_are_hidden(million):
    _, _, labels = million
    assert within_three_sigma(int((labels != -100).sum()), labels.numel(), 0.15)


def test_of_the_hidden_80_become_the_mask_10_another_token_and_10_stay(million, tokenizer):
    ids, changed, labels = million
    hidden = labels != -100
    n, other = int(hidden.sum()), 1 / len(tokenizer)
    masked = int((changed == tokenizer.mask_token_id)[hidden].sum())
    same = int((changed == ids)[hidden].sum())
    assert within_three_sigma(masked, n, 0.8 + 0.1 * other)
    assert within_three_sigma(same, n, 0.1 + 0.1 * other)


def test_labels_are_the_true_ids_where_hidden_and_minus_100_elsewhere(million):
    ids, changed, labels = million
    hidden = labels != -100
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(changed[~hidden], ids[~hidden])


def test_special_tokens_and_padding_are_never_hidden(tokenizer):
    ids = torch.tensor([[2, 20, 21, 3, 0, 0]]).expand(2000, -1)
    labels = Masking(tokenizer, 0.5)(ids)[1]
    assert (labels[:, [0, 3, 4, 5]] == -100).all()
    assert (labels[:, 1:3] != -100).any()


def test_a_batch_in_which_chance_hides_nothing_still_has_a_loss(tokenizer):
    for seed in range(20):
        torch.manual_seed(seed)
        labels = Masking(tokenizer, 1e-6)(torch.tensor([[2, 20, 21, 3]]))[1]
        assert int((labels != -100).sum()) == 1


def test_training_masks_are_drawn_anew_and_those_of_valid_are_not(tokenizer):
    task = MaskedText(mask=0.3)
    rows = datasets.Dataset.from_dict({"text": [text for text, _ in testing.sentences(20)]})
    collate = task.collate(tokenizer)
    train = task.encode(rows, tokenizer, train=True)
    valid = task.encode(rows, tokenizer)
    assert "labels" not in train.column_names
    assert not torch.equal(*(collate(train.__getitems__(list(range(20))))["labels"] for _ in range(2)))
    torch.manual_seed(5)
    backwards = task.encode(rows.select(range(19, -1, -1)), tokenizer)
    assert list(backwards["labels"])[::-1] == list(valid["labels"])
    first = collate(valid.__getitems__([0, 1]))
    assert first["labels"][0].tolist()[: len(valid[0]["labels"])] == valid[0]["labels"]
    assert (first["labels"][0] != -100).any()


def test_whole_words_hides_all_pieces_of_a_word_or_none(tokenizer):
    words = torch.arange(300).repeat_interleave(3)[None]
    ids = torch.randint(5, len(tokenizer), (500, 900), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    hidden = (Masking(tokenizer, 0.15)(ids, words.expand(500, -1))[1] != -100).view(500, 300, 3)
    assert torch.equal(hidden.any(2), hidden.all(2))
    assert within_three_sigma(int(hidden.any(2).sum()), 500 * 300, 0.15)


def test_whole_words_knows_which_pieces_belong_together(tokenizer):
    task = MaskedText(mask=0.4, whole_words=True)
    word = SPLIT[0]
    rows = datasets.Dataset.from_dict({"text": [f"{word} good {word} bad {word}"] * 2})
    row = task.encode(rows, tokenizer, train=True)[0]
    size = len(pieces(tokenizer, word))
    assert size > 1
    assert row["word"] == [-1, *[0] * size, 1, *[2] * size, 3, *[4] * size, -1]
    fixed = task.encode(rows, tokenizer)[0]
    hidden = np.array(fixed["labels"]) != -100
    by_word = {n: {bool(h) for h, w in zip(hidden, row["word"], strict=True) if w == n} for n in range(5)}
    assert all(len(kinds) == 1 for kinds in by_word.values())
    assert "word" not in fixed


# --- what guessing costs ---


def masked_batch(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Six rows of 12 tokens, the last of them padded."""
    torch.manual_seed(0)
    ids, labels = Masking(tokenizer, 0.3)(torch.randint(5, len(tokenizer), (6, 12)))
    padding = torch.ones_like(ids)
    padding[-1, 8:], labels[-1, 8:] = 0, -100
    return {"input_ids": ids, "attention_mask": padding, "labels": labels}


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def test_pseudo_perplexity_is_the_exponential_of_the_models_own_mean_loss(bert, tokenizer):
    model = transformers.AutoModelForMaskedLM.from_pretrained(bert).eval()
    batch = masked_batch(tokenizer)
    labels, metric = batch["labels"], MaskedTokens()
    with torch.no_grad():
        own = model(**batch)
        learn = HiddenTokens(model, inputs_of(batch))
        for part in (slice(0, 2), slice(2, 6)):
            made = learn(model, {name: value[part] for name, value in batch.items()})
            metric.update(made["logits"].numpy(), labels[part].numpy())
    found = metric.compute()
    right = (own.logits.argmax(-1) == labels)[labels != -100].float().mean().item()
    assert found["pseudo_perplexity"].value == pytest.approx(math.exp(own.loss.item()), rel=1e-4)
    assert found["masked_accuracy"].value == pytest.approx(right)
    assert {score.n for score in found.values()} == {int((labels != -100).sum())}


FAMILIES = ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "DebertaV2", "ModernBert", "XLM", "Bart"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_reads_hidden_tokens_alone_costs_and_teaches_the_same(family, tokenizer):
    few = {**SMALL, "n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64, "emb_dim": 32, "embedding_size": 32}
    few |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "global_attn_every_n_layers": 1}
    few |= {"vocab_size": len(tokenizer), "pad_token_id": 0}
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(getattr(transformers, f"{family}Config")(**few)).eval()
    batch = masked_batch(tokenizer)
    given, here = inputs_of(batch), batch["labels"] != -100
    own = nn.functional.cross_entropy(model(**given).logits[here], batch["labels"][here])
    own.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    learn = HiddenTokens(model, given)
    assert learn.apart
    made = learn(model, batch)
    made["loss"].backward()
    assert made["loss"].item() == pytest.approx(own.item(), rel=1e-6)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(gradients)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-7)
    assert model(**given).logits.shape == (6, 12, len(tokenizer))


def test_a_head_that_looks_at_other_tokens_is_given_all_of_them(bert, tokenizer):
    class Neighbours(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.head(states + states.roll(1, 1))

    model = transformers.AutoModelForMaskedLM.from_pretrained(bert).eval()
    model.cls = Neighbours(model.cls)
    batch = masked_batch(tokenizer)
    own = model(**batch).loss.item()
    learn = HiddenTokens(model, inputs_of(batch))
    assert not learn.apart
    assert learn(model, batch)["loss"].item() == pytest.approx(own, rel=1e-6)


def test_what_stays_in_sight_gets_no_logits(bert, tokenizer):
    model = transformers.AutoModelForMaskedLM.from_pretrained(bert).eval()
    batch = masked_batch(tokenizer)
    learn = HiddenTokens(model, inputs_of(batch))
    shapes = []
    model.cls.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    learn(model, batch)
    assert shapes == [(1, int((batch["labels"] != -100).sum()), len(tokenizer))]


def test_intervals_resample_rows_not_tokens():
    alike, unlike = MaskedTokens(), MaskedTokens()
    alike.update(np.array([[20.0, 5, 10]] * 40), np.zeros((40, 1)))
    unlike.update(np.array([[40.0, 5, 10], [0.0, 5, 10]] * 20), np.zeros((40, 1)))
    same, wide = alike.compute()["pseudo_perplexity"], unlike.compute()["pseudo_perplexity"]
    assert same.value == wide.value == pytest.approx(math.exp(2))
    assert same.low == same.high == same.value
    assert wide.low < wide.value < wide.high


def test_the_accumulator_keeps_three_numbers_a_row_and_drops_rows_without_a_mask():
    metric = MaskedTokens()
    metric.update(np.array([[3.0, 1, 2], [0.0, 0, 0]]), np.zeros((2, 512)))
    assert sum(part.size for parts in metric._columns.values() for part in parts) == 3
    with pytest.raises(UserError, match="not finite"):
        metric.update(np.array([[math.nan, 1, 2]]), np.zeros((1, 4)))


def test_pseudo_perplexity_falls(mlm_run):
    report = json.loads((mlm_run / "report.json").read_text("utf-8"))
    seen = [row["eval_pseudo_perplexity"] for row in report["history"] if "eval_pseudo_perplexity" in row]
    assert report["headline"] == "pseudo_perplexity"
    assert report["valid"]["pseudo_perplexity"]["value"] == pytest.approx(min(seen), rel=1e-3)
    assert report["test"]["pseudo_perplexity"]["value"] < 0.7 * seen[0]


# --- the folder ---


def test_the_encoder_has_changed_and_only_a_classifiers_own_parts_are_missing(mlm_run, bert):
    assert encoder_hash(mlm_run) != encoder_hash(bert)
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(mlm_run, output_loading_info=True, num_labels=2)
    parts = ("classifier.", "bert.pooler.")
    assert info["missing_keys"]
    assert all(name.startswith(parts) for name in info["missing_keys"])
    assert not info["mismatched_keys"]
    stored = load_file(mlm_run / "model.safetensors")
    assert torch.equal(
        model.bert.encoder.layer[1].output.dense.weight, stored["bert.encoder.layer.1.output.dense.weight"]
    )


def test_another_recipe_finds_the_whole_encoder_in_the_folder(mlm_run, reviews_csv, tmp_path):
    recipe = Recipe(model=str(mlm_run), data=reviews_csv, output_dir=str(tmp_path / "o"), disable_tqdm=True)
    fresh = recipe.prepare().part.pretrained.fresh
    assert fresh
    assert all(name.startswith(("classifier.", "bert.pooler.")) for name in fresh)


def test_the_folder_fills_masks_in_a_plain_pipeline_and_says_nothing_of_labels(mlm_run):
    fill = transformers.pipeline("fill-mask", model=str(mlm_run))
    assert fill("good [MASK] film")[0]["token_str"]
    config = json.loads((mlm_run / "config.json").read_text("utf-8"))
    assert config.get("problem_type") is None
    assert "recipes/text_cls.py --model" in (mlm_run / "README.md").read_text("utf-8")


def test_a_folder_of_a_pre_training_is_not_asked_for_labels(mlm_run):
    with pytest.raises(UserError, match=r"predicts no label. Pass it to recipes/text_cls.py as --model"):
        load(mlm_run)


def test_an_adapter_is_merged_into_the_model_that_is_written(bert, texts, tmp_path):
    settings = QUICK | {"strategy": "LoRA(r=4)", "output_dir": str(tmp_path / "o")}
    report = Recipe(task="fill-mask", model=bert, data=texts, **settings).run()
    assert not report.adapter
    assert not (tmp_path / "o" / "adapter_config.json").exists()
    assert encoder_hash(tmp_path / "o") != encoder_hash(bert)
    _, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "o", output_loading_info=True)
    assert not info["missing_keys"]
    first = next(row["eval_pseudo_perplexity"] for row in report.history if "eval_pseudo_perplexity" in row)
    assert report.test["pseudo_perplexity"].value < 1.1 * first


def test_a_checkpoint_without_a_head_is_told_of_in_a_note(bert, texts, tmp_path):
    model = transformers.AutoModel.from_pretrained(bert, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "body")
    shutil.copytree(bert, tmp_path / "body", dirs_exist_ok=True, ignore=shutil.ignore_patterns("model*", "config.json"))
    recipe = Recipe(task="fill-mask", model=str(tmp_path / "body"), data=texts, output_dir=str(tmp_path / "o"))
    (note,) = (check for check in recipe.prepare().part.splits.checks if check.name == "head")
    assert "start at random" in note.sentence


def test_a_label_column_is_not_read(bert, reviews_csv, tmp_path):
    run = Recipe(task="fill-mask", model=bert, data=reviews_csv, output_dir=str(tmp_path / "o")).prepare()
    assert run.part.splits.train.column_names == ["text"]
    assert run.part.splits.columns == {"text": "text"}
    assert run.part.splits.labels.names == []


# --- words of a new domain ---


def test_new_words_are_the_most_frequent_that_the_tokenizer_splits(tokenizer):
    a, b = SPLIT
    found = [f"{a} good {a.upper()}", f"{b} {a} bad", f"{b} zyx good good good good"]
    assert new_words(tokenizer, found, 2) == [a, b]
    assert new_words(tokenizer, found, 9) == [a, b, "zyx"]


def test_the_embedding_of_a_new_word_is_the_mean_of_its_pieces(bert):
    tokenizer, model = tokenizer_of_pieces(), transformers.AutoModelForMaskedLM.from_pretrained(bert)
    old, rows = model.get_input_embeddings().weight.detach().clone(), len(tokenizer)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(torch.arange(rows, dtype=torch.float32))
    parts = [pieces(tokenizer, word) for word in SPLIT]
    extend(model, tokenizer, list(SPLIT))
    new = model.get_input_embeddings().weight
    assert new.shape[0] == len(tokenizer) == rows + 2 == model.config.vocab_size
    assert torch.equal(new[:rows], old)
    for word, part in zip(SPLIT, parts, strict=True):
        (one,) = pieces(tokenizer, word)
        assert torch.allclose(new[one], old[part].mean(0), atol=1e-7)
        assert model.get_output_embeddings().bias[one].item() == pytest.approx(float(np.mean(part)))
    assert model.get_output_embeddings().weight is new
    assert tokenizer(f"Good {SPLIT[0].upper()}s", add_special_tokens=False)["input_ids"][1] != one  # no whole word


@pytest.mark.parametrize("kind", ["byte-level BPE", "unigram"])
def test_added_words_are_found_by_tokenizers_to_which_a_space_belongs(kind):
    special = ["<pad>", "<unk>", "<mask>"]
    texts = [text for text, _ in testing.sentences(200)]
    if kind == "unigram":
        backend = tokenizers.SentencePieceUnigramTokenizer()
        backend.train_from_iterator(texts, vocab_size=60, special_tokens=special, unk_token="<unk>")
    else:
        backend = tokenizers.ByteLevelBPETokenizer()
        backend.train_from_iterator(texts, vocab_size=270, special_tokens=special)
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, **names)
    words = new_words(tokenizer, texts, 2)
    assert all(len(pieces(tokenizer, word)) > 1 for word in words)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=0, **small)
    extend(transformers.RobertaForMaskedLM(config), tokenizer, words)
    assert [pieces(tokenizer, word) for word in words] == [[len(tokenizer) - 2], [len(tokenizer) - 1]]
    assert pieces(tokenizer, f"{words[0]}x")[0] != len(tokenizer) - 2


def test_added_words_are_in_the_folder(bert, texts, tmp_path):
    settings = QUICK | {"max_steps": 2, "add_tokens": 2, "output_dir": str(tmp_path / "o")}
    Recipe(task="fill-mask", model=bert, data=texts, **settings).run()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "o")
    assert [len(pieces(tokenizer, word)) for word in SPLIT] == [1, 1]
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(tmp_path / "o", output_loading_info=True)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert not info["mismatched_keys"]


# --- what is hidden in an image ---


@pytest.mark.parametrize(("side", "unit", "share", "hidden"), [(8, 1, 0.75, 48), (14, 2, 0.6, 120), (8, 2, 0.5, 32)])
def test_exactly_the_share_of_squares_is_hidden(side, unit, share, hidden):
    mask = patch_mask(side, unit, share)
    assert int(mask.sum()) == hidden
    squares = mask.view(side // unit, unit, side // unit, unit).transpose(1, 2).reshape(-1, unit * unit)
    assert torch.equal(squares.any(1), squares.all(1))
    assert not torch.equal(mask, patch_mask(side, unit, share))


class Guess(nn.Module):
    """Stands for a model whose guess does not depend on what it sees."""

    config = SimpleNamespace(norm_pix_loss=False)

    def forward(self, pixel_values, **others):
        return {"reconstruction": torch.zeros(2, 3, 8, 8), "logits": torch.zeros(2, 4, 48)}

    def patchify(self, pixels):
        return pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(len(pixels), 4, 48)


@pytest.mark.parametrize("pretext", [simmim, mae])
def test_the_loss_is_that_of_hidden_patches_alone(pretext):
    model = Guess()
    labels = torch.tensor([[0, -100, -100, -100], [-100, -100, 0, 0]])
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = pretext(model, {"pixel_values": pixels, "labels": labels})
    seen, hidden = pixels.clone(), pixels.clone()
    seen[0, :, :4, 4:] += 7  # the second patch of the first image, which is not hidden
    hidden[0, :, :4, :4] += 7
    assert torch.equal(pretext(model, {"pixel_values": seen, "labels": labels})["loss"], before["loss"])
    assert pretext(model, {"pixel_values": hidden, "labels": labels})["loss"] > before["loss"] + 1
    assert before["logits"][:, 1].tolist() == [1, 2]
    assert before["loss"] == pytest.approx((before["logits"][:, 0].sum() / 3).item())


def test_a_checkpoint_gives_back_all_weights_of_a_model_whose_file_names_them_otherwise(vits, tmp_path):
    model = transformers.AutoModelForImageClassification.from_pretrained(vits["vit"])
    trainer = Trainer(model, transformers.TrainingArguments(str(tmp_path), use_cpu=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.save_model(str(tmp_path / "kept"))
    assert not set(load_file(tmp_path / "kept" / "model.safetensors")) <= set(before)
    trainer.state.best_model_checkpoint = str(tmp_path / "kept")
    for take_up in (trainer._load_best_model, lambda: trainer._load_from_checkpoint(str(tmp_path / "kept"))):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        take_up()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "method"), [("vit", "simmim"), ("mae", "mae")])
def test_the_loss_is_transformers_own(kind, method, vits):
    task = MaskedImage(mask=0.75)
    model = task.build(Source(vits[kind]), Labels("pretext", [])).model.eval()
    assert task.chosen == method
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([torch.tensor(task._hide(image, train=False)) for image in pixels])
    asked = {"bool_masked_pos": labels == 0} if method == "simmim" else {"noise": (labels == 0).float()}
    with torch.no_grad():
        ours = task.forward(model, {"pixel_values": pixels, "labels": labels})["loss"].item()
        theirs = model(pixels, **asked)
    assert ours == pytest.approx(theirs.loss.item(), rel=1e-5)
    if method == "mae":
        assert torch.equal(theirs.mask.bool(), labels == 0)


def test_masks_of_valid_are_those_of_the_image_and_masks_of_train_are_not(vits):
    task = MaskedImage()
    task.build(Source(vits["vit"]), Labels("pretext", []))
    one, other = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    assert task._hide(one, train=False) == task._hide(one, train=False) != task._hide(other, train=False)
    assert task._hide(one, train=True) != task._hide(one, train=True)


def test_contrast_has_its_closed_forms():
    alike = torch.ones(4, 2, 8)
    assert contrast(alike, 0.5).tolist() == pytest.approx([math.log(7)] * 4)
    orthogonal = torch.eye(8)[:4, None].expand(4, 2, 8)
    assert contrast(orthogonal, 0.5).tolist() == pytest.approx([math.log(1 + 6 * math.exp(-2))] * 4)
    apart = torch.eye(8).view(4, 2, 8)
    assert contrast(apart, 0.5).tolist() == pytest.approx([math.log(7)] * 4)


def test_an_encoder_of_mae_is_a_plain_vit(vits):
    mae = transformers.ViTMAEForPreTraining.from_pretrained(vits["mae"]).eval()
    mae.vit.config.mask_ratio = 0.0
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = mae.vit(pixels, noise=torch.arange(64.0).expand(2, -1)).last_hidden_state
        ours = plain_vit(mae).eval()(pixels).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)


def body(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a saved image encoder, by name, without heads, decoders and mask tokens."""
    left_out = ("classifier", "decoder", "timm_model.head", "timm_model.fc", "fc.", "head.")
    tensors = load_file(Path(folder) / "model.safetensors")
    plain = {name.removeprefix("vit."): value for name, value in tensors.items() if name.endswith("weight")}
    return {name: value for name, value in plain.items() if not name.startswith(left_out)}


RUNS = {
    "simmim": ("vit", []),
    "mae of a ViT": ("vit", ["--method", "mae"]),
    "mae": ("mae", []),
    "simmim with LoRA": ("vit", ["--strategy", "LoRA(r=2)"]),
    "simclr": ("hftl:glyphs", []),
    "simclr of a ViT": ("vit", ["--method", "simclr"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_images_taught_is_taken_up_by_an_image_classifier(name, vits, colour_folder, tmp_path):
    model, flags = RUNS[name]
    path = vits.get(model, model)
    flags = [*flags, "--num_train_epochs", "2", "--learning_rate", "0.002", "--per_device_train_batch_size", "16"]
    flags += ["--max_train_samples", "48", "--eval_on_start", "--disable_tqdm", "--output_dir", str(tmp_path / "o")]
    launch("mim.py", "--model", path, "--data", colour_folder, *flags)
    report = json.loads((tmp_path / "o" / "report.json").read_text("utf-8"))
    seen = [row["eval_pretext_loss"] for row in report["history"] if "eval_pretext_loss" in row]
    assert report["valid"]["pretext_loss"]["value"] < seen[0]
    auto = transformers.AutoModelForImageClassification
    classifier, info = auto.from_pretrained(tmp_path / "o", output_loading_info=True, num_labels=2)
    head = ("classifier.", "timm_model.fc.", "timm_model.head.")
    assert info["missing_keys"]
    assert all(name.startswith(head) for name in info["missing_keys"])
    assert not info["mismatched_keys"]
    before, after = body(resolve(path)), body(tmp_path / "o")
    assert len(before) > 4
    assert before.keys() <= after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    classifier.save_pretrained(tmp_path / "again")
    again = body(tmp_path / "again")
    assert all(torch.equal(after[name], again[name]) for name in before)


def test_images_without_any_class_are_data_enough(vits, colour_folder, tmp_path):
    for i, file in enumerate(sorted(Path(colour_folder).rglob("*.png"))[:30]):
        (tmp_path / "loose").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "loose" / f"{i}.png")
    settings = {"model": vits["vit"], "data": str(tmp_path / "loose"), "output_dir": str(tmp_path / "o")}
    splits = Recipe(task="image-feature-extraction", **settings).prepare().part.splits
    assert [len(split) for split in (splits.train, splits.valid, splits.test)] == [24, 3, 3]


# --- one command for both runs, and what is refused ---


def test_another_recipe_takes_the_folder_as_its_model(bert, texts, reviews_csv, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    settings = QUICK | {"max_steps": 3}
    Recipe(task="fill-mask", model=bert, data=texts, output_dir=str(first), **settings).run()
    report = Recipe(model=str(first), data=reviews_csv, max_steps=3, output_dir=str(second), disable_tqdm=True).run()
    digest = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert (report.revision, report.test["accuracy"].n) == (f"sha256:{digest}", 16)
    assert json.loads((second / "report.json").read_text("utf-8"))["model"] == "./first"  # its folder is not told


REFUSED = {
    "a strategy for two domains": (["--strategy", "DANN"], "adapts what labels taught"),
    "mask of 0": (["--mask", "0"], "--mask expected a number above 0 and below 1; 0.0 came"),
    "mask of 1": (["--mask", "1"], "--mask expected a number above 0 and below 1; 1.0 came"),
    "negative words": (["--add_tokens", "-1"], "--add_tokens expected a whole number of 0 or more"),
    "a method for images": (
        ["--method", "mae"],
        "--method belongs to image-feature-extraction; ",
    ),
    "a label": (["--label", "text"], "--label belongs to image-classification, "),
    "packing": (["--packing"], "--packing belongs to text-classification and token-classification; "),
    "smoothed labels": (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor is for labels"),
    "a prompt": (["--strategy", "PEFT('PREFIX_TUNING', num_virtual_tokens=2)"], "cannot be merged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(name, bert, texts, tmp_path, capsys):
    flags, said = REFUSED[name]
    with pytest.raises(SystemExit) as stopped:
        launch("mlm.py", "--model", bert, "--data", texts, "--output_dir", str(tmp_path / "o"), *flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "o").exists()


def test_a_tokenizer_without_a_mask_is_refused(bert, texts, tmp_path, capsys):
    folder = shutil.copytree(bert, tmp_path / "bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(SystemExit) as stopped:
        launch("mlm.py", "--model", str(folder), "--data", texts, "--output_dir", str(tmp_path / "o"))
    assert stopped.value.code == 2
    assert "has no mask token" in capsys.readouterr().err


IMAGES_REFUSED = {
    "mask of 1.5": ("vit", ["--mask", "1.5"], "--mask expected a number above 0 and below 1; 1.5 came"),
    "a mask that hides all": ("vit", ["--mask", "0.999"], "hides none or all of them"),
    "an unknown method": ("vit", ["--method", "simmin"], "Did you mean 'simmim'"),
    "hidden patches of a CNN": ("hftl:glyphs", ["--method", "simmim"], "has no patches to hide"),
    "MAE of a CNN": ("hftl:glyphs", ["--method", "mae"], "MAE needs a ViT"),
    "a mask for views": ("hftl:glyphs", ["--mask", "0.5"], "SimCLR hides nothing"),
    "whole words": (
        "vit",
        ["--whole_words"],
        "--whole_words belongs to fill-mask; ",
    ),
}


@pytest.mark.parametrize("name", IMAGES_REFUSED)
def test_what_cannot_be_with_images_is_refused_in_one_sentence(name, vits, colour_folder, tmp_path, capsys):
    model, flags, said = IMAGES_REFUSED[name]
    where = ["--data", colour_folder, "--output_dir", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stopped:
        launch("mim.py", "--model", vits.get(model, model), *where, *flags)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_benchmark_tells_the_gain_seed_by_seed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))  # as for a script
    table = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "pretraining.py"))["table"]
    run = {"data": "acl_arc", "f1_macro": 0.4, "rows": 64, "n": 139, "seconds": 30, "pretraining": []}
    stage = [{"before": 51855, "test": 3454.2}]
    runs = [run | {"arm": "none", "seed": seed, "accuracy": value} for seed, value in ((1, 0.5), (2, 0.6))]
    runs += [run | {"arm": "TAPT", "seed": s, "accuracy": a, "pretraining": stage} for s, a in ((2, 0.55), (1, 0.52))]
    none, tapt = table(runs).splitlines()[2:]
    assert "| acl_arc | none | 0.550 (0.500 to 0.600) | 0.400 |  |  | 64 | 139 | 2 |" in none
    assert "| +0.020, -0.050 | 51,855, 3,454.2 |" in tapt
