"""A report as a model card: YAML metadata that the Hub reads, and Markdown that a person reads.

Knows the Hub's metadata fields and how to load the folder; never names a licence, a language or a data set it was not
told of. Text that came with data is escaped for Markdown on its way in.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from hftl.results.report import wording
from hftl.results.report.page import MAIN, environment
from hftl.results.report.verdict import adapted, limits, valid_chose, verdict
from hftl.settings.visible import cut, visible
from hftl.tasks.metrics.names import metric_name

if TYPE_CHECKING:
    import jinja2

    from hftl.results.report.report import Report

METRIC_TYPES = {
    "f1_entity": "f1",
    "f1_macro": "f1",
    "f1_micro": "f1",
    "matthews": "matthews_correlation",
    "auroc": "roc_auc",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
"""Our names where the Hub has another one."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE = re.compile(r"\.(csv|tsv|jsonl?|parquet|arrow|txt|zip|safetensors|bin)$", re.IGNORECASE)
_SPECIAL = re.compile(r"[\\`*\[\]|~$<]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|^\s*([-#>+=]|\d+[.)](?=\s))")


@functools.cache
def _template() -> jinja2.Template:
    made = environment(autoescape=False, finalize=_finalize)
    made.filters |= {"block": block, "code": code, "literal": literal}
    made.filters["interval"] = lambda low, high: Markup(wording.interval(low, high))
    made.filters["score"] = lambda one: Markup(wording.score(one) or wording.ABSENT)  # digits only; brackets stay
    return made.get_template("card.md.j2")


def markdown(report: Report) -> str:
    """The whole README.md. `report` holds plain values (`Report.from_dict(report.as_dict())`)."""
    head = yaml.safe_dump(metadata(report), sort_keys=False, allow_unicode=True, width=10_000)
    usage, pair = report.usage, "text_pair" in (report.data.get("columns") or {})
    body = _template().render(
        report=report,
        title=_title(report),
        verdict=verdict(report),
        adapted=adapted(report),
        limits=limits(report),
        valid_chose=valid_chose(report),
        auto=Markup(usage.get("auto", "AutoModel")),
        example=Markup(usage.get("example_pair" if pair else "example", "an_input")),
        processor=Markup(usage.get("processor", "processor")),
        arguments=Markup(usage.get("arguments", "")),
        folder=_shown_folder(report.folder),
        base=_base(report),
        settings=[(name, report.settings[name]) for name in MAIN if report.settings.get(name) not in (None, "", False)],
    )
    return f"---\n{head}---\n\n{body}"


def _library(report: Report) -> str:
    """The library that loads the folder, as the Hub names it."""
    if "only" in report.usage or ("pooled" in report.usage and report.adapter):
        return "hftl"
    return "sentence-transformers" if "pooled" in report.usage else "peft" if report.adapter else "transformers"


def metadata(report: Report) -> dict[str, Any]:
    """The YAML block. What is not known is left out: the Hub shows an absent field better than a guessed one."""
    base, data = _hub_id(report.model), _hub_id(str(report.data.get("source") or "").split(":")[0])
    scratch = re.search(r"\bScratch\b", report.strategy) is not None
    found: dict[str, Any] = {}
    if report.license:
        found["license"] = report.license
    found["library_name"] = _library(report)
    if base and not scratch:
        found["base_model"] = base
        found["base_model_relation"] = "adapter" if report.adapter else "finetune"
        if re.fullmatch("[0-9a-f]{40}", report.revision):
            found["base_model_revision"] = report.revision  # no field of the Hub's: it shows it, and does nothing else
    if not report.tasks:
        found["pipeline_tag"] = report.task
    if data:
        found["datasets"] = [data]
    found["tags"] = ["hftl", "transfer-learning", *_strategies(report.strategy)]
    results = _results(report, data)
    if results:
        found["metrics"] = list(dict.fromkeys(metric["type"] for metric in results[0]["metrics"]))
    if results and not report.tasks:  # the cards of the tasks have them
        found["model-index"] = [{"name": _title(report), "results": results}]
    return found


def _results(report: Report, data: str) -> list[dict[str, Any]]:
    """Results on test, and on the target, in the model-index form; none that is not finite or of a single class."""
    source = cut(report.data.get("source") or "unnamed", 120)
    found = []
    for split, name in ((report.test, source), (report.target, cut(_target(report, source), 120))):
        metrics = [
            {
                "type": METRIC_TYPES.get(metric, wording.slug(metric).replace("-", "_")),
                "name": metric_name(metric),
                "value": round(split[metric].value, 6),
            }
            for metric in report.metrics()
            if metric in split and wording.known(split[metric].value)
        ]
        dataset = {"name": name, "type": data or wording.slug(name), "split": "test"}
        found += [{"task": {"type": report.task}, "dataset": dataset, "metrics": metrics}] if metrics else []
    return found


def _target(report: Report, source: str) -> str:
    """What a labelled target domain is called: by its rows, or as a part of the source's."""
    settings = report.settings
    part = f"{source}, {settings.get('domain')} {settings.get('target')}"
    return str(settings.get("unlabelled") or settings.get("target_test") or part)


def _strategies(notation: str) -> list[str]:
    """`LoRA(r=16) | LayerDecay(0.9)` -> lora, layerdecay."""
    return list(dict.fromkeys(wording.slug(re.split(r"[(\s]", part.strip())[0]) for part in notation.split("|")))


def _title(report: Report) -> str:
    return cut(f"{report.model.rstrip('/').split('/')[-1]}, {report.strategy}, for {report.task}", 160)


def _hub_id(name: str) -> str:
    """`name` where it can only be an id on the Hub, else an empty string: no path of this machine leaves it."""
    if not _HUB_ID.fullmatch(name) or _FILE.search(name) or name == "hftl" or "--" in name or ".." in name:
        return ""
    return "" if Path(name).exists() else name


def _shown_folder(folder: str) -> str:
    """The folder as it was typed; of an absolute path only the name, because the card may be published."""
    path = Path(folder or ".")
    return path.name if path.is_absolute() else path.as_posix()


def _base(report: Report) -> str:
    """Where the adapter's base model is found; a bare timm network has no address, so its weights lie in the folder."""
    if report.model.startswith("timm:"):
        return f"{_shown_folder(report.folder)}/base"
    return _hub_id(report.model) or "path/to/the/base/model"


def code(text: object) -> Markup:
    """An inline code span whose fence is longer than any run of backticks inside."""
    line = visible(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    # inside a table even a code span ends at a bar
    return Markup(f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")) if line else Markup("")


def block(text: object) -> Markup:
    """A fenced code block with one line of text."""
    line = visible(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=2) + 1)
    return Markup(f"{max(fence, '```', key=len)}\n{line}\n{max(fence, '```', key=len)}")


def literal(text: object) -> Markup:
    """A Python string on one line, for the examples."""
    return Markup(json.dumps(visible(text), ensure_ascii=False))


def _finalize(value: Any) -> Any:
    """What every `{{ }}` passes through: text is put on one line and loses its meaning to Markdown and HTML."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return _SPECIAL.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", visible(value))
