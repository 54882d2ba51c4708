"""Which tier activations get: the first with room, and otherwise a line that says what is needed and what there is."""

from dataclasses import replace
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mbs_ray.cluster.activations.host_memory import HostMemory, host_memory, memory_of_groups
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO, FreeMemory, Offload, choose, free_memory
from mbs_ray.cluster.pipeline import Pipeline
from mbs_ray.errors import InputError
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import draw, make_job
from tests.support.stages import ONE

GIB = 2**30
NVME = Path("/nvme")


@pytest.fixture(scope="module")
def segments(ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 5)


def room(device: float | None, host: float, disk: float | None = None, node: str = "a") -> FreeMemory:
    sizes = (None if size is None else int(size * GIB) for size in (device, host, disk))
    return FreeMemory(node, *sizes, aio_built=True)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("there", "tier"),
    [
        (room(10, 100, 1000), "none"),
        (room(5, 100, 1000), "host"),
        (room(5, 5, 1000), "nvme"),
        (room(None, 10, 1000), "none"),
        (room(None, 5, 1000), "nvme"),
    ],
)
def test_auto_takes_the_first_tier_with_room_and_leaves_memory_for_the_rest(there: FreeMemory, tier: str) -> None:
    assert choose(Offload("auto", NVME, 4 * GIB, 4 * GIB), [there]) == [tier]


def test_stages_of_a_node_share_its_memory_and_its_disk() -> None:
    offload = Offload("auto", NVME, 4 * GIB, 4 * GIB)
    assert choose(offload, [room(5, 10, 9, "a"), room(5, 10, 9, "b")]) == ["host", "host"]
    assert choose(offload, [room(5, 10, 9, "a"), room(5, 10, 9, "a"), room(5, 10, 9, "b")]) == ["nvme", "nvme", "host"]
    with pytest.raises(InputError, match=r"stage 0 need 4.00 GiB"):
        choose(offload, [room(5, 10, 9, "a")] * 3)


def test_a_tier_by_hand_may_fill_what_there_is_and_no_more() -> None:
    assert choose(Offload("host", None, 4 * GIB, 4 * GIB), [room(5, 5)]) == ["host"]
    with pytest.raises(InputError, match=r"offload: host: activations of stage 0 need 4.00 GiB, .* 3.00 GiB of host"):
        choose(Offload("host", None, 4 * GIB, 4 * GIB), [room(5, 3)])


def test_pinned_memory_is_counted_in_powers_of_two_on_cuda_only() -> None:
    offload = Offload("host", None, needed=4 * GIB, pinned=8 * GIB)
    assert choose(offload, [room(None, 5)]) == ["host"]
    with pytest.raises(InputError, match="host"):
        choose(offload, [room(5, 5)])


def test_what_fits_nowhere_says_what_is_needed_and_what_there_is() -> None:
    big = Offload("auto", None, 40 * GIB, 40 * GIB)
    found = "3.00 GiB of device memory, 9.00 GiB of host memory, no nvme_path"
    with pytest.raises(InputError, match=f"need 40.00 GiB, its node has {found}"):
        choose(big, [room(3, 9)])
    with pytest.raises(InputError, match=r"9.00 GiB of host memory, 20.00 GiB of disk for it"):
        choose(replace(big, nvme_path=NVME), [room(None, 9, 20)])
    with pytest.raises(InputError, match=r"9.00 GiB of host memory, no folder /nvme for it"):
        choose(replace(big, nvme_path=NVME), [room(None, 9)])
    with pytest.raises(InputError, match=r"nvme_path: no folder /nvme on the node of stage 1; make it there"):
        choose(Offload("nvme", NVME, 1, 1), [room(None, 9, 9), room(None, 9)])


def test_nvme_wants_an_absolute_folder() -> None:
    with pytest.raises(InputError, match="offload: nvme needs nvme_path"):
        Offload("nvme")
    with pytest.raises(InputError, match="nvme_path: scratch is not absolute"):
        Offload("nvme", Path("scratch"))


def test_jobs_need_the_bytes_of_their_hidden_states(bloom: Path, segments: SegmentSet, tmp_path: Path) -> None:
    # 20 calibration and 20 evaluation segments of 32 tokens of 32 float32, in microbatches of 3.
    job = make_job("run", bloom, tmp_path, 1, segments, segments, {"name": "wanda", "sparsity": 0.5})
    alone = make_job("dense", bloom, tmp_path, 1, None, segments, None)
    run = 40 * 32 * 32 * 4
    assert AUTO.of([job], 1).microbatch == 3 * 32 * 32 * 4
    assert AUTO.of([job], 1).needed == AUTO.of([job], 3).needed == run
    assert AUTO.of([job, alone, job], 1).needed == run
    assert AUTO.of([alone, job, alone], 2).needed == run + run // 2
    assert AUTO.of([job], 1).pinned == 2 * (6 * 4 + 1 * 2) * 32 * 32 * 4


def test_limits_of_control_groups_are_seen(tmp_path: Path) -> None:
    def group(path: Path, limit: str, current: int, cache: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{limit}\n")
        (path / "memory.current").write_text(f"{current}\n")
        (path / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")

    group(tmp_path, "10000", 4000, 0)
    group(tmp_path / "pod", "5000", 4000, 1500)
    group(tmp_path / "pod" / "stage", "max", 3000, 0)
    assert sorted(memory_of_groups(tmp_path, "1:pids:/x\n0::/pod/stage\n")) == [(5000, 2500), (10000, 4000)]
    assert list(memory_of_groups(tmp_path, "9:memory:/pod\n")) == []


def test_what_may_be_used_ends_below_where_ray_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HostMemory(1000, 100).budget == 920 - 100
    assert HostMemory(1000, 100, kill_share=0.5).budget == 470 - 100
    assert HostMemory(1000, 990).budget == 0
    here = host_memory()
    assert 2**28 < here.total < 2**50 and 0 < here.used < here.total and here.kill_share == 0.95
    for told, share in (("0.6", 0.6), ("1.5", 1.0), ("much", 0.95)):
        monkeypatch.setenv("RAY_memory_usage_threshold", told)
        assert host_memory().kill_share == share
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    assert host_memory().kill_share == 1.0


def test_a_stage_looks_around_on_its_node(ray_cluster: Cluster, tmp_path: Path) -> None:
    found = free_memory(tmp_path, "cpu")
    assert found.disk and found.host and found.node
    assert free_memory(tmp_path / "nowhere", "cpu").disk is None
    assert free_memory(None, "cpu").disk is None


@pytest.mark.slow
def test_jobs_that_fit_nowhere_are_refused_before_they_start(ray_cluster: Cluster, tmp_path: Path) -> None:
    offload = Offload("auto", tmp_path, 2**60, 2**60)
    with (
        pytest.raises(InputError, match=r"activations of stage 0 need 1073741824.00 GiB"),
        Pipeline(Layout(2), ONE, offload),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"nvme_path: no folder .*/x on the node"),
        Pipeline(Layout(1), ONE, Offload("nvme", tmp_path / "x")),
    ):
        pass
