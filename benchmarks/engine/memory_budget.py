"""Runs that need all the host memory that the plan gives a stage, or more.

``python -m benchmarks.engine.memory_budget``: Ray's memory monitor is set so that the plan's need is a given share of
the budget; each trial is a Ray of its own. Run it on a machine that does nothing else: what other processes take
meanwhile counts as theirs.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil

MINI = Path(str(files("mbs_ray") / "mini"))
MICROBATCH, LENGTH = 24, 2048
_GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="at each share")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 1.1])
    arguments = parser.parse_args()
    # What Ray and the driver take until the plan is made, as a trial with much room shows.
    taken = _trial(0.5, 0)["taken"]
    print("| share of the budget | need | a stage may use | outcome |\n|---:|---:|---:|---|", flush=True)
    for share in arguments.shares:
        for _ in range(arguments.trials):
            told = _trial(share, taken)
            print(f"| {share:.0%} | {told['need']:.2f} GiB | {told['room']} | {told['outcome']} |", flush=True)


def _trial(share: float, taken: float) -> dict:
    command = [sys.executable, "-m", "benchmarks.engine.memory_budget", "--one", str(share), str(taken)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(share: float, taken: float, folder: Path) -> dict:
    """Run one trial: need in GiB, the room the plan printed, GiB taken before it was made, and how the run ended."""
    from mbs_ray.cluster.activations.host_memory import RESERVED_SHARE
    from mbs_ray.cluster.layout import Layout
    from mbs_ray.plan.hardware import Hardware, Node
    from mbs_ray.plan.make_plan import PROCESS_BYTES, make_plan
    from mbs_ray.plan.planned_work import MetaDecoders, planned_runs
    from mbs_ray.plan.rates import assumed_rates
    from mbs_ray.run.sweep_spec import SweepSpec, validated
    from tests.support.memory import used_share
    from tests.support.models import write_bloom

    model = write_bloom(folder / "bloom")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"seq_length": LENGTH}))
    run = {
        "model": str(model),
        "corpus": str(MINI / "text" / "calibration"),
        "languages": ["en"],
        "segments": MICROBATCH,
        "sequence_length": LENGTH,
        "microbatch": MICROBATCH,
        "allow_repeat": True,
        "method": "wanda",
        "sampling": "equal",
        "keep": "metrics",
    }
    content = {"name": "budget", "run": run, "layout": {"stages": 1}, "threads": 2, "device": "cpu"}
    spec = validated(SweepSpec, content)
    works = planned_runs(spec.runs(), ["budget"], MetaDecoders(False))
    rates = assumed_rates("", False, 2, works[0].decoder.compute_dtype)
    plan = make_plan(works, Hardware((Node(0, 0, 2**40),)), Layout(1), rates, "host", False)
    need = plan.stages[0].host
    used = used_share() * psutil.virtual_memory().total
    threshold = min(0.97, RESERVED_SHARE + used_share(need / share + PROCESS_BYTES + taken * _GIB))
    os.environ.update(RAY_memory_usage_threshold=f"{threshold:.4f}", RAY_memory_monitor_refresh_ms="100")
    told = _conducted(spec, folder / "out")
    if "a stage may use" not in told["printed"]:
        raise SystemExit(told["outcome"])
    in_use = re.search(r"− ([\d.]+) GiB in use", told["printed"])
    return {
        "need": need / _GIB,
        "room": re.findall(r"a stage may use ([\d.]+ [GM]iB)", told["printed"])[0],
        "taken": float(in_use[1]) - used / _GIB if in_use else 0.0,
        "outcome": told["outcome"],
    }


def _conducted(spec: Any, out: Path) -> dict[str, str]:
    import ray
    from rich.console import Console

    from mbs_ray.driver.progress import Progress
    from mbs_ray.driver.sweep import conduct
    from mbs_ray.errors import InputError

    printed = io.StringIO()
    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    try:
        failed = conduct(spec, out, None, Progress(Console(file=printed, width=300))).failed
        kills = printed.getvalue().count("killed by Ray's memory monitor during")
        outcome = next(iter(failed.values())) if failed else f"finished, {kills} killed"
    except InputError as error:
        outcome = f"refused: {str(error).splitlines()[0][:80]}"
    ray.shutdown()
    return {"printed": printed.getvalue(), "outcome": outcome}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(one(float(sys.argv[2]), float(sys.argv[3]), Path(scratch))))
    else:
        main()
