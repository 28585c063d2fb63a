"""`hftl.Trainer` where a `Trainer` stands: it does as the base class does, and outside of `train` leaves no trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hftl import Trainer
from hftl.errors import UserError
from hftl.strategies.layers import BitFit, Full, LayerDecay, LinearProbe
from hftl.strategies.peft import LoRA

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BASE = transformers.Trainer


def ids(rows: int, length: int = 6) -> list[list[int]]:
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(1)).tolist()


def bert(kind: type = transformers.BertForSequenceClassification, **config: Any) -> Any:
    torch.manual_seed(0)
    return kind(transformers.BertConfig(**TINY, **STILL, **{"num_labels": 3} | config))


def classes(rows: int = 8) -> Dataset:
    return Dataset.from_dict({"input_ids": ids(rows), "labels": [i % 3 for i in range(rows)]})


def arguments(folder: Any, **settings: Any) -> transformers.TrainingArguments:
    fixed = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "max_grad_norm": 0.0}
    small = {"per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "seed": 3}
    return transformers.TrainingArguments(str(folder), **fixed | small | settings)


def moved(cls: type, model: nn.Module, rows: Dataset, folder: Any, given: dict[str, Any], **settings: Any) -> Any:
    """(numbers,) how far every weight went."""
    model = copy.deepcopy(model)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    own = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"} | settings
    cls(model, arguments(folder, **own), train_dataset=rows, **given).train()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def own_loss(base: type, scaled: bool | None = None) -> type:
    class Own(base):  # type: ignore[misc, valid-type]
        loss_is_scaled_for_ga = scaled

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], label_smoothing=0.2)
            return (loss, outputs) if return_outputs else loss

    return Own


def questions(rows: int = 8) -> Dataset:
    return Dataset.from_dict({"input_ids": ids(rows), "start_positions": [1] * rows, "end_positions": [2] * rows})


def causal() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY, num_key_value_heads=2, max_position_embeddings=32)
    )


SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CAUSAL = Dataset.from_dict({"input_ids": ids(4, 4), "labels": [[-100, *row[1:3], -100] for row in ids(4, 4)]})
CASES = {
    "compute_loss_func": (bert, classes(), {"compute_loss_func": summed}, SPLIT),
    "tuples": (lambda: bert(return_dict=False), classes(), {}, {}),
    "question answering": (lambda: bert(transformers.BertForQuestionAnswering, num_labels=2), questions(), {}, SPLIT),
    "a causal language model": (causal, CAUSAL, {}, SPLIT),
    "label smoothing, shifted": (causal, CAUSAL, {}, {"label_smoothing_factor": 0.2}),
    "SGD at a rate of its own": (bert, classes(), {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_the_base_classs(case, tmp_path):
    make, rows, given, settings = CASES[case]
    expected, found = (moved(cls, make(), rows, tmp_path, dict(given), **settings) for cls in (BASE, Trainer))
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("scaled", [None, False, True])
def test_a_subclass_with_a_loss_of_its_own_is_scaled_as_by_the_base_class(scaled, tmp_path):
    expected, found = (
        moved(own_loss(cls, scaled), bert(), classes(), tmp_path, {}, **SPLIT) for cls in (BASE, Trainer)
    )
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)


def test_a_target_of_minus_100_is_a_row(tmp_path):
    model = bert(problem_type="regression")
    model.config.num_labels = model.num_labels = 1
    model.classifier = nn.Linear(16, 1)
    rows = Dataset.from_dict({"input_ids": ids(8), "labels": [-100.0, 1.0] * 4})
    whole = moved(Trainer, model, rows, tmp_path, {}, per_device_train_batch_size=8)
    split = moved(Trainer, model, rows, tmp_path, {}, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved(BASE, model, rows, tmp_path, {}, per_device_train_batch_size=8), whole)


def test_a_micro_batch_without_an_item_weighs_nothing(tmp_path):
    model = bert(transformers.BertForTokenClassification)
    labels = [[0, 1, 2, 0, 1, 2]] * 2 + [[-100] * 6] * 2
    rows = Dataset.from_dict({"input_ids": ids(4), "labels": labels})
    both = moved(Trainer, model, rows, tmp_path, {}, **SPLIT)
    alone = moved(Trainer, model, rows.select([0, 1]), tmp_path, {}, per_device_train_batch_size=2)
    torch.testing.assert_close(both, alone, atol=1e-7, rtol=1e-5)


def test_it_needs_no_arguments_and_takes_a_model_init(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Trainer(bert()).args.output_dir == "tmp_trainer"
    first, again = (Trainer(None, arguments(tmp_path), None, classes(), model_init=lambda: bert()) for _ in range(2))
    first.train(), again.train(), again.train()
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), "each training starts from a new model"


def test_no_trace_is_left_outside_of_a_training(tmp_path):
    model = bert()
    args = arguments(tmp_path, save_total_limit=2)
    before, hooks = copy.deepcopy(args.to_dict()), len(model._forward_pre_hooks)
    trainer = Trainer(model, args, train_dataset=classes(), strategy=LinearProbe(), fresh=("classifier.weight",))
    shown = [type(callback) for callback in trainer.callback_handler.callbacks]
    trainer.train()
    assert [type(callback) for callback in trainer.callback_handler.callbacks] == shown
    assert shown[-1] in (PrinterCallback, ProgressCallback)
    assert all(p.requires_grad for p in model.parameters())
    assert len(model._forward_pre_hooks) == hooks
    assert len({module.training for module in model.modules()}) == 1
    assert args.to_dict() == before
    assert trainer.args is args
    assert len(pickle.dumps(model)) < 200_000
    assert len(pickle.dumps(copy.deepcopy(model))) < 200_000
    second = Trainer(model, arguments(tmp_path), train_dataset=classes())
    assert second.trained == sum(p.numel() for p in model.parameters())


def test_what_the_user_holds_fixed_stays_so(tmp_path):
    model = bert()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=classes())
    before = copy.deepcopy(model.state_dict())
    model.bert.embeddings.requires_grad_(False)
    trainer.train()
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name, _ in model.bert.embeddings.named_parameters(prefix="bert.embeddings")} <= kept
    assert "classifier.weight" not in kept
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


def test_a_finished_trainer_resumes_as_the_base_class_does(tmp_path):
    def steps(cls: type, resume: Any) -> Any:
        folder = tmp_path / f"{cls.__module__}{resume}"
        args = arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, save_only_model=False)
        trainer = cls(bert(), args, train_dataset=classes())
        trainer.train()
        whole = nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
        for parameter in trainer.model.parameters():
            parameter.data.zero_()
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else True)
        assert (folder / "checkpoint-4" / "training_args.bin").is_file()
        return whole, nn.utils.parameters_to_vector(trainer.model.parameters()).detach()

    for resume in (True, False):
        whole, again = steps(Trainer, resume)
        torch.testing.assert_close(again, whole, atol=1e-7, rtol=1e-5)


def test_rows_are_grouped_by_length_without_a_column_of_lengths(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1] * (1 + i * 7 % 30) for i in range(256)], "labels": [0] * 256})
    collate = transformers.DataCollatorWithPadding(transformers.PreTrainedTokenizerFast(tokenizer_object=_words()))
    padded = {}
    for way in ("random", "group_by_length", "sequential"):
        args = arguments(tmp_path, train_sampling_strategy=way)
        trainer = Trainer(bert(), args, collate, rows)
        batches = list(trainer.get_train_dataloader())
        padded[way] = sum(batch["input_ids"].numel() for batch in batches)
        if way == "sequential":
            first = [len(row) for row in rows[:4]["input_ids"]]
            assert batches[0]["attention_mask"].sum(dim=1).tolist() == first
    real = sum(map(len, rows["input_ids"]))
    assert padded["group_by_length"] - real < 0.5 * (padded["random"] - real)


def _words() -> Any:
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    made.add_special_tokens(["[PAD]"])
    made.enable_padding(pad_id=0, pad_token="[PAD]")
    return made


def test_an_optimizer_of_the_users_own_is_refused_where_layers_have_rates_of_their_own(tmp_path):
    model = bert()
    optimizers = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=classes(), optimizers=optimizers, strategy=LayerDecay(0.5)
    )
    with pytest.raises(UserError, match="optimizer_cls_and_kwargs"):
        trainer.train()


@pytest.mark.parametrize("strategy", [LinearProbe(), BitFit(), LoRA(r=2)], ids=str)
def test_what_is_fresh_is_known_from_the_loader_or_asked_for(strategy, tiny_bert, tmp_path):
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    trainer = Trainer(loaded, arguments(tmp_path), strategy=strategy)
    trained = {name for group in trainer.groups for name in group.parameters}
    assert any("classifier" in name for name in trained)
    assert any("pooler" in name for name in trained)
    with pytest.raises(UserError, match="Pass fresh="):
        Trainer(bert(), arguments(tmp_path), strategy=strategy)
    named = Trainer(bert(), arguments(tmp_path), strategy=strategy, fresh=["classifier.weight", "classifier.bias"])
    assert any("classifier" in name for group in named.groups for name in group.parameters)
    Trainer(bert(), arguments(tmp_path), strategy=Full())
