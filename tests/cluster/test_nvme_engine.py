"""The NVMe tier under the engine: the bits of host memory, memory of a few buffers, nothing left on the disk."""

import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster

from mbs_ray.cluster.activations.nvme_tier import NvmeTier, remove_stale
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import Offload
from mbs_ray.cluster.pipeline import Outcome, Pipeline
from mbs_ray.errors import InputError, StageDiedError
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import digest, draw, make_job
from tests.support.models import write_bloom, write_corpus
from tests.support.stages import ONE, WARM

SPARSE = {"name": "sparsegpt", "sparsity": 0.5}
WANDA = {"name": "wanda", "sparsity": 0.5}
MIB = 2**20


@pytest.fixture(scope="module")
def held_out(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 3, seed=9, length=48)


@pytest.fixture
def nvme(aio: Any, tmp_path: Path) -> Path:
    """A folder that stands for the disk of a node."""
    (tmp_path / "nvme").mkdir()
    return tmp_path / "nvme"


def test_every_tier_gives_the_same_bits_whatever_the_number_of_stages(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, nvme: Path, tmp_path: Path
) -> None:
    bits = []
    for stages in (1, 2):
        for offload in (Offload("host"), Offload("nvme", nvme)):
            directories = [tmp_path / f"{offload.asked}-{stages}-{run}" for run in range(3)]
            jobs = [make_job(path.name, bloom, path, stages, calibration, held_out, SPARSE) for path in directories]
            with WARM.lent(Layout(stages), ONE, offload.of(jobs, stages), print) as pipeline:
                for job in jobs:
                    pipeline.submit(job)
                assert all(outcome.error is None for outcome in _outcomes(pipeline))
            bits += [digest(path) for path in directories]
            assert folders(nvme) == []
    assert all(one == bits[0] for one in bits)


@pytest.mark.slow
def test_host_memory_is_bounded_by_buffers_and_nothing_is_spilled(
    ray_cluster: Cluster, nvme: Path, tmp_path: Path
) -> None:
    wide = write_bloom(tmp_path / "wide", layers=2, hidden=256)
    texts = write_corpus(tmp_path / "corpus", 1100)
    warming, few, many = (draw(texts, wide, tmp_path / "segments", count, length=128) for count in (4, 32, 256))
    # The smallest job first, so that libraries, kernels and their work space are not counted.
    warm, small, large = (
        make_job(name, wide, tmp_path / name, 1, segments, warming, WANDA, 2, microbatch=8)
        for name, segments in (("warm", warming), ("small", few), ("large", many))
    )
    offload = Offload("nvme", nvme).of([warm, small, large], 1)
    assert offload.needed >= 128 * MIB
    # An earlier test of the session may have spilled on purpose.
    spilled = _spilled(ray_cluster)
    with WARM.lent(Layout(1), ONE, offload, print) as pipeline:
        pipeline.submit(warm)
        _outcomes(pipeline)
        grown = []
        for job in (small, large):
            with MemorySampler(pipeline.process_ids[0]) as sampler:
                pipeline.submit(job)
                assert [outcome.error for outcome in _outcomes(pipeline)] == [None]
            grown.append(sampler.grown)
    # Eight times the activations, 112 MiB more of them: what the same work leaves to the allocator differs by up to
    # 30 MiB from one time to the next, so half of what a copy of the activations would be is the line.
    assert grown[1] < grown[0] + 56 * MIB
    assert _spilled(ray_cluster) == spilled
    with MemorySampler(os.getpid()) as sampler:
        held = torch.ones(200 * MIB, dtype=torch.uint8)
        time.sleep(0.1)
    assert sampler.grown > 0.9 * held.nbytes


