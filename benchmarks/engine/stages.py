"""Two stages against one: wall time of a sweep of eight runs, and how busy the stages are.

Both sweeps take one CPU thread per stage, the same segments and the same dense scores, which are made beforehand.
``python benchmarks/engine/stages.py OUT``; a machine of two cores, otherwise idle.
"""

import argparse
import io
import os
import statistics
import threading
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import ray
from rich.console import Console

import mbs_ray
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.run.sweep_spec import SweepSpec, validated

_MINI = Path(mbs_ray.__file__).parent / "mini"
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuSampler:
    """CPU seconds of every process of a stage, as they were at each moment."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._samples: dict[int, list[tuple[float, float]]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "CpuSampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self, begin: float, end: float) -> list[float]:
        """CPU seconds between two moments, by process in the order of their start."""
        return [_at(samples, end) - _at(samples, begin) for _, samples in sorted(self._samples.items())]

    def _sample(self) -> None:
        processes: list[int] = []
        while not self._over.wait(0.05):
            if len(processes) < self._stages:
                actors = ray._private.state.actors().values()
                processes = [
                    one["Pid"] for one in actors if one["ActorClassName"] == "Stage" and one["State"] == "ALIVE"
                ]
            for process in processes:
                try:
                    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                used = (int(fields[11]) + int(fields[12])) / _TICKS
                self._samples.setdefault(process, []).append((time.time(), used))


def _at(samples: list[tuple[float, float]], moment: float) -> float:
    return samples[min(bisect(samples, (moment, 0.0)), len(samples) - 1)][1]


def sweep(name: str, stages: int, method: str, segments: int) -> SweepSpec:
    run = {
        "model": str(_MINI / "models" / "bloom-mini-5m"),
        "corpus": str(_MINI / "text" / "calibration"),
        "languages": "paper",
        "method": {"name": method, "sparsity": 0.5},
        "sampling": "equal",
        "segments": segments,
        "sequence_length": 128,
        "allow_repeat": True,
        "evaluation": {"parallel": {"corpus": str(_MINI / "text" / "evaluation"), "segments": 4}},
    }
    content = {
        "name": name,
        "run": run,
        "grid": {"seed": list(range(8))},
        "layout": {"stages": stages},
        "threads": 1,
    }
    return validated(SweepSpec, content)


def busy(timeline: Path, sampler: CpuSampler) -> list[float]:
    """CPU seconds over wall of each stage, from the last one's first microbatch to the first one's last write."""
    spans = pd.read_parquet(timeline)
    begin = float(spans[spans["stage"] == spans["stage"].max()]["begin"].min())
    end = float(spans[(spans["stage"] == 0) & (spans["part"] == "write")]["end"].max())
    return [seconds / (end - begin) for seconds in sampler.seconds(begin, end)]


@contextmanager
def started() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--segments", type=int, default=256)
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    out, progress = arguments.out.resolve(), Progress(Console(file=io.StringIO()))
    # Segments and dense scores, which all sweeps below find there; Ray Data leaves actors behind that poll.
    with started():
        conduct(sweep("first", 1, "magnitude", arguments.segments), out, None, progress)
    walls: dict[int, list[float]] = {1: [], 2: []}
    print("| sweep | stages | wall s | busy |\n|---:|---:|---:|---|")
    for repeat in range(arguments.repeats):
        for stages, taken in walls.items():
            name = f"stages-{stages}-{repeat}"
            with started(), CpuSampler(stages) as sampler:
                begun = time.monotonic()
                conduct(sweep(name, stages, arguments.method, arguments.segments), out, None, progress)
                taken.append(time.monotonic() - begun)
            shares = busy(out / name / "timeline.parquet", sampler) if stages > 1 else []
            shown = ", ".join(f"{share:.0%}" for share in shares)
            print(f"| {repeat + 1} | {stages} | {taken[-1]:.1f} | {shown} |", flush=True)
    one, two = (statistics.median(taken) for taken in walls.values())
    print(f"\nmedian of two stages ÷ median of one: {two / one:.3f} (ideal 9/16 = 0.5625)")


if __name__ == "__main__":
    main()
