"""Two machines, played by two launchers on one, and lost processes: the job ends, and goes on when asked to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch
ROOT = Path(__file__).parents[1]
BATCH = ROOT / "accelerate_configs" / "slurm.sbatch"

SRUN = """#!/bin/bash
# Runs the command once for each of two nodes, passes SIGTERM on, and ends with the highest exit code, as srun does.
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
trap 'kill -TERM $first $second' TERM
worst=0
for node in $first $second; do
  wait $node; code=$?
  while kill -0 $node 2> /dev/null; do wait $node; code=$?; done
  if [ $code -gt $worst ]; then worst=$code; fi
done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; echo 127.0.0.2; fi
if [ "$1" = requeue ]; then echo "$2" >> "$REQUEUED"; fi
"""


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script on two machines with one process each."""
    for name, body in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    port = str(os.getpid() % 20000)  # the job's number decides on the port
    job = {"SLURM_JOB_ID": port, "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "node[1-2]"}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment(PATH=path, REQUEUED=str(tmp_path / "requeued"), **job)


def test_a_slurm_job_that_is_stopped_is_queued_again_and_goes_on(slurm, tiny_bert, reviews_csv, tmp_path) -> None:
    out = tmp_path / "out"
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--num_train_epochs", "12", "--early_stopping_patience", "0"]
    flags += ["--head", "random"]
    words = ["bash", str(BATCH), "recipes/text_cls.py", *flags, "--output_dir", str(out), "--disable_tqdm"]
    with (tmp_path / "first.log").open("w") as log:
        job = subprocess.Popen(words, cwd=ROOT, env=slurm, stdout=log, stderr=log)
        for _ in range(2000):
            if any(out.glob("checkpoints/checkpoint-*/trainer_state.json")) or job.poll() is not None:
                break
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        code = job.wait(timeout=120)
    assert code == os.EX_TEMPFAIL, (tmp_path / "first.log").read_text()[-3000:]
    assert (tmp_path / "requeued").read_text().split() == [slurm["SLURM_JOB_ID"]]
    assert not (out / "report.json").exists()

    again = subprocess.run(words, cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert report["processes"] == 2
    assert [e["epoch"] for e in report["history"] if "eval_loss" in e] == list(range(1, 13))
    assert again.stdout.count("trained in") == 1, "one machine speaks"
    assert len((tmp_path / "requeued").read_text().split()) == 1, "a job that is done is not queued again"


def test_the_batch_script_reads_as_bash_and_wants_a_folder(slurm) -> None:
    assert subprocess.run(["bash", "-n", str(BATCH)], check=False).returncode == 0
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+) ?(.*)$", BATCH.read_text("utf-8"), re.M))
    assert asked["ntasks-per-node"] == "1", "the launcher of a machine starts its processes"
    assert asked["signal"].startswith("B:USR1@"), "the script hears of the limit and tells the launchers"
    done = subprocess.run(["bash", str(BATCH), "recipes/text_cls.py"], env=slurm, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("--output_dir")) == (2, 1)


LOST = """
import os, signal, sys, time
from pathlib import Path
import torch
from hftl import Recipe, Trainer, main
how, step = sys.argv[1], Trainer.training_step
second = os.environ.get("RANK") == "1"

def note():
    Path(__file__).with_suffix(".died").write_text(str(time.time()))

def stepping(self, *args, **kwargs):
    if self.state.global_step == 5 and second:
        note()
        if how in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), getattr(signal, how))
        raise torch.OutOfMemoryError("CUDA out of memory") if how == "memory" else ZeroDivisionError("alone")
    return step(self, *args, **kwargs)

Trainer.training_step = stepping
flags = sys.argv[2:]
if how == "input" and second:
    note()
main(Recipe(), flags + (["--data", "nowhere.csv"] if how == "input" and second else []))
"""
TOLD = {
    "SIGKILL": (137, "Process 1 was ended by SIGKILL"),
    "SIGSTOP": (75, "Process 1 gave no sign of life for 4 s, so the run ends here. Add --resume"),
    "memory": (2, "process 1: error: The device's memory ran out"),
    "raise": (1, "ZeroDivisionError: alone"),
    "input": (2, "process 1: error: Expected a file or folder at nowhere.csv"),
}


@pytest.mark.parametrize("how", TOLD)
def test_a_process_that_is_lost_ends_the_run_within_a_minute(how, tiny_bert, reviews_csv, tmp_path) -> None:
    script, out = tmp_path / "lost.py", tmp_path / "out"
    script.write_text(LOST)
    flags = ["--model", tiny_bert, "--data", reviews_csv, "--num_train_epochs", "3", "--output_dir", str(out)]
    config = str(ROOT / "accelerate_configs" / "ddp_cpu.yaml")
    words = [
        sys.executable,
        "-m",
        "hftl.cli.launch",
        "--config_file",
        config,
        str(script),
        how,
        *flags,
        "--disable_tqdm",
    ]
    env = environment(HFTL_LOST_AFTER="4")
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False)
    seconds = time.time() - float(script.with_suffix(".died").read_text())
    print(f"{how}: the job ended {seconds:.0f} s after")  # pytest -s
    code, sentence = TOLD[how]
    assert seconds < 60 + (34 if how == "SIGSTOP" else 0), "torchrun gives what does not stop 30 s before it kills it"
    assert done.returncode == code, done.stderr[-3000:]
    assert sentence in done.stderr
    assert "ChildFailedError" not in done.stderr
    assert ("Traceback" in done.stderr) == (how == "raise"), "a defect alone keeps its traceback"
    assert not (out / "report.json").exists()
    states = list(out.glob("checkpoints/checkpoint-*/trainer_state.json"))
    assert bool(states) == (how != "input"), "what was written before can be resumed"
