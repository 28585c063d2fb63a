"""Tiny models with random weights, one a family, so that every test can ask for any of them by name.

`FAMILIES[name](num_labels)` builds a `PreTrainedModel` for classification from a config, without the network;
`MODALITY[name]` is "text" or "image"; `batch(name)` is a small input for it. Pictures are `SIDE` pixels square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TimmWrapperConfig,
)

VOCAB = 128
SIDE = 32

_SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_ENCODER = _SMALL | {"intermediate_size": 64, "max_position_embeddings": 64}
_DECODER = _ENCODER | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VIT = {"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_VIT |= {"intermediate_size": 64}

TEXT: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER | {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"vocab_size": VOCAB, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "deberta-v2": _ENCODER
    | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"}
    | {"share_att_key": True, "position_biased_input": False, "type_vocab_size": 0},
    "electra": _ENCODER | {"embedding_size": 16},
    "modernbert": _ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1},
    "albert": _ENCODER | {"embedding_size": 16, "pad_token_id": 0},
    "t5": {"vocab_size": VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2}
    | {"num_heads": 2, "decoder_start_token_id": 0},
    "bart": {
        "vocab_size": VOCAB,
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "max_position_embeddings": 64,
    }
    | {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 2), ("ffn_dim", 64))},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "llama": _DECODER,
    "qwen2": _DECODER,
}
IMAGE: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT | {"architectures": ["DeiTForImageClassification"]},
    "dinov2": {key: value for key, value in _VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2},
    "beit": _VIT,
    "swin": {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    | {"window_size": 4, "mlp_ratio": 2.0},
    "convnext": {"num_stages": 3, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "patch_size": 2},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32], "depths": [2, 2, 1], "layer_type": "basic"},
    "mobilenet_v2": {"image_size": SIDE, "depth_multiplier": 0.35},
    "segformer": {"num_encoder_blocks": 3, "depths": [1, 2, 1], "hidden_sizes": [8, 16, 24], "patch_sizes": [3, 3, 3]}
    | {"strides": [2, 2, 2], "num_attention_heads": [1, 2, 2], "sr_ratios": [2, 2, 1], "mlp_ratios": [2, 2, 2]},
}
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": (16, 24, 32, 48), "layers": (2, 2, 2, 2), "stem_width": 16},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    "convnext_atto": {"dims": (16, 24, 32, 40), "depths": (1, 2, 2, 1)},
    "efficientnet_b0": {},
}


def text(kind: str, num_labels: int = 3) -> PreTrainedModel:
    """A tiny text classifier of a transformers model type."""
    config = AutoConfig.for_model(kind, **TEXT[kind], num_labels=num_labels)
    return AutoModelForSequenceClassification.from_config(config)


def image(kind: str, num_labels: int = 3, **changes: Any) -> PreTrainedModel:
    """A tiny image classifier of a transformers model type; `changes` are further settings of its config."""
    config = AutoConfig.for_model(kind, **IMAGE[kind] | changes, num_labels=num_labels)
    return AutoModelForImageClassification.from_config(config)


def timm(architecture: str, num_labels: int = 3) -> PreTrainedModel:
    """A tiny timm network inside transformers' TimmWrapper; the bare network is its `timm_model`."""
    config = TimmWrapperConfig(architecture=architecture, model_args=TIMM[architecture], num_labels=num_labels)
    return transformers.TimmWrapperForImageClassification(config)


def _builder(make: Callable[[str, int], PreTrainedModel], kind: str) -> Callable[[int], PreTrainedModel]:
    return lambda num_labels=3: make(kind, num_labels)


FAMILIES: dict[str, Callable[[int], PreTrainedModel]] = (
    {kind: _builder(text, kind) for kind in TEXT}
    | {kind: _builder(image, kind) for kind in IMAGE}
    | {f"timm-{kind}": _builder(timm, kind) for kind in TIMM}
)
MODALITY: dict[str, str] = {name: "text" if name in TEXT else "image" for name in FAMILIES}


def adaptable(name: str, num_labels: int = 3) -> PreTrainedModel:
    """`FAMILIES[name]`, but MobileNetV2 without TensorFlow's padding: that reads the stride of its convolutions, which
    PEFT's convolution does not have (0.21.2)."""
    return image(name, num_labels, tf_padding=False) if name == "mobilenet_v2" else FAMILIES[name](num_labels)


def batch(name: str, rows: int = 2) -> dict[str, torch.Tensor]:
    """A batch for `FAMILIES[name]`: token ids (rows, 8), the last one the end, or pictures (rows, 3, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(0)
    if MODALITY[name] == "image":
        return {"pixel_values": torch.randn(rows, 3, SIDE, SIDE, generator=generator)}
    ids = torch.randint(3, VOCAB, (rows, 8), generator=generator)
    end = 1 if name == "t5" else 2
    ids[:, -1] = end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
