"""One batch before training: what would end the first epoch is a sentence, and nothing of the model is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hftl import Recipe
from hftl.errors import UserError
from hftl.models.anatomy import anatomy
from hftl.train.rates import rate_groups
from hftl.train.trial import try_batch


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("task", ["on_text", "on_images"])
def test_a_batch_that_is_tried_leaves_all_as_it_was(task, request, tmp_path):
    run = Recipe(**request.getfixturevalue(task), output_dir=str(tmp_path / "o"), disable_tqdm=True).prepare()
    model, random = run.trainer.model, torch.get_rng_state()
    before, modes = state(model), [module.training for module in model.modules()]
    try_batch(run.trainer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradients_that_are_no_numbers_are_named_before_training(on_text, tmp_path):
    run = Recipe(**on_text, output_dir=str(tmp_path / "o"), disable_tqdm=True).prepare()
    with torch.no_grad():
        next(iter(run.trainer.model.parameters())).fill_(torch.nan)
    with pytest.raises(UserError, match="The first batch gives a loss of nan"):
        run.train()


def test_a_head_of_fewer_classes_than_labels_is_one_sentence(on_text, tmp_path):
    run = Recipe(**on_text, output_dir=str(tmp_path / "o"), disable_tqdm=True).prepare()
    rows = run.part.rows["train"]
    rows.encoded = rows.encoded.map(lambda row: {"labels": 7})
    with pytest.raises(UserError, match="Labels and head do not fit"):
        run.train()


class Normed(nn.Module):
    """An image classifier whose last BatchNorm sees one number a row."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, self.norm = config, nn.BatchNorm1d(3)
        self.classifier = nn.Linear(3, config.num_labels)

    def forward(self, pixel_values=None, labels=None):
        logits = self.classifier(self.norm(pixel_values.mean(dim=(2, 3))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def test_a_last_batch_of_one_row_is_left_out_where_batchnorm_cannot_train_on_it(on_images, tmp_path):
    """V10."""
    run = Recipe(
        **on_images, output_dir=str(tmp_path / "o"), disable_tqdm=True, max_train_samples=17, num_train_epochs=1
    ).prepare()
    trainer = run.trainer
    trainer.model = Normed(trainer.model.config)
    trainer.anatomy = anatomy(trainer.model)
    trainer.groups = rate_groups(trainer.model, trainer.anatomy, trainer.strategy)
    assert any("one row of 17" in note for note in try_batch(trainer))
    assert trainer.args.dataloader_drop_last
