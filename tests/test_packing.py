"""Packed and padded texts give one loss and one gradient, or the model is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.masking_utils import bidirectional_mask_function

from hftl import Recipe, load
from hftl.errors import UserError
from hftl.models import packed
from hftl.models.anatomy import anatomy
from hftl.models.packing import Packing
from hftl.strategies.peft import LoRA
from hftl.train.trainer import Trainer

LENGTHS = (3, 12, 7, 3, 5)
MORE = {
    "xlm-roberta": families.TEXT["roberta"],
    "modernbert": families.TEXT["modernbert"] | {"local_attention": 4},  # shorter than the texts
    "mistral": families.TEXT["llama"] | {"sliding_window": 4},
    "mpnet": families.TEXT["roberta"],
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "modernbert")
DECODERS = ("gpt2", "llama", "qwen2", "mistral")
REFUSED = {
    "deberta-v2": "attention or its masks are its own",
    "mpnet": "attention or its masks are its own",
    "albert": "no stack of blocks",
    "t5": "an encoder with a decoder",
    "bart": "an encoder with a decoder",
}


def build(kind: str) -> transformers.PreTrainedModel:
    """A tiny classifier in eval mode, its weights so large that it matters which token sees which."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(families.TEXT | MORE)[kind], num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


def ragged(model: transformers.PreTrainedModel, left: bool = False) -> dict[str, torch.Tensor]:
    """Five texts of unlike length, padded."""
    generator = torch.Generator().manual_seed(0)
    width = max(LENGTHS)
    ids = torch.randint(3, families.VOCAB, (len(LENGTHS), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    ids = ids.masked_fill(~mask, getattr(model.config, "pad_token_id", None) or 0)
    if left:
        ids, mask = ids.flip(1), mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([0, 1, 2, 0, 1])}


def outcome(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss, logits and gradients by name."""
    model.zero_grad()
    found = model(**batch)
    found.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {"loss": found.loss.detach(), "logits": found.logits.detach()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """To `tolerance` of the largest value of each, or of 1 where that is larger."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        far = (found[name] - value).abs().max() / value.abs().max().clamp(min=1)
        assert far <= tolerance, f"{name} is {far:.2g} off"


def widths(model: torch.nn.Module, packing: Packing, batch: dict[str, torch.Tensor]) -> set[tuple[int, ...]]:
    """Batch and length that the linear layers of the blocks see."""
    seen: set[tuple[int, ...]] = set()
    layers = [m for block in packing.blocks for m in block.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.add(tuple(args[0].shape[:2]))) for m in layers]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def started(model: torch.nn.Module) -> Packing:
    """The model's packing, begun."""
    packing = Packing(model, anatomy(model))
    packing.start()
    return packing


@pytest.fixture(params=["by length", "together"])
def attention(request, monkeypatch) -> None:
    """Texts of one length attended to together, as on a CPU, or all in one call, as on a GPU."""
    if request.param == "together":
        real = packed.PackedRow
        monkeypatch.setattr(packed, "PackedRow", lambda *args, together: real(*args, together=True))


@pytest.mark.parametrize(
    ("kind", "left"),
    [(kind, False) for kind in (*ENCODERS, *DECODERS)] + [(kind, True) for kind in DECODERS],
    ids=lambda value: {True: "padded left", False: "padded right"}.get(value, value),
)
def test_packed_loss_logits_and_gradients_are_the_padded_ones(kind, left, attention):
    model = build(kind)
    batch = ragged(model, left)
    wanted = outcome(model, batch)
    packing = started(model)
    packing.check(batch)
    assert_same(outcome(model, batch), wanted)
    assert widths(model, packing, batch) == {(1, sum(LENGTHS))}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_pack_is_refused_and_left_as_it_was(kind):
    model = build(kind)
    batch = ragged(model)
    if kind == "t5":
        batch["input_ids"][:, 2] = 1  # its head reads the end token
    before, hooks = model.config._attn_implementation, sum(len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(UserError, match=f"--packing does not fit {type(model).__name__}: .*{REFUSED[kind]}"):
        started(model).check(batch)
    assert model.config._attn_implementation == before
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_a_head_that_reads_padding_is_refused():
    model = build("bert")
    with pytest.raises(UserError, match="different outputs"):
        started(model).check(ragged(model, left=True))  # its pooler reads the first place


def test_a_block_that_looks_across_texts_is_refused_though_the_head_hides_it():
    model = build("bert")
    torch.nn.init.zeros_(model.classifier.weight)
    packing = Packing(model, anatomy(model))
    model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda m, args, out: out.roll(1, dims=1))
    packing.start()
    with pytest.raises(UserError, match=r"different outputs, .* apart\. Leave it out"):
        packing.check(ragged(model))
    assert not packing.on


def test_a_block_that_wants_the_padded_shape_is_refused():
    model = build("bert")
    packing = Packing(model, anatomy(model))
    model.bert.encoder.layer[1].intermediate.register_forward_hook(lambda m, args, out: out.view(len(LENGTHS), -1, 64))
    packing.start()
    with pytest.raises(UserError, match="its blocks fail on packed texts"):
        packing.check(ragged(model))


def test_images_are_refused():
    model = families.image("vit")
    with pytest.raises(UserError, match="--packing is for texts"):
        Packing(model, anatomy(model))


def test_a_batch_without_padding_is_left_alone_and_the_check_waits_for_one_with_padding():
    model = build("modernbert")  # whose local mask is there without padding, too
    batch = families.batch("modernbert")
    packing = started(model)
    packing.check(batch)
    assert widths(model, packing, batch) == {(2, 8)}
    model.model.layers[1].mlp.Wi.register_forward_hook(lambda m, args, out: out.roll(1, dims=1))
    with pytest.raises(UserError, match="different outputs"):
        packing.check(ragged(model))


def test_a_batch_with_an_empty_text_is_left_alone():
    model = build("bert")
    batch = ragged(model)
    batch["attention_mask"][2] = 0
    packing = started(model)
    assert widths(model, packing, batch) == {(len(LENGTHS), max(LENGTHS))}


def test_stopped_packing_leaves_the_model_padded_and_can_start_again():
    model = build("bert")
    batch = ragged(model)
    packing = started(model)
    packing.stop()
    assert widths(model, packing, batch) == {(len(LENGTHS), max(LENGTHS))}
    packing.start()
    packing.start()
    assert widths(model, packing, batch) == {(1, sum(LENGTHS))}
    packing.stop()
    assert model.config._attn_implementation == "sdpa"


def test_the_check_leaves_modes_gradients_and_random_numbers_as_they_were():
    model = build("bert").train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    packing = started(model)
    state = torch.get_rng_state()
    packing.check(ragged(model))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_train_as_with_padding():
    model = build("bert")
    places = anatomy(model)
    wrapped = LoRA(r=2).prepare(model, places).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    batch = ragged(model)
    wanted = outcome(wrapped, batch)
    assert any("lora_A" in name for name in wanted)
    packing = Packing(wrapped, places)
    packing.start()
    packing.check(batch)
    assert_same(outcome(wrapped, batch), wanted)
    assert (1, sum(LENGTHS)) in widths(wrapped, packing, batch)


def test_a_block_run_again_for_its_gradient_packs_again():
    model = build("bert")
    batch = ragged(model)
    wanted = outcome(model, batch)
    model.activation_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    packing = started(model)
    packing.check(batch)
    assert_same(outcome(model, batch), wanted)


def test_attention_of_an_unknown_module_is_not_taken_for_causal():
    tokens = torch.arange(6) < torch.tensor([2, 6, 4])[:, None]
    mask = packed.make_mask(
        batch_size=3, q_length=6, kv_length=6, mask_function=bidirectional_mask_function, attention_mask=tokens
    )
    parts = torch.randn(3, 3, 2, 6, 4)
    row = mask.packed_row
    wanted = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)
    flat = [row.pack(part.transpose(1, 2).flatten(2)).unflatten(2, (2, 4)).transpose(1, 2) for part in parts]
    found, _ = packed.attend(torch.nn.Module(), *flat, mask)
    assert torch.allclose(found.flatten(2), row.pack(wanted.flatten(2)), atol=1e-6)


