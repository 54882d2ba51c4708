"""Stages stay up between pieces of work, are stopped where they cannot be lent again, and mix up no two jobs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.util.placement_group import remove_placement_group

from mbs_ray.cluster.job import Job
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.errors import StageDiedError
from mbs_ray.run.numerics import Numerics
from mbs_ray.text.cpu_wait import await_cpu
from mbs_ray.text.segment_file import SegmentSet
from tests.support.cpus import all_cpus
from tests.support.engine import digest, make_job
from tests.support.stages import ONE, WARM, stage_processes

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}


def take(pipeline: Pipeline, *jobs: Job) -> list[Exception | None]:
    for job in jobs:
        pipeline.submit(job)
    errors = []
    while pipeline.busy:
        errors += [outcome.error for outcome in pipeline.outcomes(1.0)]
    return errors


def lend(pool: StagePool, threads: int) -> set[int]:
    with pool.lent(Layout(1), Numerics("cpu", threads), AUTO, print) as pipeline:
        return set(pipeline.process_ids)


def wait_until_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 30
    while stage_processes() & processes and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stage_processes() & processes


@pytest.mark.slow
def test_the_same_stages_take_one_key_again_and_give_the_same_bits_also_after_a_job_that_failed(
    ray_cluster: Cluster, bloom: Path, calibration: SegmentSet, tmp_path: Path
) -> None:
    names = ("one", "broken", "two")
    jobs = [make_job("run", bloom, tmp_path / name, 2, calibration, calibration, SPARSE) for name in names]
    (tmp_path / "broken" / "blocks" / "block-00001.safetensors").mkdir(parents=True)
    with StagePool() as pool:
        seen = []
        for job in jobs:
            with pool.lent(Layout(2), ONE, AUTO, print) as pipeline:
                (error,) = take(pipeline, job)
                assert (error is not None) == (job is jobs[1])
                seen.append(pipeline.process_ids)
        assert seen[0] == seen[1] == seen[2] and pool.starts == 1
    assert digest(jobs[0].directory) == digest(jobs[2].directory)
    wait_until_gone(set(seen[0]))


STARTED_AHEAD = """
import time
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import connected
from mbs_ray.cluster.stage_pool import StagePool
from tests.cluster.test_stage_pool import lend, wait_until_gone
from tests.support.stages import stage_processes

with connected("local", 2), StagePool() as pool:
    pool.start_ahead(ClusterOptions(stages=2))
    until = time.monotonic() + 120
    while len(ahead := stage_processes()) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    taken = lend(pool, 2)
    assert len(taken) == 1 and taken < ahead, (taken, ahead)
    wait_until_gone(ahead - taken)
    assert lend(pool, 2) == taken and not lend(pool, 1) & ahead
"""


@pytest.mark.slow
def test_the_first_pipeline_takes_actors_that_were_started_ahead_and_the_others_end() -> None:
    """On a Ray of its own: that of the session has several nodes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STARTED_AHEAD]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_another_kind_stops_idle_stages_where_there_is_no_room_for_both(ray_cluster: Cluster) -> None:
    WARM.rest()  # no node would have two CPUs left
    with StagePool() as none_to_spare, StagePool(idle_cpus=3) as some:
        for pool, kept in ((none_to_spare, False), (some, True)):
            first, other = [lend(pool, threads) for threads in (1, 2)]
            if kept:
                assert lend(pool, 1) == first
            else:
                wait_until_gone(first)
            assert lend(pool, 2) == other and pool.starts == 2
            pool.rest()


@pytest.mark.slow
def test_stages_that_died_while_idle_or_failed_while_lent_are_not_lent_again(ray_cluster: Cluster) -> None:
    with StagePool() as pool:
        with pool.lent(Layout(1), ONE, AUTO, print) as pipeline:
            (idle,) = pipeline.process_ids
        os.kill(idle, signal.SIGKILL)
        with pytest.raises(StageDiedError), pool.lent(Layout(1), ONE, AUTO, print) as pipeline:
            (lent,) = pipeline.process_ids
            assert lent != idle
            raise StageDiedError("as if")
        wait_until_gone({lent})
        with pool.lent(Layout(1), ONE, AUTO, print) as pipeline:
            assert pipeline.process_ids not in ([idle], [lent])
        assert pool.starts == 3


@pytest.mark.slow
def test_idle_stages_make_room_for_the_drawing_of_text_where_they_hold_the_last_cpu(ray_cluster: Cluster) -> None:
    WARM.rest()
    with StagePool() as pool:
        first = lend(pool, 1)
        pool.leave_a_cpu()
        assert lend(pool, 1) == first
        taken = all_cpus()
        try:
            pool.leave_a_cpu()
            await_cpu(limit=30)
            wait_until_gone(first)
        finally:
            for one in taken:
                remove_placement_group(one)
