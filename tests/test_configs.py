"""Every file of accelerate_configs: launched for real on the CPU, and where it needs GPUs built up to the launch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))

WHO = """
import sys
from pathlib import Path
from hftl import Recipe, Strategy
from hftl.run.arguments import training_arguments
args = training_arguments(Recipe(), Strategy(), Path(sys.argv[1]))
line = f"process {args.process_index} of {args.world_size} on {args.device.type}\\n"
sys.stdout.write(line)
"""
"""Says what a recipe finds out."""


def commands(config: Path) -> list[list[str]]:
    """The words of each command in the comments of a config."""
    lines = re.findall(r"#\s+(accelerate launch .*)", config.read_text(encoding="utf-8"))
    return [shlex.split(line) for line in lines]


def parsed(config: Path) -> tuple[argparse.Namespace, ClusterConfig]:
    """What `accelerate launch` makes of the config's own command, up to the start of processes."""
    words = commands(config)[0][2:]
    words[words.index("--config_file") + 1] = str(config)
    args, read, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return args, read


def handed_on(config: Path) -> dict[str, str]:
    """The environment that the config's processes would get, whoever uses the port of the test machine."""
    args, read = parsed(config)
    with mock.patch("accelerate.utils.launch.is_port_in_use", return_value=False):
        if args.use_deepspeed:
            args.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config)
            return prepare_deepspeed_cmd_env(args)[1]
        if args.multi_gpu or args.use_fsdp:
            return prepare_multi_gpu_env(args)
        return prepare_simple_launcher_cmd_env(args)[1]


def plugin(kind: Any, config: str) -> Any:
    """An accelerate plugin as a process would make it of its environment."""
    with mock.patch.dict(os.environ, handed_on(ROOT / "accelerate_configs" / config)):
        return kind()


@pytest.mark.launch
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("ddp_cpu", 2)])
def test_a_cpu_config_starts_as_many_processes_as_it_says(name: str, processes: int, tmp_path: Path) -> None:
    config = ROOT / "accelerate_configs" / f"{name}.yaml"
    script = tmp_path / "who.py"
    script.write_text(WHO)
    words = commands(config)[0]
    at = words.index("recipes/text_cls.py")
    words[at : at + 1] = [str(script), str(tmp_path / "out")]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]
    done = subprocess.run(launcher, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = sorted(re.findall(r"process .*", done.stdout))
    assert said == [f"process {i} of {processes} on cpu" for i in range(processes)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_read_by_accelerate_and_its_command_names_it(config: Path) -> None:
    assert isinstance(load_config_from_file(str(config)), ClusterConfig)
    for words in commands(config):
        assert f"accelerate_configs/{config.name}" in words
    args, read = parsed(config)
    nested = {*read.fsdp_config, *read.deepspeed_config}
    assert nested <= set(vars(launch_command_parser().parse_args(["x.py"]))), "accelerate would pass a key over"
    assert handed_on(config)
    assert args.num_processes == read.num_processes


@pytest.mark.parametrize(
    ("name", "kind", "processes", "machines"),
    [
        ("cpu", DistributedType.NO, 1, 1),
        ("ddp_cpu", DistributedType.MULTI_GPU, 2, 1),
        ("single_gpu", DistributedType.NO, 1, 1),
        ("ddp", DistributedType.MULTI_GPU, 2, 1),
        ("fsdp2", DistributedType.FSDP, 2, 1),
        ("deepspeed_zero2", DistributedType.DEEPSPEED, 2, 1),
        ("deepspeed_zero3", DistributedType.DEEPSPEED, 2, 1),
        ("multi_node", DistributedType.MULTI_GPU, 4, 2),
    ],
)
def test_a_config_asks_for_what_its_name_says(name: str, kind: DistributedType, processes: int, machines: int) -> None:
    read = load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml"))
    assert (read.distributed_type, read.num_processes, read.num_machines) == (kind, processes, machines)
    assert read.use_cpu == ("cpu" in name)
    assert read.mixed_precision is None, "precision is a flag of the recipe, so that recipe.yaml notes it"


def test_all_eight_configs_are_there() -> None:
    names = "cpu ddp ddp_cpu deepspeed_zero2 deepspeed_zero3 fsdp2 multi_node single_gpu"
    assert [path.stem for path in CONFIGS] == names.split()


def test_the_single_gpu_is_the_first_one() -> None:
    assert handed_on(ROOT / "accelerate_configs" / "single_gpu.yaml")["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_rank_and_an_address_on_the_command_line_override_the_multi_node_config() -> None:
    config = ROOT / "accelerate_configs" / "multi_node.yaml"
    words = [[str(config) if word.endswith(config.name) else word for word in words] for words in commands(config)]
    read = [_validate_launch_command(launch_command_parser().parse_args(one[2:]))[0] for one in words]
    assert [args.machine_rank for args in read] == [0, 1]
    assert {args.main_process_ip for args in read} == {"10.0.0.1"}


def test_fsdp2_splits_the_blocks_and_gathers_whole_weights() -> None:
    made = plugin(FullyShardedDataParallelPlugin, "fsdp2.yaml")
    assert made.fsdp_version == 2
    assert made.reshard_after_forward is True
    assert made.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert made.state_dict_type.name == "FULL_STATE_DICT"
    assert made.cpu_ram_efficient_loading is False


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_its_stage_from_the_config_and_the_rest_from_the_recipe(stage: int) -> None:
    made = plugin(DeepSpeedPlugin, f"deepspeed_zero{stage}.yaml")
    assert made.zero_stage == made.deepspeed_config["zero_optimization"]["stage"] == stage
    assert made.gradient_accumulation_steps == made.gradient_clipping == "auto"
    assert made.zero3_init_flag is False
    assert made.zero3_save_16bit_model is (stage == 3)
    known = {field.name for field in fields(DeepSpeedPlugin)}
    read = load_config_from_file(str(ROOT / "accelerate_configs" / f"deepspeed_zero{stage}.yaml"))
    assert set(read.deepspeed_config) <= known