def test_packing_works_under_autocast():
    model = build("modernbert")
    batch = ragged(model)
    packing = Packing(model, anatomy(model))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(**batch).logits
        packing.start()
        packing.check(batch)
        found = model(**batch).logits
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def quiet_bert(folder: Path, source: str) -> str:
    """The tiny BERT without dropout, so that packed and padded runs draw the same random numbers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config = AutoConfig.from_pretrained(source, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    transformers.BertModel.from_pretrained(source, config=config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_packed_run_gives_the_losses_scores_and_predictions_of_a_padded_one(tiny_bert, reviews_csv, tmp_path):
    model, reports = quiet_bert(tmp_path / "model", tiny_bert), {}
    for packing in (False, True):
        reports[packing] = Recipe(
            model=model,
            data=reviews_csv,
            packing=packing,
            learning_rate=1e-3,
            per_device_train_batch_size=8,
            max_steps=12,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=6,
            disable_tqdm=True,
            output_dir=str(tmp_path / str(packing)),
        ).run()
    for kind in ("loss", "eval_loss"):
        padded, packed_ = ([e[kind] for e in reports[p].history if kind in e] for p in (False, True))
        assert len(padded) >= 2
        assert packed_ == pytest.approx(padded, abs=1e-4)
    assert reports[True].test["accuracy"].value == reports[False].test["accuracy"].value
    assert "packed" not in (tmp_path / "True" / "config.json").read_text()
    scores = [load(tmp_path / str(p))(["good film", "bad pan and a very dull book"]) for p in (False, True)]
    assert [one["score"] for one in scores[0]] == pytest.approx([one["score"] for one in scores[1]], abs=1e-4)


def test_an_unfit_model_is_refused_at_the_first_step(reviews_csv, tiny_bert, tmp_path):
    folder = tmp_path / "mpnet"
    build("mpnet").save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = Recipe(model=str(folder), data=reviews_csv, packing=True, max_steps=2, output_dir=str(tmp_path / "o"))
    with pytest.raises(UserError, match="--packing does not fit MPNetForSequenceClassification"):
        recipe.run()


def test_compiling_a_packed_model_is_refused(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), torch_compile=True, use_cpu=True, report_to="none")
    with pytest.raises(UserError, match="--packing and --torch_compile do not go together"):
        Trainer(build("bert"), args, packing=True)


def test_packing_rests_while_what_frozen_layers_gave_is_replayed(tiny_bert, reviews_csv, tmp_path):
    run = Recipe(
        model=tiny_bert,
        data=reviews_csv,
        strategy="LastLayers(1)",
        packing=True,
        per_device_train_batch_size=8,
        max_train_samples=32,
        num_train_epochs=2,
        disable_tqdm=True,
        output_dir=str(tmp_path / "o"),
    ).prepare()
    trainer, seen = run.trainer, []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((trainer.cache.replay is not None, trainer.packing.on))

    trainer.add_callback(Watch())
    run.train()
    assert set(seen) == {(True, False)}
    assert not trainer.packing.on
