"""Anatomy against what a forward pass does: the depths must follow the order in which parameters are used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from families import FAMILIES, TIMM, adaptable, batch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForSequenceClassification

from hftl.errors import UserError
from hftl.models.anatomy import Anatomy, Place, anatomy, rate_table, render_rates

BLOCKS = {
    **dict.fromkeys(
        ("bert", "roberta", "distilbert", "deberta-v2", "electra", "modernbert", "gpt2", "llama", "qwen2"), 3
    ),
    **dict.fromkeys(("vit", "deit", "dinov2", "beit"), 3),
    **{"t5": 5, "bart": 5, "swin": 4, "convnext": 4, "resnet": 5, "mobilenet_v2": 16, "segformer": 4},
    **{"timm-resnet18": 8, "timm-mobilenetv3_small_050": 12, "timm-vit_tiny_patch16_224": 3},
    **{"timm-convnext_atto": 6, "timm-efficientnet_b0": 16},
}
TOP = {
    "bert": ["bert.pooler", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "t5": ["transformer.decoder.final_layer_norm", "classification_head"],
    "bart": ["classification_head"],
    "gpt2": ["transformer.ln_f", "score"],
    "llama": ["model.norm", "score"],
    "vit": ["vit.layernorm", "classifier"],
    "swin": ["swin.layernorm", "classifier"],
    "mobilenet_v2": ["mobilenet_v2.conv_1x1", "classifier"],
    "timm-resnet18": ["timm_model.fc"],
    "timm-vit_tiny_patch16_224": ["timm_model.norm", "timm_model.head"],
    "timm-efficientnet_b0": ["timm_model.conv_head", "timm_model.bn2", "timm_model.classifier"],
}
STEM = {
    "bert": ["bert.embeddings"],
    "deberta-v2": ["deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"],
    "electra": ["electra.embeddings", "electra.embeddings_project"],
    "t5": ["transformer.shared"],
    "gpt2": ["transformer.wte", "transformer.wpe"],
    "vit": ["vit.embeddings"],
    "segformer": ["segformer.stages.0.patch_embeddings"],
    "timm-resnet18": ["timm_model.conv1", "timm_model.bn1"],
    "timm-vit_tiny_patch16_224": ["timm_model.cls_token", "timm_model.pos_embed", "timm_model.patch_embed"],
}
# The block by whose end the stem has run. In an encoder-decoder the decoder's embeddings run after the encoder's
# blocks, so for those it is the decoder's first block.
STEM_ENDS = {"t5": 4, "bart": 4}


class _Uses(TorchFunctionMode):
    """Records when each parameter is an argument of an operation that returns tensors: no name is read."""

    def __init__(self) -> None:
        self.clock = 0
        self.when: dict[int, list[int]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            self.clock += 1
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter):
                    self.when.setdefault(id(leaf), []).append(self.clock)
        return result


def regions(found: Anatomy, model: nn.Module, depth: int) -> list[str]:
    names = [name for name, _ in model.named_parameters() if found.place(name).depth == depth]
    return list(dict.fromkeys(found.region(name) for name in names))


def fresh_head(model: nn.Module, count: int = 2) -> list[str]:
    return [name for name, _ in model.named_parameters()][-count:]


@pytest.mark.parametrize("family", BLOCKS)
def test_each_family_has_its_blocks_stem_and_top(family: str) -> None:
    model = FAMILIES[family](3)
    found = anatomy(model)
    assert len(found.stack) == len(found.blocks) == BLOCKS[family]
    assert found.top == BLOCKS[family] + 1
    places = [found.place(name) for name, _ in model.named_parameters()]
    assert {place.depth for place in places} == set(range(found.top + 1))
    assert {place.top for place in places} == {found.top}
    if family in STEM:
        assert regions(found, model, 0) == STEM[family]
    if family in TOP:
        assert regions(found, model, found.top) == TOP[family]
    assert found.place(fresh_head(model)[-1]).depth == found.top


@pytest.mark.parametrize("family", BLOCKS)
def test_depths_follow_the_order_of_a_forward_pass(family: str) -> None:
    model = FAMILIES[family](3).eval()
    found = anatomy(model)
    with torch.no_grad(), _Uses() as uses:
        model(**batch(family))
    by_depth: dict[int, list[int]] = {}
    for name, parameter in model.named_parameters():
        by_depth.setdefault(found.place(name).depth, []).extend(uses.when.get(id(parameter), []))
    first = {depth: min(times) for depth, times in by_depth.items()}
    last = {depth: max(times) for depth, times in by_depth.items()}
    assert last[0] < last[STEM_ENDS.get(family, 1)], "the stem has run by the end of the first block"
    for depth in range(1, found.top):
        assert last[depth] < first[depth + 1], f"depth {depth} ends before depth {depth + 1} begins"


@pytest.mark.parametrize("architecture", TIMM)
def test_a_bare_timm_network_has_the_depths_it_has_inside_the_wrapper(architecture: str) -> None:
    wrapper = FAMILIES[f"timm-{architecture}"](3)
    inside, bare = anatomy(wrapper), anatomy(wrapper.timm_model)
    for name, _ in wrapper.timm_model.named_parameters():
        assert bare.place(name).depth == inside.place(f"timm_model.{name}").depth
    assert bare.stack == [name.removeprefix("timm_model.") for name in inside.stack]


def test_a_timm_vit_keeps_class_token_positions_and_registers_in_the_stem() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_heads=3, reg_tokens=2)
    found = anatomy(model)
    assert {found.place(name).depth for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight")} == {
        0
    }


def test_albert_shares_one_block_so_only_what_needs_depth_is_refused() -> None:
    found = anatomy(FAMILIES["albert"](3), fresh=["classifier.weight", "classifier.bias"])
    assert found.stack == found.blocks == []
    assert found.place("classifier.bias").fresh
    place = found.place("albert.pooler.weight")
    assert not place.fresh
    for field in ("depth", "top"):
        with pytest.raises(UserError, match="AlbertForSequenceClassification has none"):
            getattr(place, field)
    assert len(found.targets()) == 6
    assert all(name.startswith("albert.encoder.albert_layer_groups.0.") for name in found.targets())


def test_a_model_of_one_layer_has_one_block() -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=50)
    found = anatomy(AutoModelForSequenceClassification.from_config(config))
    assert found.place("bert.encoder.layer.0.output.dense.bias") == Place(
        "bert.encoder.layer.0.output.dense.bias", 1, 2
    )


def test_a_classifier_registered_before_its_encoder_is_still_the_top() -> None:
    config = AutoConfig.for_model(
        "xlm-roberta", num_hidden_layers=2, hidden_size=32, num_attention_heads=2, vocab_size=50
    )
    model = AutoModelForSequenceClassification.from_config(config)
    assert next(iter(dict(model.named_children()))) == "classifier"
    assert anatomy(model).place("classifier.dense.weight").depth == 3


def test_parallel_lists_are_zipped_block_by_block() -> None:
    config = AutoConfig.for_model("xlm", n_layers=2, emb_dim=32, n_heads=2, n_words=50)
    found = anatomy(AutoModelForSequenceClassification.from_config(config))
    parts = ("attentions.1.q_lin.weight", "layer_norm1.1.weight", "ffns.1.lin1.weight", "layer_norm2.1.bias")
    assert [found.place(f"transformer.{part}").depth for part in parts] == [2, 2, 2, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_parameters_are_top_and_never_targets(family: str) -> None:
    model = FAMILIES[family](3)
    inner = anatomy(model).targets()[0]
    fresh = [f"{inner}.{name}" for name, _ in model.get_submodule(inner).named_parameters()] + fresh_head(model)
    found = anatomy(model, fresh)
    assert inner not in found.targets()
    assert inner in found.fresh_modules
    places = [found.place(name) for name in fresh]
    assert all(place.fresh for place in places)
    if found.stack:
        assert {place.depth for place in places} == {found.top}
    assert sum(found.place(name).fresh for name, _ in model.named_parameters()) == len(fresh)


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapts_exactly_the_targets_and_every_adapter_learns(family: str) -> None:
    model = adaptable(family).eval()
    found = anatomy(model)
    before = {name: found.place(name) for name, _ in model.named_parameters()}
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=found.targets()))
    adapted = [name for name, module in wrapped.named_modules() if hasattr(module, "lora_A") and name]
    assert [name.removeprefix("base_model.model.") for name in adapted] == found.targets()
    wrapped(**batch(family)).logits.square().sum().backward()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None, f"{name} has no part in the output"
    depths = {name: place.__dict__.get("depth") for name, place in before.items()}
    for name, _ in wrapped.named_parameters():
        place = found.place(name)
        assert not place.fresh
        host = name.removeprefix("base_model.model.").replace(".base_layer", "").partition(".lora_")[0]
        assert host in depths or f"{host}.weight" in depths
        assert place.__dict__.get("depth") == depths.get(host, depths.get(f"{host}.weight"))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_targets_lie_in_the_blocks_and_cover_their_linear_layers(family: str) -> None:
    model = FAMILIES[family](3)
    found = anatomy(model)
    targets = set(found.targets())
    assert len(targets) == len(found.targets())
    for name in targets:
        assert 0 < found.place(name).depth < found.top
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and 0 < found.place(name).depth < found.top:
            assert name in targets


def test_depth_wise_convolutions_are_no_targets() -> None:
    model = FAMILIES["timm-efficientnet_b0"](3)
    kinds = [model.get_submodule(name) for name in anatomy(model).targets()]
    assert {module.groups for module in kinds if isinstance(module, nn.Conv2d)} == {1}
    assert sum(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules()) == 16


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("module.bert.encoder.layer.2.output.dense.bias", "bert.encoder.layer.2.output.dense.bias"),
        ("_orig_mod.bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.weight"),
        ("bert.encoder.layer.1._checkpoint_wrapped_module.output.dense.bias", "bert.encoder.layer.1.output.dense.bias"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("base_model.model.classifier.original_module.weight", "classifier.weight"),
        ("module.base_model.model.bert.pooler.dense.base_layer.weight", "bert.pooler.dense.weight"),
        ("base_model.model.bert.pooler.modules_to_save.other.dense.bias", "bert.pooler.dense.bias"),
        ("bert.encoder.layer.0.output.bottleneck.down.weight", "bert.encoder.layer.0.output.dense.weight"),
    ],
)
def test_a_wrapped_parameter_keeps_its_place(wrapped: str, bare: str) -> None:
    found = anatomy(FAMILIES["bert"](3), fresh=["classifier.weight", "classifier.bias"])
    there, here = found.place(wrapped), found.place(bare)
    assert (there.depth, there.top, there.fresh) == (here.depth, here.top, here.fresh)


def test_what_is_new_and_belongs_to_no_block_is_fresh() -> None:
    found = anatomy(FAMILIES["bert"](3))
    for name in ("domain_head.weight", "base_model.vera_A.default", "prompt_encoder.default.embedding.weight"):
        assert found.place(name) == Place(name, depth=4, top=4, fresh=True)


def test_batch_norm_statistics_lie_with_their_layer() -> None:
    model = FAMILIES["timm-resnet18"](3)
    found = anatomy(model)
    assert found.place("timm_model.layer2.0.bn1.running_mean").depth == 3
    for name, _ in model.named_buffers():
        assert found.place(name).depth == found.place(name.rpartition(".")[0] + ".weight").depth


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rate_table_counts_every_parameter_once(family: str) -> None:
    model = FAMILIES[family](3)
    found = anatomy(model, fresh_head(model))
    rows = rate_table(found, model, lambda place, progress: float(place.fresh) + progress)
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert rows[-1]["rates"] == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert rows[-1]["module"].endswith("(fresh)")
    depths = [row["depth"] for row in rows]
    assert depths == (sorted(depths) if found.stack else [None] * len(rows))


def _lines(rows: list[dict]) -> Iterator[tuple]:
    for row in rows:
        yield row["depth"], row["module"], row["rates"][0]


def test_the_rate_table_has_one_row_a_block_where_its_parameters_share_the_rates() -> None:
    model = FAMILIES["bert"](3)
    found = anatomy(model, fresh_head(model))
    rows = rate_table(found, model, lambda place, progress: 0.5 ** (place.top - place.depth))
    assert [*_lines(rows)] == [
        (0, "bert.embeddings", 0.0625),
        (1, "bert.encoder.layer.0", 0.125),
        (2, "bert.encoder.layer.1", 0.25),
        (3, "bert.encoder.layer.2", 0.5),
        (4, "bert.pooler", 1.0),
        (4, "classifier (fresh)", 1.0),
    ]


def test_the_rate_table_tells_biases_from_weights_where_their_rates_differ() -> None:
    model = FAMILIES["bert"](3)
    rows = rate_table(anatomy(model), model, lambda place, progress: float(place.name.endswith("bias")))
    block = [row for row in rows if row["depth"] == 1]
    assert [row["rates"] for row in block] == [[0.0] * 5, [1.0] * 5]
    assert "query.weight" in block[0]["module"]
    assert "query.bias" in block[1]["module"]


def test_rates_are_rendered_as_an_aligned_table() -> None:
    model = FAMILIES["albert"](3)
    text = render_rates(rate_table(anatomy(model), model, lambda place, progress: progress))
    lines = text.splitlines()
    assert lines[0].split() == ["depth", "module", "parameters", "0", "%", "25", "%", "50", "%", "75", "%", "100", "%"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["-", "albert", "13,280", "0", "0.25", "0.5", "0.75", "1"]
