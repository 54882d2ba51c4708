"""One block of BLOOM-176B's shape on one GPU: memory and time of every part against the plan.

``python -m benchmarks.engine.block_176b OUT``: random weights, 64 segments × 2,048 tokens (and 8 scored), no Ray. Then
the factor at 57,344 columns with its residual, and second moments of bfloat16 inputs against float32 ones. With a small
``--hidden`` it runs on a CPU too, which tells nothing of a GPU but that the script works.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BloomConfig

from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Compress, Job, job_text
from mbs_ray.cluster.layout import Layout, StagePlace
from mbs_ray.cluster.stage.stage_run import Send, StageRun
from mbs_ray.cluster.stage.worker import Worker
from mbs_ray.compression.block_report import BlockReport, read_block_reports
from mbs_ray.compression.device import forward_device
from mbs_ray.methods import Moment, Statistic, build_method
from mbs_ray.methods.factor import hessian_factor
from mbs_ray.plan.hardware import Hardware, this_machine
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.solver_memory import preparing_bytes
from mbs_ray.plan.stage_memory import hidden_bytes, phases_of
from mbs_ray.plan.stage_time import stage_seconds
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.language_draw import LanguageSegments
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.shards import DIGEST_BYTES, Source
from mbs_ray.text.token_stream import TokenStream

GIB = 2**30
LENGTH, MICROBATCH = 2048, 2
DEVICE = forward_device("auto")
CUDA = DEVICE.type == "cuda"
THREADS = min(8, os.cpu_count() or 1)
METHODS = [
    {"name": "sparsegpt", "sparsity": 0.5},
    {"name": "gptq", "bits": 3, "group_size": 128},
    {"name": "wanda", "sparsity": 0.5},
]


def write_model(folder: Path, hidden: int, heads: int, vocabulary: int) -> None:
    """A random BLOOM of one block in bf16."""
    folder.mkdir(parents=True)
    config = BloomConfig(vocab_size=vocabulary, hidden_size=hidden, n_layer=1, n_head=heads, dtype="bfloat16")
    config.architectures = ["BloomForCausalLM"]
    config.save_pretrained(folder)
    names = meta_checkpoint(str(folder)).tensors
    tensors = {}
    for name, info in names.items():
        value = torch.randn(info.shape, device=DEVICE) * 0.02
        tensors[name] = (1 + value if "layernorm.weight" in name or "ln_f.weight" in name else value).bfloat16().cpu()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_random_segments(path: Path, count: int, vocabulary: int, length: int = LENGTH) -> Path:
    generator = np.random.default_rng(0)
    streams = [
        TokenStream(
            token_ids=generator.integers(0, vocabulary, length, dtype=np.int32),
            document_index=np.zeros(length, np.int16),
            bytes=np.ones(length, np.uint16),
            sources=(Source("random", bytes(DIGEST_BYTES), ""),),
        )
        for _ in range(count)
    ]
    write_segments(path, "random", {"sequence_length": length}, {"en": LanguageSegments(streams, {})})
    return path


def settle() -> None:
    """Wait until the device has done what it was asked for."""
    if CUDA:
        torch.cuda.synchronize()


def begin_measuring() -> None:
    settle()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak of device memory since :func:`begin_measuring`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if CUDA else 0


class WatchedRun(StageRun):
    """Notes the peak of device memory of every part."""

    peaks: dict[str, int]

    @contextmanager
    def timed(self, report: BlockReport, part: str) -> Iterator[None]:
        begin_measuring()
        with super().timed(report, part):
            yield
            settle()
        self.peaks[part] = peak_bytes()


class WatchedWorker(Worker):
    """``peaks`` of device memory by part."""

    def __init__(self, place: StagePlace, numerics: Numerics) -> None:
        super().__init__(place, numerics)
        self.peaks: dict[str, int] = {}

    def stage_run(self, job: Job, store: ActivationStore, send: Send | None) -> StageRun:
        run = WatchedRun(**vars(super().stage_run(job, store, send)))
        run.peaks = self.peaks
        return run


def run_block(out: Path, model: Path, segments: int, scored: int, vocabulary: int) -> list[dict[str, Any]]:
    """Take the block through a stage's work with each method: bytes and seconds of every part, planned and measured."""
    files = [
        write_random_segments(out / f"{name}.parquet", n, vocabulary) for name, n in (("c", segments), ("e", scored))
    ]
    calibration, evaluation = (job_text(path.stem, SegmentSet.open(path)) for path in files)
    decoder = MetaDecoder(meta_checkpoint(str(model)), torch.bfloat16)
    batches = TokenBatches(segments, LENGTH, MICROBATCH), (TokenBatches(scored, LENGTH, MICROBATCH),)
    works = [PlannedRun(str(spec["name"]), decoder, build_method(spec), *batches) for spec in METHODS]
    hardware = Hardware((this_machine(),))
    rates = measure_rates(works, assumed_rates(hardware.device, CUDA, THREADS, torch.bfloat16), out, THREADS)
    activations = sum(hidden_bytes(decoder, one, one.segments) for one in works[0].batches)
    rows = []
    for spec, work in zip(METHODS, works, strict=True):
        directory = out / work.label
        (directory / "blocks").mkdir(parents=True)
        job = Job(
            key=work.label,
            model=model,
            compute_dtype="bfloat16",
            microbatch=MICROBATCH,
            directory=directory,
            blocks=(range(1),),
            work=Compress(spec, calibration),
            evaluation=(evaluation,),
        )
        if CUDA:
            torch.cuda.empty_cache()
        worker = WatchedWorker(StagePlace(0, 0, Layout()), Numerics(DEVICE.type, THREADS))
        worker.take(job, ActivationStore(MemoryTier(DEVICE)), None)
        spans = worker.process.timeline.take()
        seconds = {"evaluate": sum(one.end - one.begin for one in spans if one.part == "evaluate")}
        seconds |= read_block_reports(job.blocks_folder)[0].seconds
        planned = stage_seconds(work, range(1), CUDA, rates, "none", True).parts
        planned["collect"] += planned.pop("moments", 0.0)
        planned["solve"] += planned.pop("factorise", 0.0)
        phases = {phase.name: sum(phase.device.values()) + activations for phase in phases_of(work, range(1), False)}
        rows += [
            {
                "method": work.label,
                "part": part,
                "planned_bytes": phases.get(part),
                "peak_bytes": worker.peaks.get(part),
                "planned_seconds": planned.get(part),
                "seconds": seconds.get(part, 0.0),
            }
            for part in ("read", "collect", "solve", "write", "propagate", "evaluate")
        ]
        shutil.rmtree(directory)
    return rows


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("| method | part | planned GiB | measured | ratio | planned s | measured | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        planned, peak = row["planned_bytes"], row["peak_bytes"]
        memory = f"{planned / GIB:.1f} | {peak / GIB:.1f} | {peak / planned:.2f}" if planned and peak else " | | "
        asked = row["planned_seconds"] or float("nan")
        times = f"{asked:.1f} | {row['seconds']:.1f} | {row['seconds'] / asked:.2f}"
        print(f"| {row['method']} | {row['part']} | {memory} | {times} |", flush=True)


def unit_upper(upper: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of S in float64: what stands on and below its diagonal has no meaning."""
    beyond = torch.arange(len(upper), device=DEVICE) - rows[:, None]
    return upper[rows].double().where(beyond > 0, (beyond == 0).double())


def factor_residual(columns: int, tokens: int) -> dict[str, float]:
    """Measure the factors S, P at full size: rows of S P Sᵀ against the damped Hessian, in float64."""
    moment = Moment.zeros(columns, Statistic.FULL, device=DEVICE)
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    scale = torch.rand(columns, device=DEVICE, generator=generator) + 0.1
    for _ in range(0, tokens, 4096):
        moment.add((torch.randn(4096, columns, device=DEVICE, generator=generator) * scale).bfloat16())
    begin_measuring()
    begun = time.monotonic()
    factor = hessian_factor(moment, 0.01, "linear")
    settle()
    seconds = time.monotonic() - begun
    peak = peak_bytes()
    rows = torch.randperm(columns, device=DEVICE, generator=generator)[:64]
    own = unit_upper(factor.upper, rows) * factor.pivots.double()
    worst = 0.0
    for start in range(0, columns, 2048):
        part = torch.arange(start, min(start + 2048, columns), device=DEVICE)
        hessian = moment.sum[rows][:, part].double() / factor.scale.double()
        hessian += factor.damping * (rows[:, None] == part)
        worst = max(worst, float((own @ unit_upper(factor.upper, part).t() - hessian).abs().max()))
    return {
        "columns": columns,
        "seconds": seconds,
        "tflops": columns**3 / 3 / seconds / 1e12,
        "peak_bytes": peak,
        "planned_bytes": moment.sum.nbytes + preparing_bytes(build_method("sparsegpt"), columns),
        "damping": factor.damping,
        "largest_residual_of_64_rows": worst,
    }


def moment_types(columns: int, tokens: int) -> list[dict[str, Any]]:
    """Measure second moments of the same bf16 inputs by products of bf16 and of float32 numbers."""
    generator = torch.Generator(device=DEVICE).manual_seed(1)
    inputs = [torch.randn(4096, columns, device=DEVICE, generator=generator).bfloat16() for _ in range(tokens // 4096)]
    rows = torch.arange(0, columns, columns // 64, device=DEVICE)
    exact = sum(one[:, rows].double().t() @ one.double() for one in inputs)
    found = []
    for name, cast in (("bfloat16", lambda one: one), ("float32", lambda one: one.float())):
        moment = Moment.zeros(columns, Statistic.FULL, device=DEVICE)
        moment.add(cast(inputs[0]))
        moment.sum.zero_()
        settle()
        begun = time.monotonic()
        for one in inputs:
            moment.add(cast(one))
        settle()
        seconds = (time.monotonic() - begun) / len(inputs)
        error = float(torch.linalg.norm(moment.sum[rows].double() - exact) / torch.linalg.norm(exact))
        found.append({"inputs": name, "columns": columns, "seconds_for_4096_tokens": seconds, "error": error})
    return found


def device_name() -> str:
    return torch.cuda.get_device_name() if CUDA else f"CPU, {THREADS} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=14336)
    parser.add_argument("--heads", type=int, default=112)
    parser.add_argument("--vocabulary", type=int, default=65536)
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--scored", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{device_name()}, torch {torch.__version__}, {arguments.segments} × {LENGTH} tokens", flush=True)
    model = arguments.out / "model"
    write_model(model, arguments.hidden, arguments.heads, arguments.vocabulary)
    with torch.inference_mode():
        print(factor_residual(4 * arguments.hidden, 65536), flush=True)
        print(moment_types(4 * arguments.hidden, 16384), flush=True)
    print_table(run_block(arguments.out, model, arguments.segments, arguments.scored, arguments.vocabulary))


if __name__ == "__main__":
    main()
