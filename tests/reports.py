"""Reports as a run would make them, for the tests of the page, the card and the terminal."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from hftl.results.report.report import Report
from hftl.tasks.metrics.bootstrap import Score
from hftl.tasks.sections import Example, Gallery, Section, Table, by_class, confused, per_class, reliability
from hftl.tasks.text.classification import TextClassification

TREC = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a\nb\r\n\tc\u2028d",
    "bell\x07 nul\x00 escape\x1b[31m c1\x9b",
    "right\u202eto left",
    "| pipe ` tick `` ticks ``` [link](javascript:alert(1)) *bold* </td>",
    "{{ 7 * 7 }} {% raw %}",
    "---",
    "lone \ud800 surrogate",
)


def scores(n: int, names: list[str], value: float = 0.87) -> dict[str, Score]:
    return {name: Score(value, value - 0.045, value + 0.045, n) for name in names}


def history(headline: str, epochs: int = 4) -> list[dict[str, Any]]:
    """What `TrainerState.log_history` holds: losses, evaluations, the summary, and one more evaluation of the best."""
    values, rows = [0.78, 0.861, 0.884, 0.879], []
    for step in range(1, 20 * epochs + 1):
        rows.append({"loss": 1.8 * math.exp(-step / 18) + 0.1, "epoch": step / 20, "step": step, "grad_norm": math.nan})
        if step % 20 == 0:
            value = values[step // 20 - 1]
            rows.append({"eval_loss": 1 - value, f"eval_{headline}": value, "epoch": step / 20, "step": step})
    rows.append({"train_runtime": 41.2, "train_loss": 0.5, "epoch": float(epochs), "step": 20 * epochs})
    rows.append({"eval_loss": 0.116, f"eval_{headline}": 0.884, "epoch": float(epochs), "step": 20 * epochs})
    return rows


def classification(labels: list[str] = TREC, text: str = "Who is the tallest man ?", **changes: Any) -> Report:
    """A full report of single-label text classification; `labels` and `text` take the place of data."""
    k = len(labels)
    names = ["accuracy", "f1_macro", "matthews", "ece"]
    bins = [
        {
            "low": i / 10,
            "high": i / 10 + 0.1,
            "confidence": i / 10 + 0.05,
            "accuracy": i / 11,
            "count": 3 + 40 * (i == 9),
        }
        for i in range(2, 10)
    ]
    checks = [
        SimpleNamespace(name="rows", level="ok", sentence=f"4,907 rows of {labels[0]}.", details=[]),
        SimpleNamespace(
            name="length", level="note", sentence="Nothing is cut.", details=[{"split": "train", "max": 37}]
        ),
        SimpleNamespace(name="overlap", level="warn", sentence="In two splits.", details=[{"text": text, "n": 2}]),
    ]
    stack = [
        {"depth": d, "module": f"bert.encoder.layer.{d}", "parameters": 1_774_464, "rates": [0, 0, 0.2, 0.4, 0.5]}
        for d in range(1, 7)
    ]
    wrong = Example(texts=[text], label=labels[0], prediction=labels[-1], words="with 0.998")
    values: dict[str, Any] = {
        "task": "text-classification",
        "usage": TextClassification.usage,
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "revision": "53aa5117" * 8,
        "strategy": "LoRA(r=8) | LayerDecay(0.85)",
        "valid": scores(545, names, 0.885) | scores(545, [f"f1_{name}" for name in labels[:20]], 0.8),
        "test": scores(500, names) | scores(500, [f"f1_{name}" for name in labels[:20]], 0.7),
        "labels": labels,
        "data": {
            "source": "../data/trec",
            "rows": {"train": 4907, "valid": 545, "test": 500},
            "fingerprints": {"train": "ab" * 32, "valid": "cd" * 32, "test": "ef" * 32},
            "columns": {"text": "question", "label": labels[0]},
            "notes": [f"no valid split was given; {text}"],
        },
        "checks": checks,
        "seconds": 41.2,
        "examples_per_second": 476.0,
        "forward_passes": 12.4,
        "trainable": 149_766,
        "total": 22_863_000,
        "peak_memory": 1_240_000_000,
        "versions": {"python": "3.11.9", "torch": "2.14.1"},
        "command": 'accelerate launch recipes/text_cls.py --data ../data/trec --strategy "LoRA(r=8)" --output_dir a',
        "settings": {"strategy": "LoRA(r=8)", "learning_rate": 5e-4, "data": "../data/trec", "metrics": [], "seed": 42},
        "history": history("accuracy"),
        "classes": {f"f1_{name}": name for name in labels[:20]},
        "lower": ["ece", "mae", "mse"],
        "rates": [{"depth": None, "module": "bert.embeddings", "parameters": 11_900_000, "rates": [0.0] * 5}, *stack],
        "folder": "runs/a",
        "adapter": True,
    }
    report = Report(**values | changes)
    if "sections" not in changes:
        counts = [[40 if i == j else 1 for j in range(k)] for i in range(k)]
        report.sections = errors(labels, counts, report) + reliability("confidence", "accuracy", bins)
        report.sections.append(Gallery(heading="Most confidently wrong, on test", examples=[wrong] * 3))
    return report


def errors(names: list[str], counts: list[list[int]], report: Report) -> list[Section]:
    """The sections of a confusion matrix, with the scores that a report has of each class."""
    most = max(map(sum, counts)) / sum(map(sum, counts))
    found = by_class("F1", names, per_class(counts), {"valid": report.valid, "test": report.test})
    return found + confused(names, counts, most)


def regression(**changes: Any) -> Report:
    """A report without classes: no confusion, no calibration, no examples; one metric has no interval."""
    found = scores(1379, ["pearson", "mse"]) | {"mae": Score(0.62, math.nan, math.nan, 1379)}
    empty: dict[str, Any] = {"sections": [], "checks": [], "rates": []}
    values = {"headline": "pearson", "valid": found, "test": found, "adapter": False}
    report = classification(**{**empty, **values, "history": history("pearson"), "strategy": "Full", **changes})
    report.labels = []
    return report


def hostile() -> Report:
    """A report in which everything that data, files or arguments can decide tries to act on its reader."""
    report = classification(labels=list(HOSTILE), text=" ".join(HOSTILE), unsafe=[HOSTILE[0]], command=HOSTILE[1])
    report.model, report.strategy, report.revision = HOSTILE[1], HOSTILE[0], HOSTILE[5]
    report.settings = {name: name for name in HOSTILE} | {"strategy": HOSTILE[0]}
    report.versions = {name: name for name in HOSTILE}
    report.data |= {"source": HOSTILE[0], "rows": {HOSTILE[1]: 1}, "fingerprints": {HOSTILE[1]: HOSTILE[5]}}
    report.rates[0] |= {"module": HOSTILE[1]}
    examples = report.of(Gallery)[0].examples
    examples.append(Example(images=[PIXEL + HOSTILE[1]], label=HOSTILE[0], prediction=HOSTILE[1], words=HOSTILE[1]))
    examples.append(Example(images=["https://example.org/x.png"], label="a", prediction="b"))
    titles = {"heading": HOSTILE[1], "title": HOSTILE[1], "note": HOSTILE[0]}
    report.sections.append(Table(heads=[HOSTILE[0], HOSTILE[1]], rows=[[HOSTILE[1], HOSTILE[0]]], **titles))
    report.sections.append(Gallery(examples=[Example(texts=[HOSTILE[0]])], legend=[["a", HOSTILE[1]]], **titles))
    report.checks[2].details = [{HOSTILE[0]: HOSTILE[1]}]
    report.folder = HOSTILE[1]
    return report
