"""The files users start from are valid: sweep files, the cluster file, the job's entry point."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mbs_ray.specs import load_sweep

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_file_is_valid(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert len(sweep.runs()) == len(set(sweep.labels(sweep.runs())))


def test_the_cluster_file_is_valid_for_rays_launcher() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in starts:
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_the_jobs_entry_point_is_the_sweep_command() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Run a grid of runs" in done.stdout
