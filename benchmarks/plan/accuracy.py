"""Planned against measured memory and time of a stage: random BLOOMs, their first blocks, on CPUs.

``python -m benchmarks.plan.accuracy OUT``: for every point a stage of Ray compresses ``--blocks`` blocks of the shape
of bloom-560m or bloom-1b1 with 16 segments × 2,048 tokens; its RssAnon + RssShmem above idle is sampled. Rates
are measured first, as ``mbs plan --measure`` does. The machine should do nothing else.
"""

import argparse
import os
import time
from pathlib import Path

from mbs_ray.cluster.activations.host_memory import LARGE_PAGES

# As in the processes of stages; torch reads it when it is loaded.
os.environ.update(LARGE_PAGES)

import torch

from benchmarks.engine.block_176b import LENGTH, write_random_segments
from benchmarks.engine.stage_memory import watched, write_model
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Compress, Job, job_text
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import Offload
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.methods import build_method
from mbs_ray.plan.hardware import Hardware, this_machine
from mbs_ray.plan.make_plan import make_plan
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.text.segment_file import SegmentSet

GIB = 2**30
WIDTHS = {"bloom-560m": (1024, 16), "bloom-1b1": (1536, 16), "bloom-7b1": (4096, 32)}
METHODS = {"wanda": {"name": "wanda"}, "sparsegpt": {"name": "sparsegpt"}, "gptq": {"name": "gptq", "bits": 4}}
POINTS = [
    ("bloom-560m", "wanda", "host"),
    ("bloom-560m", "sparsegpt", "nvme"),
    ("bloom-560m", "gptq", "host"),
    ("bloom-1b1", "wanda", "nvme"),
    ("bloom-1b1", "sparsegpt", "host"),
    ("bloom-1b1", "gptq", "nvme"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--layers", type=int, help="blocks that are written; default: as many as are compressed")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--microbatch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-only", action="store_true", help="measure no rates; planned times mean nothing then")
    parser.add_argument("--points", nargs="+", default=[":".join(point) for point in POINTS])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    segments = SegmentSet.open(write_random_segments(arguments.out / "c.parquet", arguments.segments, 256))
    points = [point.split(":") for point in arguments.points]
    print("| model | method | activations | planned GiB | measured | ratio | planned s | measured | ratio |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    rates = {}
    with connected(None, arguments.threads):
        for model, name, tier in points:
            folder = arguments.out / model
            if not folder.is_dir():
                hidden, heads = WIDTHS[model]
                write_model(folder, hidden, arguments.layers or arguments.blocks, heads)
            batches = TokenBatches(arguments.segments, LENGTH, arguments.microbatch)
            decoder = MetaDecoder(meta_checkpoint(str(folder)), torch.float32)
            works = [PlannedRun(one, decoder, build_method(spec), batches, ()) for one, spec in METHODS.items()]
            assumed = assumed_rates("", False, arguments.threads, torch.float32)
            if arguments.memory_only:
                rates[model] = assumed
            if model not in rates:
                begun = time.monotonic()
                rates[model] = measure_rates(works, assumed, arguments.out, arguments.threads)
                print(f"<!-- {model} measured in {time.monotonic() - begun:.0f} s: {rates[model]} -->", flush=True)
            work = next(one for one in works if one.label == name)
            hardware = Hardware((this_machine(arguments.out),))
            plan = make_plan([work], hardware, Layout(), rates[model], tier)
            parts = _planned(plan.seconds[0][0].parts, arguments.blocks / decoder.blocks)
            peak, seconds = _measured(arguments, folder, name, tier, segments)
            needed, total, taken = plan.stages[0].host, sum(parts.values()), sum(seconds.values())
            print(
                f"| {model} | {name} | {tier} | {needed / GIB:.2f} | {peak / GIB:.2f} | {peak / needed:.2f} "
                f"| {total:.1f} | {taken:.1f} | {taken / total:.2f} |",
                flush=True,
            )
            each = ", ".join(f"{part} {parts.get(part, 0):.1f} → {seconds.get(part, 0):.1f}" for part in seconds)
            print(f"<!-- {each} -->", flush=True)


def _planned(parts: dict[str, float], share: float) -> dict[str, float]:
    """As a stage reports them: moments are collected, the factor is part of solving, reading goes on beside."""
    own = {part: seconds * share for part, seconds in parts.items() if part != "read"}
    own["collect"] += own.pop("moments", 0.0)
    own["solve"] += own.pop("factorise", 0.0)
    return own


def _measured(
    arguments: argparse.Namespace, model: Path, name: str, tier: str, segments: SegmentSet
) -> tuple[int, dict[str, float]]:
    directory = arguments.out / f"{model.name}-{name}-{tier}"
    (directory / "blocks").mkdir(parents=True, exist_ok=True)
    calibration = job_text("calibration", segments)
    job = Job(
        key="plan",
        model=model,
        compute_dtype="float32",
        microbatch=arguments.microbatch,
        directory=directory,
        blocks=(range(arguments.blocks),),
        work=Compress(METHODS[name], calibration),
    )
    offload = Offload(tier, arguments.out if tier == "nvme" else None).of([job], 1)  # type: ignore[arg-type]
    peak = max(value for _, value in watched(job, arguments.threads, offload))
    seconds: dict[str, float] = {}
    for report in read_block_reports(job.blocks_folder):
        for part, taken in report.seconds.items():
            if part != "read":
                seconds[part] = seconds.get(part, 0.0) + taken
    return peak, seconds


if __name__ == "__main__":
    main()
