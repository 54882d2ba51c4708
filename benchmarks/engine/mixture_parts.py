"""Planned against measured parts of one block of a mixture, in CPU seconds of one core and bytes by phase.

``python -m benchmarks.engine.mixture_parts OUT``: an eighth of the block of ``mixture_block`` (16 experts, one for each
token, so that as many tokens reach an expert) in one process, without Ray. The clock is that of the process, so that
other work on the machine slows it less than it would slow seconds.
"""

import argparse
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mbs_ray.cluster.activations.host_memory import LARGE_PAGES, return_freed_memory, return_large_tensors

# As in the processes of stages; torch reads it when it is loaded.
os.environ.update(LARGE_PAGES)

import torch

from benchmarks.engine.mixture_block import LENGTH, METHODS, SEGMENTS, VOCABULARY, write_model
from benchmarks.engine.stage_memory import held
from mbs_ray.compression.routing import Routes, borrow, collect_routed
from mbs_ray.compression.solve import solve
from mbs_ray.methods import Method, Moment, build_method
from mbs_ray.model.block_files import write_block
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan import measured_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.stage_memory import phases_of
from mbs_ray.plan.stage_time import stage_seconds

MIB = 2**20


class Parts:
    """CPU seconds of the parts of a block, and the peak of RssAnon + RssShmem in each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._now, self._idle = "", held(os.getpid())
        threading.Thread(target=self._sample, daemon=True).start()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._now, begun = name, time.process_time()
        yield
        self.seconds[name] = time.process_time() - begun
        return_freed_memory()
        self._now = ""

    def _sample(self) -> None:
        while True:
            now, size = self._now, held(os.getpid()) - self._idle
            self.peaks[now] = max(self.peaks.get(now, 0), size)
            time.sleep(0.01)


def take_through(folder: Path, method: Method, written: Path) -> Parts:
    """Take one block through a stage's parts, in its order, and free what the stage frees."""
    decoder = Decoder(Checkpoint(folder), torch.float32)
    ids = torch.randint(0, VOCABULARY, (SEGMENTS, LENGTH), generator=torch.Generator().manual_seed(1))
    hidden = [decoder.embed(one[None]) for one in ids]
    linears, parts = list(decoder.linears(0)), Parts()

    def microbatches() -> Iterator[torch.Tensor]:
        for one in hidden:
            routes.begin(["en"])
            yield one

    with parts.part("read"):
        tensors = decoder.read_block(0)
    with parts.part("collect"):
        block = decoder.load_block(0, tensors)
        routes = Routes(block, ["en"])
        collected = collect_routed(
            decoder, block, 0, microbatches, method.statistic, linears, 4.0, routes, lambda counts: counts
        )
        borrow(collected)
        del block
    with parts.part("solve"):
        tensors.update(solve(tensors, linears, collected, method, decoder.device, "block 0").weights)
    del collected
    with parts.part("write"):
        write_block(written, 0, decoder.to_stored(0, tensors))
    with parts.part("propagate"):
        decoder.load_block(0, tensors)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=[str(spec["name"]) for spec in METHODS], default="wanda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return_large_tensors()
    model, written = arguments.out / "model", arguments.out / "written"
    if not model.is_dir():
        write_model(model, experts=16, chosen=1)
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    method = build_method(next(spec for spec in METHODS if spec["name"] == arguments.method))
    # The kernel is compiled at its first use, which a stage of many blocks does not notice.
    with torch.inference_mode():
        moment = Moment.zeros(2048, method.statistic)
        moment.add(torch.randn(4096, 2048))
        method.compress(torch.randn(256, 2048).bfloat16(), moment)
        parts = take_through(model, method, written)
    decoder = MetaDecoder(meta_checkpoint(str(model)), torch.float32)
    run = PlannedRun("run", decoder, method, TokenBatches(SEGMENTS, LENGTH, 1), ())
    measured_rates.time.monotonic = time.process_time
    rates = measured_rates.measure_rates([run], assumed_rates("cpu", False, 1, torch.float32), arguments.out, 1)
    planned = stage_seconds(run, range(1), True, rates, "host", False).parts
    planned["collect"] += planned.pop("moments", 0.0)
    planned["solve"] += planned.pop("factorise", 0.0)
    memory = {one.name: sum(one.on_cpu().host.values()) for one in phases_of(run, [0], last=True)}
    print(f"<!-- {rates} -->")
    print("| part | planned CPU s | measured | planned MiB | peak |\n|---|---:|---:|---:|---:|")
    for part, seconds in parts.seconds.items():
        size = f"{memory[part] / MIB:.0f}" if part in memory else ""
        print(f"| {part} | {planned[part]:.1f} | {seconds:.1f} | {size} | {parts.peaks.get(part, 0) / MIB:.0f} |")
    print(f"| together | {sum(planned.values()):.1f} | {sum(parts.seconds.values()):.1f} | | |")


if __name__ == "__main__":
    main()
