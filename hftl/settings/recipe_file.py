"""Reading and writing the YAML file of a run's settings, such as `recipe.yaml`.

Knows YAML and nothing of which settings exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hftl.errors import UserError

LARGEST = 1_000_000
"""Characters of a file of settings, and values in it with every alias unfolded."""
IDLE = (("cache_views", 0), ("source_only", False))
"""Settings that earlier versions wrote into each `recipe.yaml`, at values that asked for nothing: passed over."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the settings in a YAML file, by name.

    Raises:
        UserError: the file cannot be read, is empty or huge, is not `name: value` lines, or names a setting twice.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path} is too large for settings; expected lines such as `learning_rate: 2e-5`.")
        found = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise UserError(f"There is no file {str(path)!r} for --config; check the path.") from None
    except OSError as error:
        raise UserError(f"The file {str(path)!r} for --config cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; --config takes a YAML file such as recipe.yaml.") from None
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} cannot be read{_where(error)}; expected lines such as `learning_rate: 2e-5`."
        ) from None
    except (ValueError, RecursionError) as error:  # 2020-13-45 reads as a date; a thousand brackets
        raise UserError(f"{path} cannot be read ({error}); expected lines such as `learning_rate: 2e-5`.") from None
    if found is None:
        raise UserError(f"{path} is empty; expected lines such as `learning_rate: 2e-5`.")
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; expected lines such as `learning_rate: 2e-5`.")
    for name in found:
        if not isinstance(name, str):
            raise UserError(f"{path} names a setting {name!r}; expected a name such as `learning_rate`.")
    return {name: value for name, value in found.items() if (name, value) not in IDLE}


def written(settings: Mapping[str, Any], revision: str, fingerprints: Mapping[str, str]) -> str:
    """Settings as `recipe.yaml` holds them; above them, where a path was shortened, what had lain there.

    Args:
        settings: with paths as `hftl.results.privacy.shared` leaves them.
        revision: of the model.
        fingerprints: split -> sha256 of its rows.
    """
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    if not any(isinstance(value, str) and value.startswith("./") for value in settings.values()):
        return text
    found = [f"model {revision}", *(f"{split} sha256:{digest}" for split, digest in fingerprints.items())]
    lines = [
        "A path that begins with ./ is told without its folders; where they differ, pass --data and --model.",
        *found,
    ]
    return "".join(f"# {line}\n" for line in lines) + text


def _where(error: yaml.YAMLError) -> str:
    """The line of the error and its cause, as far as the parser gives them."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem and "\\t" in problem:
        problem = "a tab stands where YAML takes spaces only"
    return (f" at line {mark.line + 1}" if mark else "") + (f" ({problem})" if problem else "")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML silently keeps the last, and aliases without end.

    A few lines of `b: [*a, *a, *a]` hold millions of values; whatever shows, copies or checks them would never finish.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > LARGEST:
            raise yaml.MarkedYAMLError(None, None, "aliases (*) unfold to too many values", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a list or mapping stands for a name", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unfolded(node: yaml.Node, known: dict[int, float]) -> float:
    """Values below a node, counted as often as aliases repeat them; infinite where a node holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        each = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in each)
    return known[id(node)]
