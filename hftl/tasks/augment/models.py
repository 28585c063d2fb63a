"""Texts rewritten by language models: masked words drawn anew, and translation there and back. Knows transformers.

A model is loaded once and stays until `release`; it reads safetensors alone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from hftl.errors import UserError

LONGEST = 512
"""Tokens of a text that a model reads at most; what follows stays as it is, or is left out by a translation."""
NAMES = {"AutoModelForMaskedLM": "a masked language model", "AutoModelForSeq2SeqLM": "a translation model"}


def filled(texts: list[str], model: str, p: float, versions: int) -> list[list[str]]:
    """For each text, versions in which a share p of the tokens was masked and drawn from the model's distribution.

    Words that were not masked keep their letters and the white space around them. Equal texts give equal versions.

    Raises:
        UserError: the model does not load, has no mask token, or its tokenizer does not know where tokens lie.
    """
    network, tokenizer = loaded(model, "AutoModelForMaskedLM")
    if tokenizer.mask_token_id is None or not tokenizer.is_fast:
        raise UserError(f"MaskedLM needs a fast tokenizer with a mask token; that of {model} is none.")
    limit = _limit(tokenizer, network)
    batch = tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=limit,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    spans, special = batch.pop("offset_mapping").tolist(), batch.pop("special_tokens_mask").bool()
    inputs = {name: value.to(network.device) for name, value in batch.items()}
    banned = [i for i in tokenizer.all_special_ids if i < network.config.vocab_size]
    made: list[list[str]] = [[] for _ in texts]
    with _seeded(texts), torch.inference_mode():
        for _ in range(versions):
            masked = (torch.rand(special.shape) < p) & ~special
            hidden = inputs["input_ids"].masked_fill(masked.to(network.device), tokenizer.mask_token_id)
            logits = network(**inputs | {"input_ids": hidden}).logits[masked.to(network.device)].float().cpu()
            logits[:, banned] = -torch.inf  # a special token is no word
            drawn = torch.multinomial(logits.softmax(-1), 1).flatten().tolist() if len(logits) else []
            news: list[list[tuple[list[int], str]]] = [[] for _ in texts]
            for (row, place), token in zip(masked.nonzero().tolist(), drawn, strict=True):
                news[row].append((spans[row][place], tokenizer.decode([token]).strip().removeprefix("##")))
            for versions_of, text, new in zip(made, texts, news, strict=True):
                versions_of.append(_replaced(text, new))
    return made


def back_translated(texts: list[str], forward: str, backward: str, versions: int) -> list[list[str]]:
    """For each text, versions that were translated by `forward` and back by `backward`, both drawn by sampling.

    The same texts give the same versions. A version without letters is the text itself.
    """
    with _seeded(texts), torch.inference_mode():
        rounds = [_translated(_translated(texts, forward), backward) for _ in range(versions)]
    return [[version.strip() or text for version in found] for text, *found in zip(texts, *rounds, strict=True)]


def identity(name: str) -> str:
    """What a model's name stands for now: of a folder its files, so that a model trained anew is another one."""
    files = sorted(Path(name).glob("*.*")) if Path(name).is_dir() else []
    return repr([name, *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)])


@functools.lru_cache(2)  # back-translation has two
def loaded(name: str, auto: str) -> tuple[Any, Any]:
    """A model in eval mode on the GPU, if there is one, and its tokenizer.

    Raises:
        UserError: it does not load.
    """
    try:
        network = getattr(transformers, auto).from_pretrained(name, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as failure:
        reason = str(failure).splitlines()[0][:200].rstrip(".")
        raise UserError(
            f"{name} does not load as {NAMES[auto]}: {reason}. Pass a folder or a Hub id with safetensors."
        ) from failure
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def release() -> None:
    """Let the models go, so that training has their memory."""
    loaded.cache_clear()


def _translated(texts: list[str], name: str) -> list[str]:
    network, tokenizer = loaded(name, "AutoModelForSeq2SeqLM")
    limit = _limit(tokenizer, network)
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=limit)
    names = ("input_ids", "attention_mask")
    inputs = {name: batch[name].to(network.device) for name in names}
    room = int(1.5 * batch["input_ids"].shape[1]) + 10
    ids = network.generate(**inputs, do_sample=True, top_k=50, num_beams=1, max_new_tokens=min(room, limit))
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def _limit(tokenizer: Any, network: Any) -> int:
    positions = getattr(network.config, "max_position_embeddings", None) or LONGEST
    return min(LONGEST, tokenizer.model_max_length, positions - 2)  # RoBERTa's positions begin at 2


def _replaced(text: str, news: list[tuple[list[int], str]]) -> str:
    for (start, end), word in reversed(news):
        text = text[:start] + word + text[end:]
    return text


@contextmanager
def _seeded(texts: list[str]) -> Iterator[None]:
    """Randomness that hangs on the texts alone, whatever the seed: what is kept on disk serves every run."""
    with torch.random.fork_rng():
        digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "replace"), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))
        yield
