"""The model card: metadata that the Hub's own library reads, loading code that runs, Markdown that nothing breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from reports import HOSTILE, classification, hostile, regression, scores

from hftl.results.report.card import markdown, metadata
from hftl.results.report.report import Adapted, Report
from hftl.tasks.image.classification import ImageClassification
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.text.classification import TextClassification


def card_of(report: Report) -> str:
    return markdown(Report.from_dict(report.as_dict()))


def test_the_hub_library_reads_the_metadata_and_the_test_results() -> None:
    card = ModelCard(card_of(classification(license="apache-2.0")))
    assert card.data.library_name == "peft"
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["hftl", "transfer-learning", "lora", "layerdecay"]
    found = {(r.metric_type, r.dataset_split): r.metric_value for r in card.data.eval_results}
    assert found[("accuracy", "test")] == pytest.approx(0.87)
    assert ("f1", "test") in found
    assert len(found) == 4  # those of single classes stay out
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_the_card_of_another_domain_has_its_scores_beside_those_of_the_source() -> None:
    about = Adapted("entropy", distance={"before": 1.9, "after": 0.4})
    where = {"domain": "shop", "target": "films"}
    text = card_of(classification(target=scores(126, ["accuracy"], 0.2), adaptation=about, settings=where))
    assert "| Accuracy | 0.885 [0.840, 0.930] | 545 | 0.870 [0.825, 0.915] | 500 | 0.200 [0.155, 0.245] | 126 |" in text
    assert (
        "- The checkpoint was chosen by entropy.\n- Proxy A-distance of the domains: 1.90 before, 0.40 after." in text
    )
    assert "Valid chose the checkpoint" not in text
    source, target = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    assert target["dataset"]["name"] == f"{source['dataset']['name']}, shop films"
    assert [metric["value"] for metric in target["metrics"]] == [0.2]
    assert "target" not in card_of(classification())


def test_what_is_not_known_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-org" / "bert").mkdir(parents=True)
    report = regression(model="my-org/bert", test={"pearson": Score(float("nan"), 0, 0, 3)})
    assert metadata(report).keys() == {"library_name", "pipeline_tag", "tags"}
    assert metadata(classification(model="../bert")).keys().isdisjoint({"base_model", "datasets", "license"})
    assert "base_model" not in metadata(classification(model="timm:resnet18"))
    assert "base_model" not in metadata(classification(strategy="Scratch | LayerDecay(0.9)"))
    assert "base_model" not in metadata(classification(model=str(tmp_path / "bert")))


@pytest.mark.parametrize(
    ("source", "dataset"),
    [
        ("stanfordnlp/sst2", "stanfordnlp/sst2"),
        ("nyu-mll/glue:mrpc", "nyu-mll/glue"),
        ("hftl:reviews", None),
        ("reviews.csv", None),
        ("data/reviews.parquet", None),
        ("../data/trec", None),
        ("a dataset in memory", None),
    ],
)
def test_only_a_hub_id_becomes_a_dataset(source: str, dataset: str | None) -> None:
    assert metadata(classification(data={"source": source})).get("datasets") == ([dataset] if dataset else None)


def test_an_absolute_path_does_not_reach_the_loading_code() -> None:
    code = card_of(classification(folder="/home/someone/runs/a", command="", data={}))
    assert "/home" not in code
    assert 'hftl.load("a")' in code


def test_the_card_has_results_with_intervals_settings_data_limits_and_what_was_unsafe() -> None:
    text = card_of(classification(unsafe=["weights were read from a pickle file (--allow_pickle)"]))
    assert "| Accuracy | 0.885 [0.840, 0.930] | 545 | 0.870 [0.825, 0.915] | 500 |" in text
    assert re.findall(r"^## (.*)$", text, re.M) == ["Results", "How to load", "Training", "Data", "Limits"]
    assert "> **Unsafe:** weights were read from a pickle file" in text
    assert "| `learning_rate` | `0.0005` |" in text
    assert f"| train | 4907 | `{'ab' * 32}` |" in text
    assert "- In two splits." in text
    assert "not how much another seed would change" in text
    assert "Unsafe" not in card_of(classification())
    assert "## Results" not in card_of(Report(task="text-classification", model="m"))


def test_hostile_text_stays_text_in_markdown() -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="needs a Markdown parser (markdown-it-py)")
    text = card_of(hostile())
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-classification"
    parsed = markdown_it.MarkdownIt("commonmark").enable("table").parse(card.text)
    kinds = {token.type for block in parsed for token in (block, *(block.children or []))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "hr"}
    shown = "".join(t.content for b in parsed for t in (b.children or [b]))
    assert HOSTILE[0] in shown
    rows = [line for line in card.text.splitlines() if line.startswith("| `")]
    assert rows
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def loading_code(report: Report, base: str = "") -> str:
    """The first code block of the card's section on loading."""
    code = re.findall(r"```python\n(.*?)```", card_of(report), re.DOTALL)[0]
    return code.replace("path/to/the/base/model", base)


def run(code: str) -> Any:
    """Run the code as it stands; its last line is an expression whose value comes back."""
    *lines, last = code.strip().splitlines()
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    return eval(last, scope)


@pytest.fixture
def two_labels(tiny_bert: str) -> tuple[transformers.PreTrainedModel, Any]:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, **names)
    return model, transformers.AutoTokenizer.from_pretrained(tiny_bert)


@pytest.mark.parametrize(
    ("problem_type", "columns"),
    [
        ("single_label_classification", {"text": "text"}),
        ("single_label_classification", {"text": "a", "text_pair": "b"}),
        ("multi_label_classification", {"text": "text"}),
        ("regression", {"text": "text"}),
    ],
)
def test_the_loading_code_of_a_full_model_runs(problem_type, columns, two_labels, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = two_labels
    model.config.problem_type = problem_type
    for part in (model, tokenizer):
        part.save_pretrained("run")
    usage = TextClassification().usage_of(model)
    report = classification(folder="run", adapter=False, usage=usage, data={"columns": columns})
    found = run(loading_code(report))
    rows = found if isinstance(found, list) else [found]  # a pair is one dict
    assert {row["label"] for row in rows} <= {"bad", "good"}
    assert len(rows) == (2 if problem_type == "multi_label_classification" else 1)


def test_the_loading_code_of_an_adapter_runs_and_finds_the_labels(two_labels, tiny_bert, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = two_labels
    lora = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"])
    wrapped = peft.get_peft_model(model, lora).eval()
    for part in (wrapped, tokenizer, model.config):
        part.save_pretrained("run")
    [found] = run(loading_code(classification(folder="run", model=tiny_bert), base=tiny_bert))
    with torch.no_grad():
        expected = wrapped(**tokenizer("one text", return_tensors="pt")).logits.softmax(-1)[0]
    assert found["label"] == ["bad", "good"][int(expected.argmax())]
    assert found["score"] == pytest.approx(float(expected.max()), abs=1e-6)


def test_the_loading_code_of_an_image_model_runs(tiny_cnn, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((32, 32, 3), dtype="uint8")).save("image.png")
    report = classification(
        task="image-classification",
        usage=ImageClassification.usage,
        adapter=False,
        folder=tiny_cnn,
        test=scores(5, ["accuracy"]),
    )
    found = run(loading_code(report).replace(f'"{Path(tiny_cnn).name}"', repr(tiny_cnn)))
    assert len(found) == 5
