"""PEFT's methods on each family: what works reloads bit for bit in plain peft, the rest is refused before training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, adaptable, batch
from peft import PeftModel
from PIL import Image
from torch import nn

import hftl
from hftl import Recipe, main
from hftl.errors import UserError
from hftl.models.anatomy import Anatomy, anatomy
from hftl.settings.spec import build, spell
from hftl.strategies.base import Strategy
from hftl.strategies.peft import PEFT, DoRA, LoRA

HEADS = ("classifier.", "score.", "classification_head.", "pooler.", "pre_classifier.", "fc.", "head.")

# On bert, vit and a timm resnet18: whether the method works (1) or is refused (0), as found by trial on PEFT 0.21.2.
# Options are given where the defaults are made for wide layers.
MATRIX: dict[str, tuple[dict, int, int, int]] = {
    "LORA": ({}, 1, 1, 1),
    "BOFT": ({}, 1, 1, 1),
    "HIRA": ({}, 1, 1, 1),
    "HRA": ({}, 1, 1, 1),
    "IA3": ({}, 1, 1, 1),
    "LN_TUNING": ({}, 1, 1, 1),
    "LOHA": ({}, 1, 1, 1),
    "LOKR": ({}, 1, 1, 1),
    "ADAMSS": ({}, 1, 1, 0),
    "BEFT": ({}, 1, 1, 0),
    "C3A": ({"block_size": 16}, 1, 1, 0),
    "DEFT": ({}, 1, 1, 0),
    "DELORA": ({}, 1, 1, 0),
    "FOURIERFT": ({}, 1, 1, 0),
    "FROD": ({}, 1, 1, 0),
    "GLORA": ({}, 1, 1, 0),
    "GRALORA": ({}, 1, 1, 0),
    "LILY": ({}, 1, 1, 0),
    "MISS": ({"r": 8}, 1, 1, 0),
    "OFT": ({}, 1, 1, 0),
    "OSF": ({}, 1, 1, 0),
    "PEANUT": ({}, 1, 1, 0),
    "PSOFT": ({}, 1, 1, 0),
    "PVERA": ({}, 1, 1, 0),
    "RANDLORA": ({}, 1, 1, 0),
    "ROAD": ({"group_size": 8}, 1, 1, 0),
    "SHIRA": ({"r": 4}, 1, 1, 0),
    "SUPERTUNING": ({}, 1, 1, 0),
    "TINYLORA": ({}, 1, 1, 0),
    "UNILORA": ({}, 1, 1, 0),
    "VBLORA": ({"vector_length": 8, "num_vectors": 16}, 1, 1, 0),
    "VERA": ({}, 1, 1, 0),
    "WAVEFT": ({"n_frequency": 64}, 1, 1, 0),
    "PROMPT_TUNING": ({"num_virtual_tokens": 4}, 1, 0, 0),
    "PREFIX_TUNING": ({"num_virtual_tokens": 4}, 1, 0, 0),
    "P_TUNING": ({"num_virtual_tokens": 4}, 1, 0, 0),
    "ADALORA": ({"total_step": 10}, 0, 0, 0),
    "ADAPTION_PROMPT": ({}, 0, 0, 0),
    "CARTRIDGE": ({}, 0, 0, 0),
    "CPT": ({}, 0, 0, 0),
    "MULTITASK_PROMPT_TUNING": ({}, 0, 0, 0),
    "POLY": ({}, 0, 0, 0),
    "SHADOW": ({}, 0, 0, 0),
    "TRAINABLE_TOKENS": ({"token_indices": [1, 2]}, 0, 0, 0),
    "XLORA": ({}, 0, 0, 0),
}
CELLS = [
    pytest.param(method, options, family, works, id=f"{method}-{family}-{'works' if works else 'is refused'}")
    for method, (options, *row) in MATRIX.items()
    for family, works in zip(("bert", "vit", "timm-resnet18"), row, strict=True)
]
PROMPTED = {  # family: prompt tuning works, prefix tuning works
    "roberta": (1, 1),
    "distilbert": (0, 0),  # its config calls the width `dim`, which PEFT does not read
    "deberta-v2": (1, 0),  # it takes no past keys
    "electra": (0, 1),  # its embeddings are narrower than its blocks, and PEFT makes the prompt as wide as the blocks
    "modernbert": (1, 0),  # it takes past keys and ignores them
    "albert": (0, 0),
    "t5": (0, 1),
    "bart": (0, 1),
    "gpt2": (1, 1),
    "llama": (1, 1),
}


def head(model: nn.Module) -> list[str]:
    """The parameters that a checkpoint of the bare encoder would not supply."""
    return [name for name, _ in model.named_parameters() if any(f".{part}" in f".{name}" for part in HEADS)]


def base(family: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return adaptable(family).eval()


def reloaded(family: str, state: dict[str, torch.Tensor], fresh: list[str], folder: Path) -> nn.Module:
    """The adapter in plain peft, on the same base with another random head."""
    model = base(family, seed=1)
    own = model.state_dict()
    model.load_state_dict({name: own[name] if name in fresh else tensor for name, tensor in state.items()})
    return PeftModel.from_pretrained(model, folder).eval()


def logits(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch(family)).logits


def trains_and_reloads(strategy: Strategy, family: str, folder: Path) -> tuple[nn.Module, Anatomy]:
    """One step of SGD on what the rates train; frozen weights stay, and peft alone gives the same logits."""
    model = base(family)
    fresh = head(model)
    assert fresh
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = anatomy(model, fresh)
    wrapped = strategy.prepare(model, found).eval()
    asked = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    rated = {name for name, _ in wrapped.named_parameters() if strategy.rate(found.place(name), 0.5) > 0}
    assert rated == asked
    before = {name: parameter.clone() for name, parameter in wrapped.named_parameters()}
    wrapped(**batch(family)).logits.square().sum().backward()
    torch.optim.SGD([dict(wrapped.named_parameters())[name] for name in sorted(rated)], lr=0.1).step()
    moved = {name for name, parameter in wrapped.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= rated
    assert any(found.place(name).fresh for name in moved)
    after = logits(wrapped, family)
    wrapped.save_pretrained(folder)
    assert torch.equal(logits(reloaded(family, state, fresh, folder), family), after)
    return wrapped, found


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_fits_every_family_and_reloads_in_plain_peft(family: str, tmp_path: Path) -> None:
    trains_and_reloads(LoRA(r=2), family, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("family", ["bert", "gpt2", "swin", "timm-efficientnet_b0"])
def test_dora_trains_a_magnitude_for_each_target(family: str, tmp_path: Path) -> None:
    wrapped, found = trains_and_reloads(DoRA(r=2), family, tmp_path)
    magnitudes = [name for name, _ in wrapped.named_parameters() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == len(found.targets())


@pytest.mark.sweep
@pytest.mark.parametrize(("method", "options", "family", "works"), CELLS)
def test_each_method_works_or_is_refused(method: str, options: dict, family: str, works: int, tmp_path: Path) -> None:
    strategy = PEFT(method, **options)
    if works:
        trains_and_reloads(strategy, family, tmp_path)
        return
    model = base(family)
    with pytest.raises(UserError, match=method) as refusal:
        strategy.prepare(model, anatomy(model, head(model)))
    assert "Use LoRA" in str(refusal.value) or "use LoRA" in str(refusal.value)


def test_the_matrix_has_every_method_of_peft() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert set(MATRIX) == {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}


@pytest.mark.sweep
@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("family", PROMPTED)
def test_prompts_work_where_the_model_reads_them(family: str, method: str, tmp_path: Path) -> None:
    strategy = PEFT(method, num_virtual_tokens=3)
    if PROMPTED[family][method == "PREFIX_TUNING"]:
        trains_and_reloads(strategy, family, tmp_path)
    else:
        model = base(family)
        with pytest.raises(UserError, match=f"{method}.* does not fit {type(model).__name__}"):
            strategy.prepare(model, anatomy(model, head(model)))


@pytest.mark.parametrize("strategy", [LoRA(), DoRA(), PEFT("VERA"), PEFT("IA3")])
def test_a_new_adapter_leaves_the_logits_as_they_were(strategy: Strategy) -> None:
    model = base("bert")
    before = logits(model, "bert")
    wrapped = strategy.prepare(model, anatomy(model, head(model))).eval()
    assert torch.allclose(logits(wrapped, "bert"), before, rtol=0, atol=1e-6 if isinstance(strategy, DoRA) else 0)


@pytest.mark.parametrize("family", ["bert", "gpt2", "timm-resnet18"])
def test_lora_trains_r_times_inputs_plus_outputs_and_the_head(family: str) -> None:
    model = base(family)
    fresh = head(model)
    found = anatomy(model, fresh)
    expected = sum(dict(model.named_parameters())[name].numel() for name in fresh)
    for name in found.targets():
        weight = model.get_submodule(name).weight
        if weight.ndim == 4:  # a convolution's A keeps the window, its B is 1 x 1
            expected += 4 * (weight[0].numel() + weight.shape[0])
        else:
            expected += 4 * (weight.shape[0] + weight.shape[1])
    wrapped = LoRA(r=4).prepare(model, found)
    assert sum(p.numel() for p in wrapped.parameters() if p.requires_grad) == expected


def test_a_fresh_pooler_is_trained_and_saved_with_the_adapter(tmp_path: Path) -> None:
    wrapped, _ = trains_and_reloads(LoRA(), "bert", tmp_path)
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert "base_model.model.bert.pooler.dense.modules_to_save.default.weight" in trained
    assert "base_model.model.classifier.modules_to_save.default.weight" in trained


def test_a_pooler_that_came_with_the_checkpoint_stays_frozen() -> None:
    model = base("bert")
    wrapped = LoRA().prepare(model, anatomy(model, ["classifier.weight", "classifier.bias"]))
    assert not [name for name, p in wrapped.named_parameters() if "pooler" in name and p.requires_grad]


def test_without_fresh_modules_nothing_is_saved_beside_the_adapter() -> None:
    model = base("bert")
    wrapped = LoRA().prepare(model, anatomy(model))
    assert not [name for name, _ in wrapped.named_parameters() if "modules_to_save" in name]


def test_of_a_module_that_is_fresh_in_part_only_that_part_trains() -> None:
    model = base("vit")
    found = anatomy(model, ["vit.embeddings.position_embeddings", "classifier.weight", "classifier.bias"])
    strategy = LoRA()
    wrapped = strategy.prepare(model, found)
    copies = [name for name, _ in wrapped.named_parameters() if "embeddings.modules_to_save" in name]
    rated = [name for name in copies if strategy.rate(found.place(name), 0.0)]
    assert len(copies) > 1
    assert [name.rpartition(".")[2] for name in rated] == ["position_embeddings"]
    assert not logits(wrapped.eval(), "vit").isnan().any()


def test_targets_can_be_named_by_their_endings() -> None:
    model = base("bert")
    wrapped = LoRA(targets=("query", "value")).prepare(model, anatomy(model, head(model)))
    adapted = {
        name.partition(".lora_")[0].rpartition(".")[2] for name, _ in wrapped.named_parameters() if "lora_" in name
    }
    assert adapted == {"query", "value"}


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank() -> None:
    for strategy, scale in ((LoRA(r=4, alpha=8), 2.0), (LoRA(r=4, alpha=8, rslora=True), 4.0)):
        model = base("bert")
        strategy.prepare(model, anatomy(model))
        assert model.bert.encoder.layer[0].output.dense.scaling["default"] == scale


def test_biases_train_where_the_method_is_told_so() -> None:
    strategy = PEFT("LORA", bias="lora_only")
    model = base("bert")
    found = anatomy(model, head(model))
    wrapped = strategy.prepare(model, found)
    rated = {name for name, _ in wrapped.named_parameters() if strategy.rate(found.place(name), 0.0)}
    assert rated == {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert any(name.endswith("base_layer.bias") for name in rated)


def test_a_rate_multiplies_with_the_depth_of_the_hosting_block() -> None:
    model = base("bert")
    found = anatomy(model, head(model))
    wrapped = LoRA().prepare(model, found)
    depths = {found.place(name).depth for name, _ in wrapped.named_parameters() if ".lora_" in name}
    assert depths == {1, 2, 3}


def test_mobilenet_with_tensorflow_padding_is_refused_with_another_way_to_go() -> None:
    model = FAMILIES["mobilenet_v2"](3)
    with pytest.raises(UserError, match=r"tf_padding.*timm's MobileNet"):
        LoRA().prepare(model, anatomy(model))


@pytest.mark.parametrize(
    "strategy", [LoRA(), LoRA(r=16, alpha=32.0, targets=("query",)), DoRA(r=4), PEFT("VERA", r=64), PEFT("IA3")]
)
def test_the_notation_round_trips(strategy: Strategy) -> None:
    assert build(spell(strategy), Strategy.known()) == [strategy]
    assert hash(build(spell(strategy), Strategy.known())[0]) == hash(strategy)


def test_options_are_hashable_whatever_they_hold() -> None:
    strategy = PEFT("LORA", target_modules=["query", "value"])
    assert hash(strategy) == hash(PEFT("lora", target_modules=("query", "value")))
    assert build(spell(strategy), Strategy.known()) == [strategy]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PEFT("VERRA"), "Did you mean 'VERA'"),
        (lambda: PEFT("VERA", rank=4), "has no option 'rank'"),
        (lambda: LoRA(r=0), r"whole number from 1 up.*Try LoRA\(r=8\)"),
        (lambda: DoRA(dropout=1.0), r"DoRA\(dropout\) takes"),
    ],
)
def test_a_bad_argument_is_refused_at_once(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (LoRA(targets=("querry",)), "Did you mean 'query'"),
        (PEFT("ROAD"), "divisible by group_size"),
        (PEFT("PROMPT_TUNING"), "PROMPT_TUNING"),
        (PEFT("CPT"), "made for generation"),
    ],
)
def test_what_peft_refuses_is_said_in_one_sentence(strategy: Strategy, sentence: str) -> None:
    model = base("bert")
    with pytest.raises(UserError, match=sentence) as refusal:
        strategy.prepare(model, anatomy(model, head(model)))
    assert "\n" not in str(refusal.value)


@pytest.mark.sweep
@pytest.mark.parametrize("strategy", ["LoRA(r=16)", "DoRA(r=4)"])
def test_the_command_that_a_run_on_the_bundled_network_offers_next_works(strategy, tmp_path):
    """Its last blocks have dilated convolutions, whose dilation peft's adapters do not take."""
    words = ["--strategy", strategy, "--max_steps", "2", "--eval_strategy", "no", "--output_dir", str(tmp_path / "run")]
    main(Recipe(task="image-classification", model="hftl:glyphs", data="hftl:digits"), words)
    assert len(hftl.load(tmp_path / "run")(Image.new("L", (8, 8)))["scores"]) == 10
    with pytest.raises(UserError, match="dilation of 2"):
        Recipe(
            task="image-classification",
            model="hftl:glyphs",
            data="hftl:digits",
            strategy="LoRA(r=4, targets=('conv2',))",
            output_dir=str(tmp_path / "aimed"),
        ).prepare()