@pytest.mark.slow
def test_what_a_killed_stage_leaves_is_removed_by_the_next_start(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, nvme: Path, tmp_path: Path
) -> None:
    undisturbed, killed = (
        make_job("run", bloom, tmp_path / name, 1, calibration, held_out, SPARSE) for name in ("undisturbed", "killed")
    )
    with WARM.lent(Layout(1), ONE, Offload("nvme", nvme), print) as pipeline:
        pipeline.submit(undisturbed)
        _outcomes(pipeline)
    with pytest.raises(StageDiedError), Pipeline(Layout(1), ONE, Offload("nvme", nvme)) as pipeline:
        pipeline.submit(killed)
        while not (killed.blocks_folder / "block-00001.safetensors").is_file():
            time.sleep(0.005)
        os.kill(pipeline.process_ids[0], signal.SIGKILL)
        _outcomes(pipeline)
    (left,) = folders(nvme)
    assert (left / "activations").stat().st_size > 0
    with WARM.lent(Layout(1), ONE, Offload("nvme", nvme), print) as pipeline:
        assert folders(nvme) == []
        pipeline.submit(killed)
        assert [outcome.error for outcome in _outcomes(pipeline)] == [None]
    assert folders(nvme) == []
    assert digest(killed.directory) == digest(undisturbed.directory)


def test_a_stage_without_room_for_what_it_receives_fails_its_run_alone(
    bloom: Path, calibration: SegmentSet, held_out: SegmentSet, nvme: Path, tmp_path: Path
) -> None:
    full, later = (make_job(n, bloom, tmp_path / n, 2, calibration, held_out, SPARSE) for n in ("full", "later"))
    with WARM.lent(Layout(2), ONE, Offload("nvme", nvme), print) as pipeline:
        before = resource.prlimit(pipeline.process_ids[1], resource.RLIMIT_FSIZE)
        resource.prlimit(pipeline.process_ids[1], resource.RLIMIT_FSIZE, (100_000, before[1]))
        pipeline.submit(full)
        (outcome,) = _outcomes(pipeline)
        assert isinstance(outcome.error, OSError)
        assert "bytes more" in str(outcome.error) and "/activations'" in str(outcome.error)
        resource.prlimit(pipeline.process_ids[1], resource.RLIMIT_FSIZE, before)
        pipeline.submit(later)
        assert [outcome.error for outcome in _outcomes(pipeline)] == [None]
    assert folders(nvme) == []


def test_a_folder_that_cannot_be_used_is_refused_before_any_run(ray_cluster: Cluster, aio: Any) -> None:
    # /proc takes no new folders, not even from the privileged.
    with (
        pytest.raises(InputError, match=r"nvme_path: /proc: "),
        Pipeline(Layout(1), ONE, Offload("nvme", Path("/proc"))),
    ):
        pass


def test_only_folders_of_dead_processes_are_stale(aio: Any, nvme: Path) -> None:
    alive, other = NvmeTier(aio, nvme), nvme / "mbs-others"
    (nvme / "mbs-dead").mkdir()
    (nvme / "mbs-dead" / "lock").touch()
    (nvme / "mbs-dead" / "activations").write_bytes(bytes(5000))
    (nvme / "somebody's").mkdir()
    other.symlink_to(nvme / "somebody's")
    assert remove_stale(nvme) == [nvme / "mbs-dead"]
    assert other.is_symlink() and (nvme / "somebody's").is_dir()
    assert len(folders(nvme)) == 1
    alive.close()
    assert folders(nvme) == []


def folders(nvme: Path) -> list[Path]:
    return [path for path in nvme.glob("mbs-*/") if not path.is_symlink()]


def _outcomes(pipeline: Pipeline) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while pipeline.busy:
        outcomes += pipeline.outcomes(1.0)
    return outcomes


class MemorySampler:
    """``grown``: the most bytes of RssAnon of a process above its level at the beginning."""

    def __init__(self, process: int) -> None:
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._idle = self._held()
        self.grown = 0

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.005):
            self.grown = max(self.grown, self._held() - self._idle)

    def _held(self) -> int:
        lines = Path(f"/proc/{self._process}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _spilled(cluster: Cluster) -> list[str]:
    lines = memory_summary(cluster.address, stats_only=True).splitlines()
    return [line.split(",")[0] for line in lines if line.startswith("Spilled")]
