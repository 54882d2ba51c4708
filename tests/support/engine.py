"""Jobs for engine tests, and what their results are compared with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Compress, Fit, Job, Score, Work, job_text
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.pipeline import Outcome
from mbs_ray.cluster.sharding import shard_blocks
from mbs_ray.cluster.stage.worker import Worker
from mbs_ray.model.assemble import assemble
from mbs_ray.model.block_files import write_outside
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.text.segment_file import SegmentSet, write_segments
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.stages import ONE, WARM
from tests.support.texts import drawn_here

LENGTH = 32
LANGUAGES = ("en", "fr", "sw", "hi")


def draw(corpus: Path, model: Path, folder: Path, count: int, seed: int = 0, length: int = LENGTH) -> SegmentSet:
    """Draw ``count`` segments of each language, without Ray."""
    request = SegmentRequest(
        corpus=str(corpus),
        tokenizer=str(model),
        languages=LANGUAGES,
        allocation=dict.fromkeys(LANGUAGES, count),
        sequence_length=length,
        seed=seed,
    )
    return draw_here(request, folder)


def draw_here(request: SegmentRequest, folder: Path) -> SegmentSet:
    """The same file as :func:`draw_segments` would write, without Ray."""
    path = folder / f"{request.fingerprint[:16]}.parquet"
    told = {"sequence_length": request.sequence_length, "seed": request.seed}
    return write_segments(path, request.fingerprint, told, drawn_here(request))


def make_job(
    key: str,
    model: Path,
    directory: Path,
    stages: int,
    calibration: SegmentSet | None,
    evaluation: SegmentSet,
    method: dict[str, Any] | None,
    blocks: int = 4,
    microbatch: int = 3,
    true_sequential: bool = False,
    replicas: int = 1,
    per_language: bool = False,
    fit: bool | float = False,
) -> Job:
    """``fit``: to the dense model, by a strength that is found (True) or given."""
    (directory / "blocks").mkdir(parents=True, exist_ok=True)
    work: Work = Score()
    if method is not None and calibration is not None:
        text = job_text("calibration", calibration)
        beside = Fit(job_text("dense", calibration), None if fit is True else fit) if fit else None
        work = Compress(method, text, true_sequential, per_language, beside)
    return Job(
        key=key,
        model=model,
        compute_dtype="float32",
        microbatch=microbatch,
        directory=directory,
        blocks=tuple(shard_blocks([1.0] * blocks, 0.0, stages)),
        work=work,
        evaluation=(job_text("held-out", evaluation),),
        replicas=replicas,
    )


def run_all(stages: int, jobs: list[Job]) -> dict[str, Outcome]:
    outcomes = {}
    with WARM.lent(Layout(stages, jobs[0].replicas), ONE, AUTO, print) as pipeline:
        for job in jobs:
            pipeline.submit(job)
        while pipeline.busy:
            outcomes |= {outcome.key: outcome for outcome in pipeline.outcomes(1.0)}
    return outcomes


def run_here(stages: int, jobs: Sequence[Job]) -> None:
    """Take jobs through all stages without Ray: in this process, one after the other."""
    threads, places = torch.get_num_threads(), Layout(stages).places()
    workers = [Worker(place, ONE) for place in places]
    try:
        for job in jobs:
            stores = [ActivationStore(MemoryTier(torch.device("cpu"))) for _ in places]
            for worker, store, following in zip(workers, stores, [*stores[1:], None], strict=True):
                worker.take(job, store, None if following is None else following.put)
    finally:
        torch.set_num_threads(threads)


def digest(directory: Path) -> dict[str, str]:
    """sha256 of every block file, dense and packed, and of the nll of every token."""
    digests = {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*/block-*.safetensors"))
    }
    scores = pq.read_table(directory / "evaluation" / "held-out.parquet").column("nll")
    digests["nll"] = hashlib.sha256(scores.to_numpy().tobytes()).hexdigest()
    return digests


def assemble_run(model: Path, directory: Path, target: Path) -> Checkpoint:
    """The checkpoint of the blocks in a run directory."""
    source = Checkpoint(model)
    outside = write_outside(source, Decoder(source, torch.float32), target.with_suffix(".safetensors"))
    blocks = sorted((directory / "blocks").glob("*.safetensors"))
    return Checkpoint(assemble(source, [outside, *blocks], target, "card"))
