"""Two runs on a Ray whose memory monitor kills soon: one needs more memory than there is, the other hardly any.

``python -m tests.slow.memory_pressure FOLDER`` prints how they ended, as JSON in its last line.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.memory import used_share

#: Above what the machine uses now; the greedy run's attention weights alone need 9 GiB. Between them is room for what
#: else the machine does meanwhile.
ROOM = 6 * 2**30
GREEDY_LENGTH, GREEDY_MICROBATCH = 2048, 144


def start_ray() -> None:
    os.environ.update(RAY_memory_usage_threshold=f"{used_share(ROOM):.4f}", RAY_memory_monitor_refresh_ms="50")
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)


def main(folder: Path) -> None:
    start_ray()
    from rich.console import Console

    from mbs_ray.cluster.job import Job
    from mbs_ray.cluster.layout import Layout
    from mbs_ray.cluster.offload import AUTO
    from mbs_ray.cluster.resources import Resources
    from mbs_ray.cluster.stage_pool import StagePool
    from mbs_ray.driver.progress import Progress
    from mbs_ray.driver.stage_driver import StageDriver
    from mbs_ray.run.numerics import Numerics
    from mbs_ray.text.segment_request import SegmentRequest
    from tests.support.engine import LANGUAGES, digest, draw_here, make_job, run_here
    from tests.support.models import write_bloom, write_corpus

    model, corpus = write_bloom(folder / "model"), write_corpus(folder / "corpus")

    def drawn(count: int, length: int, seed: int) -> SegmentRequest:
        allocation = dict.fromkeys(LANGUAGES, count)
        return SegmentRequest(str(corpus), str(model), LANGUAGES, allocation, length, seed, allow_repeat=True)

    wide = draw_here(drawn(GREEDY_MICROBATCH // len(LANGUAGES), GREEDY_LENGTH, 0), folder)
    small, held_out = draw_here(drawn(2, 32, 1), folder), draw_here(drawn(1, 32, 2), folder)
    method = {"name": "sparsegpt", "sparsity": 0.5}
    greedy = make_job("greedy", model, folder / "greedy", 1, wide, held_out, method, microbatch=GREEDY_MICROBATCH)
    modest = make_job("modest", model, folder / "modest", 1, small, held_out, method)
    alone = make_job("alone", model, folder / "alone", 1, small, held_out, method)
    run_here(1, [alone])
    ended = {}

    def keep(job: Job, error: Exception | None) -> Iterable[Job]:
        ended[job.key] = None if error is None else str(error)
        return ()

    with StagePool() as pool:
        resources = Resources(Layout(1), Numerics("cpu", 1))
        StageDriver(resources, pool, AUTO, Progress(Console(width=200))).work([greedy, modest], keep)
        starts = pool.starts
    same = digest(modest.directory) == digest(alone.directory)
    print(json.dumps({"ended": ended, "starts": starts, "same_bits": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
