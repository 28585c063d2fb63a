"""Multiple choice: labels are places, a row's choices share one softmax, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from test_recipes import launch

from hftl import Recipe, load, testing
from hftl.data.types import Labels
from hftl.errors import UserError
from hftl.tasks.base import Source, Task


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return testing.tiny_choice(tmp_path_factory.mktemp("choice"))


def rows_of(tiny: dict, **change: object) -> list[dict]:
    return [json.loads(line) | change for line in Path(tiny["data"]).read_text("utf-8").splitlines()]


def test_the_logits_are_transformers_own_for_each_choice_beside_its_question(tiny, tmp_path):
    where = ["--model", tiny["model"], "--data", tiny["data"], "--output_dir", str(tmp_path / "o")]
    launch("multiple_choice.py", *where, "--num_train_epochs", "1", "--disable_tqdm")
    row = {"text": "what is good", "choices": ["bad sad", "good fine", "the book"]}
    answer = load(str(tmp_path / "o"))(row)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "o").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "o")
    inputs = tokenizer([row["text"]] * 3, row["choices"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**{name: value[None] for name, value in inputs.items()}).logits[0].softmax(-1)
    assert answer["scores"] == pytest.approx(scores.tolist(), abs=1e-6)
    assert answer["answer"] == row["choices"][int(scores.argmax())]
    assert answer["label"] == str(int(scores.argmax()))


@pytest.mark.parametrize("words", ["0123", "ABCD", "abcd"])
def test_a_label_is_the_place_of_a_choice_also_where_no_row_has_some(words, tiny, tmp_path):
    rows = [
        row | {"label": words[2 * (i % 2)], "choices": [*row["choices"], "x"]} for i, row in enumerate(rows_of(tiny))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    run = Recipe(**tiny | {"data": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "o")}).prepare()
    assert run.part.splits.labels.names == list(words.upper())
    assert set(run.part.rows["train"].labels) == {0, 2}  # places, not ids of the two labels that came
    assert tuple(run.part.pretrained.model.config.id2label.values()) == tuple(words.upper())


REFUSED = {
    "a place beyond": (3, "places among 3 choices, 0 to 2 or A to C; '3' came"),
    "the text itself": ("good fine", "places among 3 choices"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_label_that_is_no_place_is_refused(name, tiny, tmp_path):
    label, said = REFUSED[name]
    text = "\n".join(json.dumps(row | {"label": label}) for row in rows_of(tiny)[:40])
    (tmp_path / "rows.jsonl").write_text(text + "\n" + text.replace(json.dumps(label), json.dumps(label + label)))
    with pytest.raises(UserError, match=said):
        Recipe(**tiny | {"data": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "o")}).prepare()


def test_a_model_that_is_loaded_back_knows_places_and_how_many_choices(tiny):
    """P2: a file with its answers was a traceback."""
    task = Task.known()["multiple-choice"]()
    built = task.build(Source(tiny["model"]), Labels("choice", ["A", "B"]))
    encode = task.encoder(built.processor, ("text", "choices", "label"))
    assert encode({"text": ["a"] * 3, "choices": [["b", "c"]] * 3, "label": [0, 1, -1]})["labels"] == [0, 1, -1]
    with pytest.raises(UserError, match="Expected 2 choices, as in training; 3 came"):
        encode({"text": ["a"], "choices": [["b", "c", "d"]]})


def test_rows_with_fewer_choices_are_refused(tiny, tmp_path):
    rows = rows_of(tiny)
    rows[5]["choices"] = rows[5]["choices"][:2]
    rows[5]["label"] = 0
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(UserError, match="rows of 2 and of 3"):
        Recipe(**tiny | {"data": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "o")}).prepare()
