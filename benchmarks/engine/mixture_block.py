"""One block of Qwen3-30B-A3B's shape: memory and time of a stage against the plan, and which experts are starved.

``python -m benchmarks.engine.mixture_block OUT``: random weights in bfloat16, 128 experts, 8 for each token, and 4
segments × 512 tokens, on CPUs through a stage of Ray. The machine should do nothing else.
"""

import argparse
import os
import shutil
from pathlib import Path

from mbs_ray.cluster.activations.host_memory import LARGE_PAGES

# As in the processes of stages; torch reads it when it is loaded.
os.environ.update(LARGE_PAGES)

import torch
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig

from benchmarks.engine.block_176b import GIB, write_random_segments
from benchmarks.engine.stage_memory import watched
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Compress, Job, job_text
from mbs_ray.cluster.layout import Layout
from mbs_ray.compression.block_report import expert_metrics, read_block_reports
from mbs_ray.methods import build_method
from mbs_ray.plan.hardware import Hardware, this_machine
from mbs_ray.plan.make_plan import make_plan
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.stage_time import stage_seconds
from mbs_ray.text.segment_file import SegmentSet

SEGMENTS, LENGTH, VOCABULARY = 4, 512, 512
METHODS = [{"name": "wanda", "sparsity": 0.5}, {"name": "gptq", "bits": 4, "group_size": 128}]


def write_model(folder: Path, experts: int = 128, chosen: int = 8) -> None:
    """A random mixture of one block in bfloat16, all experts in one tensor."""
    folder.mkdir(parents=True)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=experts,
        num_experts_per_tok=chosen,
        norm_topk_prob=True,
        dtype="bfloat16",
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, info in meta_checkpoint(str(folder)).tensors.items():
        value = torch.randn(info.shape, generator=generator) * 0.02
        tensors[name] = (1 + value if len(info.shape) == 1 else value).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    write_model(out / "model")
    calibration = job_text(
        "calibration", SegmentSet.open(write_random_segments(out / "c.parquet", SEGMENTS, VOCABULARY, LENGTH))
    )
    decoder = MetaDecoder(meta_checkpoint(str(out / "model")), torch.float32)
    works = [
        PlannedRun(str(spec["name"]), decoder, build_method(spec), TokenBatches(SEGMENTS, LENGTH, 1), ())
        for spec in METHODS
    ]
    hardware = Hardware((this_machine(),))
    rates = measure_rates(works, assumed_rates("cpu", False, arguments.threads, torch.float32), out, arguments.threads)
    parts = []
    print("| method | planned GiB | peak GiB | planned s | seconds | starved experts | unreached |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with connected(None, arguments.threads):
        for spec, work in zip(METHODS, works, strict=True):
            directory = out / work.label
            (directory / "blocks").mkdir(parents=True)
            job = Job(
                key=work.label,
                model=out / "model",
                compute_dtype="float32",
                microbatch=1,
                directory=directory,
                blocks=(range(1),),
                work=Compress(spec, calibration),
            )
            samples = watched(job, arguments.threads)
            plan = make_plan([work], hardware, Layout(1), rates)
            (report,) = read_block_reports(job.blocks_folder)
            counts = expert_metrics([report])
            peak, seconds = max(value for _, value in samples), samples[-1][0]
            print(
                f"| {work.label} | {plan.stages[0].host / GIB:.2f} | {peak / GIB:.2f} | {plan.wall:.1f} | "
                f"{seconds:.1f} | {counts['experts/starved']:.0f} | {counts['experts/unreached']:.0f} |",
                flush=True,
            )
            own = stage_seconds(work, range(1), False, rates, "none", True).parts
            own["collect"] += own.pop("moments", 0.0)
            own["solve"] += own.pop("factorise", 0.0)
            parts += [(work.label, part, own.get(part, 0.0), taken) for part, taken in report.seconds.items()]
            shutil.rmtree(directory)
    print("\n| method | part | planned s | seconds |\n|---|---|---:|---:|")
    for label, part, planned, taken in parts:
        print(f"| {label} | {part} | {planned:.1f} | {taken:.1f} |")


if __name__ == "__main__":
    main()
