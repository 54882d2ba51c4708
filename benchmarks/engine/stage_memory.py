"""Peak host memory of a stage against the size of the checkpoint it compresses.

Writes a random BLOOM block by block, compresses it on one stage, and samples RssAnon + RssShmem of
the actor above its idle level. ``python benchmarks/engine/stage_memory.py OUT``
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, PreTrainedTokenizerFast
from transformers.models.bloom.modeling_bloom import BloomBlock

from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.job import Compress, Job, job_text
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO, Offload
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.device import forward_device
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.segment_draw import draw_segments
from mbs_ray.text.segment_request import SegmentRequest

MIB = 2**20


def write_model(folder: Path, hidden: int, layers: int, heads: int | None = None) -> int:
    """A random BLOOM in bf16, one shard per block; its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = BloomConfig(vocab_size=256, hidden_size=hidden, n_layer=layers, n_head=heads or hidden // 64)
    config.architectures = ["BloomForCausalLM"]
    config.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    weight_map: dict[str, str] = {}

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in BloomBlock(config, layer_idx=0).state_dict().items()}
    for index in range(layers):
        tensors = {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator) * (0.02 if len(shape) == 2 else 0.01)
            if "layernorm.weight" in name:
                value += 1
            tensors[f"h.{index}.{name}"] = value.bfloat16()
        shard(f"block-{index:03d}.safetensors", tensors)
    norms = {f"{norm}.{kind}": torch.ones(hidden) if kind == "weight" else torch.zeros(hidden)
             for norm in ("ln_f", "word_embeddings_layernorm") for kind in ("weight", "bias")}  # fmt: skip
    embedding = torch.randn(256, hidden, generator=generator)
    shard("outside.safetensors", {"word_embeddings.weight": embedding, **norms})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_text(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 9)))) for _ in range(500)]
    text = "\n\n".join(" ".join(generator.choice(words, 200)) for _ in range(200))
    (folder / "en.txt").write_text(text)


def held(process: int) -> int:
    """RssAnon + RssShmem of a process in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


class Sampler(threading.Thread):
    """Samples a process every 20 ms until told to stop."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.idle = held(process)
        self.samples: list[tuple[float, int]] = []
        self._process, self._over = process, threading.Event()

    def run(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(0.02):
            self.samples.append((time.monotonic() - begun, held(self._process) - self.idle))

    def stop(self) -> list[tuple[float, int]]:
        """Seconds since the start, and bytes above the idle level."""
        self._over.set()
        self.join()
        return self.samples


def watched(job: Job, threads: int, offload: Offload = AUTO) -> list[tuple[float, int]]:
    """Samples of the one stage that takes a job, from its beginning to its end."""
    with Pipeline(Layout(1), Numerics(forward_device().type, threads), offload) as pipeline:
        sampler = Sampler(pipeline.process_ids[0])
        sampler.start()
        pipeline.submit(job)
        while pipeline.busy:
            for outcome in pipeline.outcomes(1.0):
                if outcome.error:
                    raise outcome.error
        return sampler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["wanda"], help="names of methods, 50 %% sparsity")
    arguments = parser.parse_args()
    model, corpus = arguments.out / "model", arguments.out / "corpus"
    size = write_model(model, arguments.hidden, arguments.layers)
    write_text(corpus)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    print("| method | checkpoint MiB | stage's peak MiB | checkpoint ÷ peak | seconds |\n|---|---:|---:|---:|---:|")
    with connected(None, arguments.threads):
        request = SegmentRequest(
            str(corpus), str(model), ["en"], {"en": arguments.segments}, sequence_length=128, seed=0
        )
        segments = draw_segments(request, arguments.out / "segments")
        for name in arguments.methods:
            method = {"name": name, "sparsity": 0.5}
            directory = arguments.out / name
            (directory / "blocks").mkdir(parents=True)
            files = job_text("calibration", segments), job_text("evaluation", segments)
            job = Job(
                key="memory",
                model=model,
                compute_dtype="float32",
                microbatch=8,
                directory=directory,
                blocks=(range(arguments.layers),),
                work=Compress(method, files[0]),
                evaluation=files[1:],
            )
            samples = watched(job, arguments.threads)
            peak, seconds = max(value for _, value in samples), samples[-1][0]
            assert len(read_block_reports(job.blocks_folder)) == arguments.layers
            print(f"| {name} | {size / MIB:,.0f} | {peak / MIB:,.0f} | {size / peak:.1f} | {seconds:.0f} |")
            axes.plot([t for t, _ in samples], [v / MIB for _, v in samples], label=name)
    axes.axhline(size / MIB, color="black", linestyle="--", label="checkpoint")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB above the idle actor")
    axes.set_title(f"Random BLOOM, {arguments.layers} blocks of width {arguments.hidden}, bf16: one stage")
    axes.legend()
    print(save_figure(figure, arguments.out / "stage_memory.png"))


if __name__ == "__main__":
    main()
