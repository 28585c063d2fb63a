"""What a process shows: start-up without torch, exit codes, and one sentence for each way a run can fail."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hftl.cli import failures
from hftl.cli.failures import say_errors
from hftl.errors import UserError
from hftl.run.recipe import Recipe
from hftl.train.resume.stopping import Left, Stopped

ROOT = Path(__file__).parents[1]


def script(folder: Path, body: str) -> Path:
    """A recipe script whose run is `body`."""
    path = folder / "recipe.py"
    path.write_text(
        f'"""Sorts reviews.\n\n    accelerate launch recipe.py   0.91\n"""\nimport sys, os, time, signal\n'
        f"from hftl import LayerDecay, Recipe, main\n\nclass Mine(Recipe):\n    def run(self):\n        {body}\n\n"
        f"if __name__ == '__main__':\n    main(Mine(seed=7, strategy=LayerDecay(0.9)))\n"
    )
    return path


def launch(*words: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more.pop("env", {})
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=env, timeout=60, **more
    )


@pytest.mark.launch
@pytest.mark.parametrize("words", [["--help"], ["--help", "all"], ["--help", "strategies"], ["--sed", "1"]])
def test_help_and_a_bad_flag_answer_in_under_a_second_without_torch(tmp_path: Path, words: list[str]) -> None:
    path = script(tmp_path, "pass")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = launch("-X", "importtime", path, *words)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "hftl.cli.help" in imported
    assert not imported & {"torch", "transformers", "numpy", "datasets", "peft"}


@pytest.mark.launch
def test_the_help_of_a_script_starts_with_its_docstring_and_two_commands(tmp_path: Path) -> None:
    path = script(tmp_path, "pass")
    shown = launch(path, "--help").stdout
    assert shown.startswith("Sorts reviews.\n\n    accelerate launch recipe.py   0.91\n\n")
    assert shown.count(f"accelerate launch {path}") == 2
    assert "(default: LayerDecay(decay=0.9))" in " ".join(shown.split())


@pytest.mark.launch
@pytest.mark.parametrize(
    ("body", "words", "code", "said"),
    [
        ("print(self.seed)", [], 0, ""),
        ("pass", ["--sed", "1"], 2, "error: There is no flag --sed."),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", [], 130, "Stopped by Ctrl-C. No checkpoint"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", [], 143, "Stopped by SIGTERM. No checkpoint"),
        ("os.kill(os.getpid(), signal.SIGUSR1); time.sleep(9)", [], 138, "Stopped by SIGUSR1. No checkpoint"),
        ("sys.exit(5)", [], 5, ""),
    ],
)
def test_a_script_ends_with_the_exit_code_of_its_failure(
    tmp_path: Path, body: str, words: list[str], code: int, said: str
) -> None:
    done = launch(script(tmp_path, body), *words)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)
    assert done.stdout == ("7\n" if code == 0 else "")


@pytest.mark.launch
def test_a_defect_keeps_its_traceback_and_says_where_to_take_it(tmp_path: Path) -> None:
    done = launch(script(tmp_path, "{}['x']"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "KeyError: 'x'" in done.stderr
    assert done.stderr.rstrip().endswith("Please report it with this traceback and `hftl --version`.")


@pytest.mark.launch
def test_a_reader_that_closes_early_is_no_failure(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from hftl.cli.main import hftl; hftl(['strategies'])"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.launch
def test_accelerate_shows_the_sentence_and_with_q_nothing_of_its_own(tmp_path: Path) -> None:
    path = script(tmp_path, "pass")
    done = launch("-m", "accelerate.commands.launch", "-q", path, "--sed", "1")
    assert done.returncode == 1  # the launcher's own code; that of the script is 2
    assert done.stderr.splitlines()[-1].startswith("error: There is no flag --sed.")
    assert "Traceback" not in done.stderr


def test_importing_hftl_and_its_light_names_costs_no_torch() -> None:
    code = "import sys; from hftl import Recipe, Strategy, main, LayerDecay; import hftl; print('torch' in sys.modules)"
    assert launch("-c", code).stdout == "False\n"


def test_an_unknown_public_name_is_an_attribute_error_with_a_suggestion() -> None:
    import hftl

    with pytest.raises(AttributeError, match="Did you mean 'LayerDecay'"):
        _ = hftl.LayerDekay
    with pytest.raises(AttributeError, match="Did you mean 'load'"):
        _ = hftl.laod
    assert {"Recipe", "main", "load", "Strategy", "Trainer", "Report", "LayerDecay"} <= set(dir(hftl))


def test_user_errors_pass_through_python_unchanged() -> None:
    with pytest.raises(UserError, match="learning_rte"):
        Recipe(learning_rte=1)


# what failures say


def said(capsys: pytest.CaptureFixture[str], error: BaseException, code: int = 2, resumable: bool = False) -> str:
    with pytest.raises(SystemExit) as end, say_errors(left=lambda: Left("Add --resume.", resumable)):
        raise error
    assert end.value.code == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class SafetensorError(Exception):
    """Named as safetensors'."""


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (UserError("Expected\na label."), ["error: Expected a label."]),
        (OSError(errno.ENOSPC, "No space", "runs/a"), ["No space is left on the disk at runs/a", "--output_dir"]),
        (OSError(errno.EDQUOT, "Quota"), ["No space is left on the disk"]),
        (SafetensorError("I/O error: No space left on device (os error 28)"), ["No space is left on the disk"]),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), ["No space is left"]),
        (OSError(errno.EROFS, "Read-only", "runs/a"), ["refused runs/a (Read-only file system)", "another path"]),
        (PermissionError(errno.EACCES, "denied", "runs/a"), ["refused runs/a (Permission denied)"]),
        (NotADirectoryError(errno.ENOTDIR, "no", "x.csv/a"), ["refused x.csv/a (Not a directory)"]),
        (MemoryError(), ["Memory ran out", "--per_device_train_batch_size"]),
        (OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), ["device's memory", "--gradient_accumulation_steps"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ["device's memory"]),
        (SafetensorError("header too large"), ["damaged (header too large)"]),
        (ConnectionError("Couldn't reach 'a/b'"), ["Couldn't reach 'a/b': check the network"]),
        (RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`."), ["pip install wandb"]),
        (ValueError("a/b contains custom code; pass trust_remote_code=True"), ["--trust_remote_code"]),
    ],
)
def test_a_known_failure_is_one_sentence_with_a_cure(
    capsys: pytest.CaptureFixture[str], error: BaseException, fragments: list[str]
) -> None:
    sentence = said(capsys, error)
    assert all(fragment in sentence for fragment in fragments), sentence


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RuntimeError("shape"), ValueError("x"), BrokenPipeError(errno.EPIPE, "x"), FileNotFoundError("x")],
)
def test_an_unknown_failure_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, say_errors(), say_errors():
        raise error
    assert caught.value.__notes__ == [failures.BUG]


def test_a_failure_is_known_by_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    outer = ValueError("generation failed")
    outer.__cause__ = OSError(errno.ENOSPC, "No space", "cache/x.arrow")
    assert "No space is left on the disk at cache/x.arrow" in said(capsys, outer)


def test_the_libraries_own_refusals_are_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from huggingface_hub import errors
    from transformers import AutoConfig, TrainingArguments

    offline = OSError("We couldn't connect to 'https://huggingface.co' to load the files.")
    offline.__cause__ = errors.LocalEntryNotFoundError("no copy")
    assert "check the network, or name a local folder" in said(capsys, offline)
    assert "HF_HUB_OFFLINE" in said(capsys, errors.OfflineModeIsEnabled("offline"))
    assert "owner/name on the Hub" in said(capsys, errors.HFValidationError("bad id 'a b'"))

    with pytest.raises(ValueError, match="requires the save and eval strategy") as caught:
        TrainingArguments(str(tmp_path), load_best_model_at_end=True)
    assert "These settings do not work together: --load_best_model_at_end" in said(capsys, caught.value)
    with pytest.raises(ValueError, match="Unrecognized model") as unknown:
        AutoConfig.from_pretrained(tmp_path_with_config(tmp_path))
    assert said(capsys, unknown.value).endswith(": check --model.\n")


def tmp_path_with_config(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def test_a_stop_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, KeyboardInterrupt(), 130, resumable=True) == "Stopped by Ctrl-C. Add --resume.\n"
    for name, code in (("SIGTERM", 143), ("SIGUSR1", 138)):
        assert said(capsys, Stopped(name), code) == f"Stopped by {name}. Add --resume.\n"
        assert said(capsys, Stopped(name), 75, resumable=True) == f"Stopped by {name}. Add --resume.\n"


def test_a_machine_that_gave_out_says_how_to_go_on_where_there_is_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said(capsys, OSError(errno.ENOSPC, "No space", "a"), resumable=True).endswith("disk. Add --resume.\n")
    assert "--resume" not in said(capsys, OSError(errno.ENOSPC, "No space", "a"))


def test_one_process_speaks_for_all_except_of_what_befell_it_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setenv(name, "1")
        with pytest.raises(SystemExit) as left, say_errors():
            raise UserError("Expected a label.")
        assert left.value.code == 2
        assert capsys.readouterr().err == "process 1: error: Expected a label.\n"  # nobody has ended it meanwhile
    assert waited == [5, 5]
    assert said(capsys, MemoryError()).startswith("process 1: error: Memory ran out")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert said(capsys, UserError("Expected a label.")) == "error: Expected a label.\n"


def test_sigterm_means_what_it_meant_once_the_command_is_over() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with say_errors():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.launch
def test_a_forked_worker_dies_of_sigterm_as_workers_do(tmp_path: Path) -> None:
    body = (
        "child = os.fork() or time.sleep(9); "
        "time.sleep(0.5); "  # a fork drops the signals that come before it has settled
        "os.kill(child, signal.SIGTERM); "
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = launch(script(tmp_path, body))
    assert (done.stdout, done.stderr) == ("-15\n", "")
