"""What the `hftl` command does with a finished folder: predict, push, merge, export. Knows their flags, not their work.

What does the work is imported when it is called for: a mistyped flag answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hftl.cli import help as pages
from hftl.cli.flags import asks_help, read_flags
from hftl.errors import UserError
from hftl.results.lines import form_of
from hftl.settings.fields import Setting, own_settings
from hftl.tasks.base import Task
from hftl.train.startup import imports


def _flags(*settings: tuple[str, str, object, str], **ranges: str) -> dict[str, Setting]:
    return {each[0]: Setting(*each, "Flags", range=ranges.get(each[0], "")) for each in settings}


PREDICT = _flags(
    ("data", "str", None, "any source that training takes, with labels or without; - reads a text or path a line"),
    ("output", "str", None, "the file to write: .csv, .tsv, .jsonl or .parquet; - is csv on stdout"),
    ("batch_size", "int | None", None, "rows a step; else 32, or 8 where a CPU reads images"),
    ("split", "str | None", None, "which split of data that has several; else test"),
    ("on_bad_row", "str", "error", "error, or skip and count rows that are empty or unreadable"),
    ("only", "bool", False, "write inputs and predictions alone, without the other columns of the data"),
    (
        "threshold",
        "float | None",
        None,
        "of several labels a row, give those of this probability or above; else training's",
    ),
    ("overwrite", "bool", False, "replace the output file"),
    batch_size="[1, inf)",
    threshold="(0, 1)",
)
PREDICT["on_bad_row"] = replace(PREDICT["on_bad_row"], choices=("error", "skip"))
COLUMNS = {
    name: replace(setting, help=f"the column that is read as {name}", group="Columns, where names differ from training")
    for task in Task.known().values()
    for name, setting in own_settings(task).items()
    if name in task.roles
}
PUSH = _flags(
    ("private", "bool", False, "make the repository private, where it is new"),
    ("dry_run", "bool", False, "show what would be sent and look for secrets; send nothing"),
    ("revision", "str | None", None, "the branch to commit to; it is made where there is none"),
    ("commit_message", "str | None", None, "what the commit is called"),
)
MERGE = _flags(("overwrite", "bool", False, "replace what is in OUT"))
EXPORT = _flags(("overwrite", "bool", False, "replace OUT.onnx"))


def predict(words: list[str]) -> None:
    """`hftl predict FOLDER --data FILE --output FILE`."""
    (folder,), chosen = _read("predict", words, PREDICT | COLUMNS, "FOLDER")
    for name in ("data", "output"):
        if name not in chosen:
            raise UserError(f"hftl predict needs --{name}: hftl predict FOLDER --data FILE --output FILE.")
    overwrite, output = chosen.pop("overwrite", False), Path(chosen.pop("output"))
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else "lies in no folder that exists"
        raise UserError(f"--output {output} {what}. Pass the path of a file to write.")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; pass --overwrite to replace it, or another --output.")
    form_of(str(output))
    with imports():
        from hftl.results.predict import predict_file
    columns = {role: name for role in COLUMNS if (name := chosen.pop(role, None))}
    predict_file(folder, chosen.pop("data"), str(output), columns, **chosen)


def push(words: list[str]) -> None:
    """`hftl push FOLDER you/name`."""
    (folder, name), chosen = _read("push", words, PUSH, "FOLDER", "you/name")
    from hftl.results.publish import push as send

    print(send(folder, name, **chosen))


def merge(words: list[str]) -> None:
    """`hftl merge FOLDER OUT`."""
    (folder, out), chosen = _read("merge", words, MERGE, "FOLDER", "OUT")
    with imports():
        from hftl.results.merging import merge as fold
    print(fold(folder, out, **chosen))


def export(words: list[str]) -> None:
    """`hftl export FOLDER OUT.onnx`."""
    (folder, out), chosen = _read("export", words, EXPORT, "FOLDER", "OUT.onnx")
    with imports():
        from hftl.results.export import export as write
    print(write(folder, out, **chosen))


RUN: dict[str, Callable[[list[str]], None]] = {"predict": predict, "push": push, "merge": merge, "export": export}
FLAGS = {"predict": PREDICT | COLUMNS, "push": PUSH, "merge": MERGE, "export": EXPORT}


def run(command: str, words: list[str]) -> None:
    """Carry out one command, or print its page where help is asked for.

    Raises:
        UserError: words that do not read, and whatever the command refuses.
    """
    if asks_help(words):
        pages.say(pages.COMMANDS[command] + pages.flags(FLAGS[command].values()))
        return
    RUN[command](words)


def _read(command: str, words: list[str], known: Mapping[str, Setting], *needs: str) -> tuple[list[str], dict]:
    """The words that a command starts with, as many as it needs, and its flags."""
    given = words[: len(needs)]
    if len(given) < len(needs) or any(word.startswith("-") or not word for word in given):
        first = "the folder of a run first" if len(needs) == 1 else " and ".join(needs) + " first"
        more = " --data FILE --output FILE" if command == "predict" else ""
        raise UserError(f"hftl {command} takes {first}: hftl {command} {' '.join(needs)}{more}.")
    return given, read_flags(words[len(needs) :], known)
