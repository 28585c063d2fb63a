"""Push a finished run to the Hub where its recipe asks for it. What is sent is `hftl.results.publish`'s to say."""

from __future__ import annotations

from pathlib import Path

from hftl.errors import UserError
from hftl.results.publish import check_login, check_name, push
from hftl.run.settings import RecipeSettings


def check_wanted(recipe: RecipeSettings) -> None:
    """Raise `UserError` where a recipe asks for a push that could not be made: said before training, not after."""
    asked = recipe.training.get("push_to_hub")
    if not asked:
        extra = next((name for name in ("hub_model_id", "hub_revision") if recipe.training.get(name)), None)
        if extra:
            raise UserError(f"--{extra} says where to push. Pass --push_to_hub too, or leave it out.")
        return
    name = recipe.training.get("hub_model_id")
    if not name:
        raise UserError("--push_to_hub needs a place: pass --hub_model_id you/name.")
    check_name(name)
    check_login()


def push_wanted(recipe: RecipeSettings, folder: Path) -> None:
    """Push a finished run where its recipe asks for it.

    Raises:
        UserError: as `push`; the run is finished and saved.
    """
    given = recipe.training
    if given.get("push_to_hub"):
        private, revision = bool(given.get("hub_private_repo")), given.get("hub_revision")
        try:
            print(push(folder, given["hub_model_id"], private=private, revision=revision))
        except UserError as failure:
            raise UserError(f"The run is finished and saved in {folder}, but was not pushed. {failure}") from failure
