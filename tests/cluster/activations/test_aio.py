"""Files written and read by async_io: every way in which its handle loses data, or aborts, is an exception here."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.cluster.activations import aio as lanes
from mbs_ray.cluster.activations.aio import ALIGNMENT, AioLane, padded
from mbs_ray.cluster.activations.slot_file import BUFFERS, SlotFile
from tests.support.examples import examples

CPU = torch.device("cpu")


@pytest.fixture
def file(aio: Any, tmp_path: Path) -> Iterator[SlotFile]:
    file = SlotFile(aio, tmp_path / "activations")
    yield file
    file.close()


@pytest.fixture
def lane(aio: Any, tmp_path: Path) -> Iterator[AioLane]:
    (tmp_path / "lane").write_bytes(bytes(2 * ALIGNMENT))
    lane = AioLane(aio, tmp_path / "lane")
    yield lane
    lane.close()


@examples(15)
@given(
    sizes=st.lists(st.sampled_from([1, 255, 256, 257, 1000, 2048, 4100, 70_001, 1_048_578]), min_size=1, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_tensors_of_any_size_come_back_bit_by_bit_in_any_order(
    aio: Any, tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dtype: torch.dtype, seed: int
) -> None:
    file = SlotFile(aio, tmp_path_factory.mktemp("slots") / "activations")
    generator = torch.Generator().manual_seed(seed)
    expected = {}
    for _ in range(2):
        for slot, size in enumerate(sizes):
            expected[slot] = torch.randn(size, generator=generator).to(dtype)
            file.write(slot, expected[slot])
        for slot in torch.randperm(len(sizes), generator=generator).tolist():
            assert torch.equal(file.read(slot, CPU), expected[slot])
            file.prefetch(slot + 1)
    file.close()


def test_a_smaller_and_a_larger_tensor_take_the_place_of_another(file: SlotFile) -> None:
    neighbour = torch.randn(3000)
    for size in (5000, 7, 90_000):
        tensor = torch.randn(size)
        file.write(0, tensor)
        file.write(1, neighbour)
        assert torch.equal(file.read(0, CPU), tensor)
        assert torch.equal(file.read(1, CPU), neighbour)


def test_what_is_not_contiguous_comes_back_as_it_was(file: SlotFile) -> None:
    tensor = torch.randn(70, 33).T[::2]
    file.write(0, tensor)
    assert torch.equal(file.read(0, CPU), tensor)


def test_what_is_read_is_the_readers_own(file: SlotFile) -> None:
    tensors = [torch.randn(5000) for _ in range(3)]
    for slot, tensor in enumerate(tensors):
        file.write(slot, tensor)
    read = [file.read(slot, CPU) for slot in range(3)]
    read[0].zero_()
    assert torch.equal(read[1], tensors[1])
    assert torch.equal(file.read(0, CPU), tensors[0])


def test_a_slot_written_after_it_was_read_ahead_is_read_anew(file: SlotFile) -> None:
    file.write(0, torch.zeros(5000))
    file.write(1, torch.zeros(5000))
    file.prefetch(0)
    file.write(0, torch.ones(5000))
    assert torch.equal(file.read(0, CPU), torch.ones(5000))


def test_memory_is_three_buffers_whatever_the_number_of_slots(aio: Any, tmp_path: Path) -> None:
    before = _locked()
    file = SlotFile(aio, tmp_path / "activations")
    for slot in range(40):
        file.write(slot, torch.full((2**18,), float(slot)))
    for slot in range(40):
        assert file.read(slot, CPU)[0] == slot
        file.prefetch(slot + 1)
    assert _locked() - before == BUFFERS * 2**20
    file.close()
    assert _locked() == before


def test_a_missing_folder_is_an_error_that_names_the_file(aio: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/activations"):
        SlotFile(aio, tmp_path / "nowhere" / "activations")


def test_a_folder_that_went_away_is_an_error_for_writing_and_reading(aio: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file = SlotFile(aio, tmp_path / "disk" / "activations")
    file.write(0, torch.ones(5000))
    assert torch.equal(file.read(0, CPU), torch.ones(5000))
    shutil.rmtree(tmp_path / "disk")
    for attempt in (lambda: file.write(0, torch.ones(5000)), lambda: file.read(0, CPU)):
        with pytest.raises(FileNotFoundError, match="disk/activations"):
            attempt()
    file.close()


def test_a_file_that_was_cut_is_an_error_that_names_it(file: SlotFile) -> None:
    file.write(0, torch.ones(5000))
    file.write(1, torch.ones(5000))
    file.read(0, CPU)
    os.truncate(file.path, padded(5000 * 4))
    with pytest.raises(OSError, match=f"has 20480 bytes, where 40960 are wanted: '{file.path}'"):
        file.read(1, CPU)
    assert torch.equal(file.read(0, CPU), torch.ones(5000))


def test_bytes_that_were_lost_on_the_disk_are_an_error_that_names_the_file(file: SlotFile) -> None:
    file.write(0, torch.arange(5000))
    file.read(0, CPU)
    with file.path.open("r+b") as raw:
        raw.seek(4096)
        raw.write(bytes(4096))
    with pytest.raises(OSError, match="the bytes at 0 are not those that were written") as raised:
        file.read(0, CPU)
    assert raised.value.filename == str(file.path)


def test_a_full_disk_is_an_error_before_anything_is_lost(file: SlotFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(0, torch.ones(5000))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 20_000, 20_000))
        with pytest.raises(OSError, match="no room for 20480 bytes more") as raised:
            file.write(1, torch.ones(5000))
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(file.path))
        file.write(0, torch.zeros(5000))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    try:
        with pytest.raises(OSError, match=f"no room for 20480 bytes more: .*'{file.path}'"):
            file.write(1, torch.ones(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert torch.equal(file.read(0, CPU), torch.zeros(5000))
    with pytest.raises(KeyError):
        file.read(1, CPU)


def test_a_closed_file_is_gone_and_drops_what_comes_late(file: SlotFile) -> None:
    file.write(0, torch.ones(5000))
    file.prefetch(0)
    file.close()
    file.write(1, torch.ones(5000))
    file.close()
    assert not file.path.exists()


def test_finishing_with_nothing_under_way_does_nothing(lane: AioLane) -> None:
    lane.finish()
    content = lane.buffer(ALIGNMENT)
    lane.begin_read(content, 0)
    lane.finish()
    lane.finish()
    assert int(content.sum()) == 0


def test_only_whole_units_from_buffers_are_transferred(lane: AioLane, tmp_path: Path) -> None:
    buffer = lane.buffer(2 * ALIGNMENT)
    for content, offset in ((buffer[:1000], 0), (buffer[512 : 512 + ALIGNMENT], 0), (buffer[:ALIGNMENT], 512)):
        with pytest.raises(ValueError, match="not whole units of 4096"):
            lane.begin_write(content, offset)
    for content in (torch.zeros(ALIGNMENT, dtype=torch.uint8), buffer.view(torch.int32)):
        with pytest.raises(ValueError, match="only uint8 from a buffer"):
            lane.begin_write(content, 0)
    with pytest.raises(OSError, match="has 8192 bytes, where 12288 are wanted"):
        lane.begin_write(buffer, ALIGNMENT)
    assert (tmp_path / "lane").stat().st_size == 2 * ALIGNMENT


def test_a_second_transfer_and_freeing_what_is_transferred_are_errors(lane: AioLane) -> None:
    buffer = lane.buffer(ALIGNMENT)
    lane.begin_read(buffer, 0)
    with pytest.raises(RuntimeError, match="under way already"):
        lane.begin_read(buffer, 0)
    with pytest.raises(RuntimeError, match="being transferred"):
        lane.free(buffer)


def test_a_lane_that_is_dropped_in_the_middle_of_a_transfer_ends_it_first(aio: Any, tmp_path: Path) -> None:
    path, before = tmp_path / "dropped", _locked()
    path.write_bytes(bytes(2**24))
    lane = AioLane(aio, path)
    buffer = lane.buffer(2**24)
    buffer.fill_(7)
    lane.begin_write(buffer, 0)
    del lane
    assert path.read_bytes() == bytes([7]) * 2**24
    assert _locked() == before


def test_a_file_that_the_handle_cannot_open_is_an_error(lane: AioLane, tmp_path: Path) -> None:
    buffer = lane.buffer(ALIGNMENT)
    # Not even the privileged may write to a program that runs.
    shutil.copy(shutil.which("sleep") or "", tmp_path / "lane")
    running = subprocess.Popen([tmp_path / "lane", "60"])
    try:
        with pytest.raises(OSError, match=r"async_io cannot write it: .*lane"):
            lane.begin_write(buffer, 0)
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
def test_memory_that_may_not_be_locked_is_an_error(aio: Any, tmp_path: Path) -> None:
    script = f"""
import os, resource, sys
from pathlib import Path
from mbs_ray.cluster.activations.aio import AioLane
from mbs_ray.cluster.activations.aio_op import load_aio
lane = AioLane(load_aio(), Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.getuid() == 0:
    os.setuid(65534)  # the privileged may lock what they like
lane.buffer(16384)
try:
    lane.buffer(2**20)
except OSError as error:
    sys.exit(f"refused: {{error.strerror}}")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "refused: 1048576 bytes of memory cannot be locked" in ended.stderr
    assert ended.returncode == 1


def test_a_kernel_without_requests_left_is_an_error(aio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_QUEUE_DEPTH", 2**40)
    with pytest.raises(OSError, match=r"asynchronous requests are taken; raise fs.aio-max-nr"):
        AioLane(aio, tmp_path / "lane")


def _locked() -> int:
    """Bytes of memory this process has locked."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmLck"].split()[0]) * 1024
