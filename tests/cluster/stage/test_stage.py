"""A stage in this process: the bits of plain workers, what it hands over, how it gives a run up, a group of its own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
from ray.cluster_utils import Cluster

from mbs_ray.cluster.activations.store import RunAbandonedError
from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.stage.actor import Stage
from mbs_ray.cluster.stage.replicas import ReplicaGroup
from mbs_ray.cluster.stage.worker import Worker
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import digest, make_job, run_here
from tests.support.stages import ONE

#: Ray hands arrays over as read-only memory, which torch says of the first one.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
GPTQ = {"name": "gptq", "bits": 3, "group_size": 16}
Received = list[tuple[int, int, int, np.ndarray, torch.dtype]]


@ray.remote(num_cpus=0)
class Receiver:
    """What stands after a stage: it keeps all that it is handed, or refuses everything."""

    def __init__(self, refuses: bool = False) -> None:
        self._refuses = refuses
        self._received: Received = []

    def receive(self, *handed: Any) -> None:
        if self._refuses:
            raise InputError("there is no room")
        self._received.append(handed)

    def received(self) -> Received:
        return self._received


@pytest.fixture(autouse=True)
def as_many_threads(ray_cluster: Cluster) -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def stage(number: int, stages: int, following: Any = None) -> Stage:
    one = Stage()
    one.connect(Layout(stages).places()[number], ONE, following)
    one.offload(AUTO, "host", 1)
    return one


def receiver_like(**options: bool) -> Any:
    actor: Any = Receiver  # Ray's decorator hides from types what it adds
    return actor.remote(**options)


def job_of(bloom: Path, folder: Path, stages: int, calibration: SegmentSet) -> Job:
    return make_job("run", bloom, folder, stages, calibration, calibration, GPTQ, fit=True)


def strengths(job: Job) -> list[float | None]:
    return [linear.strength for report in read_block_reports(job.blocks_folder) for linear in report.linears]


def test_two_stages_hand_over_what_plain_workers_do_and_tell_where_they_are(
    bloom: Path, calibration: SegmentSet, tmp_path: Path
) -> None:
    plain, job = (job_of(bloom, tmp_path / name, 2, calibration) for name in ("plain", "staged"))
    run_here(2, [plain])
    receiver = receiver_like()
    first, last = stage(0, 2, receiver), stage(1, 2)
    assert first.room(None).device is None
    first.process(7, job)
    for handed in ray.get(receiver.received.remote()):
        last.receive(*handed)
    last.process(7, job)
    assert digest(job.directory) == digest(plain.directory)
    assert strengths(job) == strengths(plain) and any(strengths(job))
    for one, blocks in zip((first, last), job.blocks, strict=True):
        _, spans = one.look()
        assert {span.block for span in spans} >= set(blocks)
        assert one.look()[1] == []


def test_what_the_next_stage_refuses_ends_the_run_with_its_words(
    bloom: Path, calibration: SegmentSet, tmp_path: Path
) -> None:
    first = stage(0, 2, receiver_like(refuses=True))
    with pytest.raises(InputError, match="there is no room"):
        first.process(0, job_of(bloom, tmp_path / "run", 2, calibration))


def test_a_run_given_up_is_not_waited_for_and_what_comes_late_is_dropped(
    bloom: Path, calibration: SegmentSet, tmp_path: Path
) -> None:
    job, hidden = job_of(bloom, tmp_path / "run", 2, calibration), np.zeros((3, 32, 32), np.float32)
    last = stage(1, 2)
    last.receive(3, 0, 2, hidden, torch.float32)
    for submission in (3, 4):
        last.abandon(submission)
        with pytest.raises(RunAbandonedError):
            last.process(submission, job)
        last.receive(submission, 1, 2, hidden, torch.float32)
    assert last._stores == {}


def test_a_group_of_one_gives_the_bits_of_a_stage_alone_and_is_told_when_its_run_fails(
    bloom: Path, calibration: SegmentSet, tmp_path: Path
) -> None:
    alone, grouped = (job_of(bloom, tmp_path / name, 1, calibration) for name in ("alone", "grouped"))
    stage(0, 1).process(0, alone)
    only = stage(0, 1)
    try:
        only.join(only.host())
        assert isinstance(only._worker.process.replicas, ReplicaGroup)
        only.process(0, grouped)
        assert digest(grouped.directory) == digest(alone.directory)
        assert strengths(grouped) == strengths(alone)
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="empty"):
            only.process(1, job_of(tmp_path / "empty", tmp_path / "failed", 1, calibration))
        assert only._stores == {}
    finally:
        dist.destroy_process_group()


def test_threads_beside_the_one_that_computes_compute_alone() -> None:
    """With others of their own there would be more than CPUs, which then sleep between operations."""
    torch.set_num_threads(3)
    worker = Worker(Layout(1).places()[0], ONE)
    assert worker.process.ahead.submit(torch.get_num_threads).result() == 1
    torch.set_num_threads(3)  # also what threads that have not computed yet begin with
    last = stage(1, 2)
    with ThreadPoolExecutor(1) as receiving:
        receiving.submit(last.receive, 0, 0, 1, np.zeros((1, 4, 8), dtype=np.float32), torch.float32).result()
        assert receiving.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 3
