"""Tags of words: what an entity is, which sub-word bears the tag, and a run from a file to predictions."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hftl import Recipe, Report, load, testing
from hftl.cli.main import hftl, main
from hftl.data.load import load as load_data
from hftl.data.types import IGNORED, Labels
from hftl.errors import UserError
from hftl.tasks.metrics.entities import Entities, spans
from hftl.tasks.sections import Gallery
from hftl.tasks.text.tagging import TokenClassification, on_first

QUICK = {"learning_rate": 5e-3, "per_device_train_batch_size": 8, "disable_tqdm": True, "num_train_epochs": 6}


def tagged(n: int, seed: int = 4) -> list[dict[str, list[str]]]:
    """Sentences whose good and bad words are entities, each word its own."""
    rows = []
    for text, _ in testing.sentences(n, seed):
        words = text.split()
        tags = ["B-POS" if word in testing.GOOD else "B-NEG" if word in testing.BAD else "O" for word in words]
        rows.append({"tokens": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def tagged_jsonl(tmp_path_factory):
    path = tmp_path_factory.mktemp("tagged") / "tagged.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in tagged(160)))
    return str(path)


@pytest.fixture(scope="module")
def run(tiny_bert, tagged_jsonl, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "run"
    script = Path(__file__).parent.parent / "recipes" / "token_cls.py"
    flags = ["--model", tiny_bert, "--data", tagged_jsonl, "--output_dir", str(folder)]
    flags += [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    argv, sys.argv = sys.argv, [str(script), *flags]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = argv
    return folder


SENTENCES = {
    "B-A I-A O B-B": {(0, 1, "A"), (3, 3, "B")},
    "B-A B-A I-A": {(0, 0, "A"), (1, 2, "A")},
    "I-A I-A O I-A": {(0, 1, "A"), (3, 3, "A")},
    "B-A I-B I-B": {(0, 0, "A"), (1, 2, "B")},
    "O O": set(),
    "": set(),
    "S-A B-B E-B E-A": {(0, 0, "A"), (1, 2, "B"), (3, 3, "A")},
    "B-A I-A L-A U-A U-B": {(0, 2, "A"), (3, 3, "A"), (4, 4, "B")},
    "B-A E-A I-A": {(0, 1, "A"), (2, 2, "A")},
    "NN NN O VB": {(0, 0, "NN"), (1, 1, "NN"), (3, 3, "VB")},
    "B-X-Y I-X-Y": {(0, 1, "X-Y")},
}


@pytest.mark.parametrize("tags", SENTENCES)
def test_entities_are_read_as_conlleval_reads_them(tags):
    assert spans(tags.split()) == SENTENCES[tags]


def test_every_set_of_entities_reads_back_from_its_tags():
    rng = random.Random(0)
    for _ in range(200):
        tags, entities, at = [], set(), 0
        while at < 30:
            kind, length = rng.choice(["", "A", "B"]), rng.randint(1, 3)
            if kind:
                entities.add((at, at + length - 1, kind))
                tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
            else:
                tags += ["O"] * length
            at += length
        assert spans(tags) == entities


def metric_of(true: list[list[str]], guess: list[list[str]]) -> Entities:
    names = sorted({tag for row in [*true, *guess] for tag in row})
    metric, width = Entities(names), max(map(len, true)) + 2
    labels = np.full((len(true), width), IGNORED)
    logits = np.random.default_rng(0).normal(size=(len(true), width, len(names)))
    for i, (right, said) in enumerate(zip(true, guess, strict=True)):
        labels[i, 1 : 1 + len(right)] = [names.index(tag) for tag in right]
        logits[i, range(1, 1 + len(said)), [names.index(tag) for tag in said]] = 9.0
    for part in (slice(0, 1), slice(1, None)):
        metric.update(logits[part], labels[part])
    return metric


def test_entity_f1_counts_what_is_right_from_first_word_to_last():
    true = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"], ["O"]]
    guess = [["B-A", "O", "O", "B-B"], ["B-A", "B-A"], ["O"]]
    metric = metric_of(true, guess)
    values = metric.values()
    assert values["f1_entity"] == pytest.approx(2 * 2 / (3 + 4))
    assert values["precision"] == pytest.approx(2 / 4)
    assert values["recall"] == pytest.approx(2 / 3)
    assert values["tag_accuracy"] == pytest.approx(5 / 7)
    assert values["f1_A"] == pytest.approx(2 * 1 / (2 + 3))
    assert values["f1_B"] == 1
    assert next(iter(values)) == metric.headline == "f1_entity"
    wrong = metric.mistakes(9)
    assert sorted(row for row, *_ in wrong) == [0, 1]
    assert {true for _, true, _, _ in wrong} == {"B-A I-A O B-B", "B-A O"}
    assert metric.compute()["f1_entity"].n == 3


def test_the_first_sub_word_bears_the_tag():
    assert on_first([None, 0, 0, 1, 2, 2, None], [5, 6, 7]) == [IGNORED, 5, IGNORED, 6, 7, IGNORED, IGNORED]


def pieces() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that takes words apart: "unlucky" is un + ##lucky."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##lucky", "dog", "##s", "bark"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_has_one_label_a_word_wherever_it_is_padded(side):
    task, tokenizer = TokenClassification(), pieces()
    tokenizer.padding_side = side
    rows = datasets.Dataset.from_dict({"tokens": [["unlucky", "dogs", "bark"], ["dogs"]], "label": [[3, 1, 2], [1]]})
    encoded = task.encode(rows, tokenizer)
    assert encoded["length"][:] == [7, 4]
    batch = task.collate(tokenizer)(encoded.__getitems__([0, 1]))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert [row[row != IGNORED].tolist() for row in batch["labels"]] == [[3, 1, 2], [1]]
    firsts = batch["input_ids"][batch["labels"] != IGNORED].tolist()
    assert tokenizer.convert_ids_to_tokens(firsts) == ["un", "dog", "bark", "dog"]
    cut = TokenClassification(max_length=4).encode(rows, tokenizer)
    assert cut["length"][:] == [7, 4]
    assert [tag for tag in cut[0]["labels"] if tag != IGNORED] == [3]


def test_rows_without_tags_are_marked_where_words_begin():
    task, tokenizer = TokenClassification(), pieces()
    encoded = task.encode(datasets.Dataset.from_dict({"tokens": ["unlucky dogs", "bark"]}), tokenizer)
    assert encoded[0]["labels"] == [IGNORED, 0, IGNORED, 0, IGNORED, IGNORED]


def test_a_run_learns_to_tag(run):
    report = Report.from_folder(run)
    assert report.headline == "f1_entity"
    assert report.test["f1_entity"].value > 0.9
    assert report.test["f1_entity"].n == 16
    assert report.labels == ["B-NEG", "B-POS", "O"]
    assert "Entity F1" in (run / "report.html").read_text("utf-8")


def test_a_sentence_with_wrong_tags_is_shown_with_its_words_marked():
    """F9."""
    task, names = TokenClassification(), ["O", "B-x"]
    metric = task.metric(Labels("tags", names))
    metric.update(np.eye(2)[[[0, 1, 1]]], np.array([[0, 1, 0]]))
    made = task.sections(
        metric, {"valid": {}, "test": {}}, lambda n: ({"tokens": ["the", "good", "film", "cut"]}, None)
    )
    (example,) = next(one for one in made if isinstance(one, Gallery)).examples
    assert example.tagged == [["the", "O", "O"], ["good", "B-x", "B-x"], ["film", "O", "B-x"]]


def test_the_folder_of_a_tagger_loads_with_hftl_and_in_a_plain_pipeline(run):
    text = "the good great film is awful w3"
    tags = ["O", "B-POS", "B-POS", "O", "O", "B-NEG", "O"]
    predictor = load(run)
    assert predictor(text)["label"] == tags
    assert predictor([text, {"tokens": ["awful", "pan"]}])[1]["label"] == ["B-NEG", "O"]
    pipe = transformers.pipeline("token-classification", model=str(run), aggregation_strategy="simple")
    assert [(one["word"], one["entity_group"]) for one in pipe(text)] == [
        ("good", "POS"),
        ("great", "POS"),
        ("awful", "NEG"),
    ]


def test_predictions_of_a_tagger_are_written_by_row(run, tmp_path):
    rows = [{"tokens": ["awful", "pan"]}, {"tokens": ["good", "and", "sad", "dull", "book"]}]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    hftl(["predict", str(run), "--data", str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "p.csv")])
    lines = (tmp_path / "p.csv").read_text("utf-8").splitlines()
    assert lines == ["tokens,prediction", "awful pan,B-NEG|O", "good and sad dull book,B-POS|O|B-NEG|B-NEG|O"]


def test_the_loss_of_an_update_is_the_mean_over_its_words(tiny_bert, tagged_jsonl, tmp_path):
    """16 rows at once, and 4 times 4 rows with other numbers of words, make the same update."""
    settings = {"task": "token-classification", "model": tiny_bert, "data": tagged_jsonl, "max_steps": 1}
    settings |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0}
    settings |= {"disable_tqdm": True, "training": {}}
    found = []
    for name, size, times in (("one", 16, 1), ("four", 4, 4)):
        recipe = Recipe(
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            **settings,
        )
        prepared = recipe.prepare()
        for module in prepared.trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        prepared.train()
        found.append({name: p.detach().clone() for name, p in prepared.trainer.model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=0)


def test_features_refuse_a_tag_for_each_word(tiny_bert, tagged_jsonl, tmp_path):
    recipe = Recipe(
        strategy="Features",
        task="token-classification",
        model=tiny_bert,
        data=tagged_jsonl,
        output_dir=str(tmp_path / "o"),
        disable_tqdm=True,
    )
    with pytest.raises(UserError, match="one vector a row, and token-classification has more"):
        recipe.run()


def test_tags_that_do_not_fit_their_words_are_refused(tiny_bert, tmp_path, capsys):
    def refused(said: str, rows: list[dict], *flags: str) -> None:
        path = tmp_path / "bad.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        words = ["--data", str(path), "--output_dir", str(tmp_path / "o"), *flags]
        with pytest.raises(SystemExit) as stopped:
            main(Recipe(task="token-classification", model=tiny_bert), words)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err

    good = tagged(30)
    refused("it has 2 words and 1 tags", [*good, {"tokens": ["a", "pan"], "tags": ["O"]}])
    refused("an empty tokens", [*good, {"tokens": [], "tags": []}])
    refused("Expected a list of words", [{"tokens": " ".join(row["tokens"]), "tags": row["tags"]} for row in good])
    refused("Expected a list of tags", [{"tokens": row["tokens"], "tags": "O"} for row in good])
    refused("Expected a column 'tokens'", [{"text": row["tokens"], "tags": row["tags"]} for row in good])
    refused("--class_weights belongs to image-classification and", good, "--class_weights", "balanced")


def test_a_split_of_tagged_rows_is_the_same_however_it_is_stored(tmp_path):
    rows, roles = tagged(60), TokenClassification.roles
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "a.parquet"))
    ids = data.cast_column(
        "tags", datasets.List(datasets.ClassLabel(names=sorted({t for r in rows for t in r["tags"]})))
    )
    first, *others = (
        load_data(source, roles, read_as="token_classification")
        for source in (str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet"), datasets.DatasetDict(train=ids))
    )
    for other in others:
        assert other.fingerprints == first.fingerprints
        assert other.labels == first.labels
    with pytest.raises(UserError, match="--problem_type"):
        load_data(str(tmp_path / "a.jsonl"), roles, read_as="token_classificatio")


def test_every_word_has_a_tag_also_one_of_which_no_token_is_left(tiny_bert) -> None:
    task, words = TokenClassification(), ["Ada", "\u200b", "went", "", "to", "Paris"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_max_length = 64
    rows = datasets.Dataset.from_dict({"tokens": [words], "label": [[0, 1, 0, 1, 0, 1]]})
    encoded = task.encode(rows, tokenizer)
    assert [tag for tag in encoded["labels"][0] if tag != IGNORED] == [0, 1, 0, 1, 0, 1]
