"""``mbs sweep`` whose processes obey orders: ``python -m tests.slow.chaos.driver SWEEP.yaml OUT RAY_ADDRESS``."""

import os
import sys
from pathlib import Path

import ray
from rich.console import Console

from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.errors import InputError
from mbs_ray.run.sweep_spec import load_sweep
from tests.slow.chaos.orders import FOLDER, START, install_in_driver, install_in_worker


def main(file: str, out: str, address: str) -> int:
    install_in_driver()
    told = {name: os.environ[name] for name in (FOLDER, START, "PYTHONPATH")}
    runtime_env = {"worker_process_setup_hook": install_in_worker, "env_vars": told}
    ray.init(address=address, runtime_env=runtime_env, log_to_driver=False)
    try:
        result = conduct(load_sweep(Path(file)), Path(out), None, Progress(Console(width=200)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for run, reason in result.failed.items():
        print(f"failed: {run}: {reason}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
