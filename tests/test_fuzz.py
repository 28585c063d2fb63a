"""A short run of what `benchmarks/fuzz.py` does at night: random input gives a result or one sentence."""

from __future__ import annotations

import datasets
import pytest
from fuzz import TABLES, TARGETS, fuzz


@pytest.mark.sweep
@pytest.mark.parametrize("name", TARGETS)
def test_random_input_gives_a_result_or_one_sentence(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    examples = 8 if name in TABLES else 60
    assert fuzz(TARGETS[name], examples) >= examples // 2
