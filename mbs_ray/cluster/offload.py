"""Choice of a tier for the activations of each stage: device memory, host memory or a local disk, by free space."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from mbs_ray.cluster.activations.aio import check_lockable, padded
from mbs_ray.cluster.activations.aio_op import BUILD_SECONDS, is_built, load_aio
from mbs_ray.cluster.activations.copies import CudaCopies
from mbs_ray.cluster.activations.host_memory import host_memory, pinned_size
from mbs_ray.cluster.activations.memory_tier import MemoryTier, PinnedTier
from mbs_ray.cluster.activations.nvme_tier import NvmeTier, remove_stale
from mbs_ray.cluster.activations.slot_file import BUFFERS
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.bounds import RUNS_HELD, TierName
from mbs_ray.cluster.job import Job
from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.text.ray_deaths import DEATHS, stage_died
from mbs_ray.text.segment_file import SegmentSet

#: Share of free memory that activations may use unless a tier is requested; without a plan, blocks, moments and
#: factors need most of the rest.
_DEVICE_SHARE, _UNPLANNED_SHARE = 0.95, 0.6
_WHERE = {"none": "device memory", "host": "host memory", "nvme": "disk"}


@dataclass(frozen=True)
class Offload:
    """The requested tier, and the bytes that activations need at most in each stage.

    ``needed`` counts them as stored, ``pinned`` in pinned memory, which torch allocates in powers of two;
    ``microbatch`` is the largest microbatch. ``reserved`` is what else a stage needs, (device, host) memory by its
    plan; None without a plan.
    """

    asked: Literal["auto", "none", "host", "nvme"] = "auto"
    nvme_path: Path | None = None
    needed: int = 0
    pinned: int = 0
    microbatch: int = 0
    reserved: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.asked == "nvme" and self.nvme_path is None:
            raise InputError("offload: nvme needs nvme_path (--nvme-path), a folder on a local disk of every node")
        if self.nvme_path is not None and not self.nvme_path.is_absolute():
            raise InputError(f"nvme_path: {self.nvme_path} is not absolute; it is looked for on every node")

    def of(self, jobs: Iterable[Job], stages: int) -> "Offload":
        """Return a copy with what these jobs need: a single stage holds one run, each of several the two largest."""
        models: dict[Path, int] = {}
        sizes = []
        for job in jobs:
            if job.model not in models:
                models[job.model] = Checkpoint(job.model).hidden_size
            sizes.append(_microbatch_bytes(job, models[job.model]))
        held = RUNS_HELD if stages > 1 else 1
        return replace(
            self,
            needed=_largest(held, (sum(map(padded, run)) for run in sizes)),
            pinned=_largest(held, (sum(map(pinned_size, run)) for run in sizes)),
            microbatch=max((size for run in sizes for size in run), default=0),
        )


#: The first tier with room, without a folder on a disk.
AUTO = Offload()


@dataclass(frozen=True)
class FreeMemory:
    """Free bytes for a stage on its node: ``device`` is None on a CPU, ``disk`` where there is no nvme_path."""

    node: str
    device: int | None
    host: int
    disk: int | None
    aio_built: bool


def free_memory(nvme_path: Path | None, device: str) -> FreeMemory:
    """Measure the free memory on the node of the calling process."""
    on_device = torch.cuda.mem_get_info()[0] if device == "cuda" else None
    disk = shutil.disk_usage(nvme_path).free if nvme_path is not None and nvme_path.is_dir() else None
    node = ray.get_runtime_context().get_node_id()
    return FreeMemory(node, on_device, host_memory().budget, disk, nvme_path is not None and is_built())


def choose(offload: Offload, rooms: Sequence[FreeMemory]) -> list[TierName]:
    """Choose the tier of each stage. Raises :class:`InputError` with the bytes needed and free where nothing fits."""
    sharing = Counter(room.node for room in rooms)
    return [_choose(offload, index, room, sharing[room.node]) for index, room in enumerate(rooms)]


def choose_tiers(offload: Offload, stages: Sequence[Any], say: Callable[[str], None]) -> None:
    """Have every stage prepare the tier that suits its node; ``stages`` are handles of actors.

    ``say`` is called before minutes are spent on a build. Raises :class:`InputError`, or :class:`StageDiedError`.
    """
    try:
        rooms = ray.get([stage.room.remote(offload.nvme_path) for stage in stages], timeout=BUILD_SECONDS)
        tiers = choose(offload, rooms)
        unbuilt = [room.node for room, tier in zip(rooms, tiers, strict=True) if tier == "nvme" and not room.aio_built]
        if unbuilt:
            say(f"building DeepSpeed's async_io on {len(set(unbuilt))} node(s): about five minutes, once")
        sharing = Counter(room.node for room in rooms)
        ready = [
            stage.offload.remote(offload, tier, sharing[room.node])
            for stage, tier, room in zip(stages, tiers, rooms, strict=True)
        ]
        ray.get(ready, timeout=BUILD_SECONDS)
    except DEATHS as error:
        raise stage_died("a stage died while it made its activation tier ready", error) from error
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError) else error from None
    except GetTimeoutError as error:
        raise InputError(f"offload: a stage was not ready after {BUILD_SECONDS:.0f} s; see the logs of Ray") from error


class StoreMaker:
    """A factory of activation stores of a stage, one per run. Raises :class:`InputError` where its tier cannot work."""

    def __init__(self, offload: Offload, tier: TierName, device: str) -> None:
        self.tier, self._nvme_path, self._cuda = tier, offload.nvme_path, device == "cuda"
        self._copies: CudaCopies | None = None
        try:
            if self._nvme_path is not None and self._nvme_path.is_dir():
                remove_stale(self._nvme_path)
            if tier == "nvme":
                self._aio = load_aio()
                check_lockable(RUNS_HELD * BUFFERS * padded(max(1, offload.microbatch)))
                self._try_out()
        except OSError as error:
            raise InputError(f"nvme_path: {self._nvme_path}: {error.strerror}") from error

    def __call__(self) -> ActivationStore:
        if self.tier == "nvme":
            assert self._nvme_path is not None
            return ActivationStore(NvmeTier(self._aio, self._nvme_path))
        if self._cuda and self.tier == "host":
            # The same streams for all runs: the device's memory for copies is a stream's own.
            self._copies = self._copies or CudaCopies()
            return ActivationStore(PinnedTier(self._copies))
        return ActivationStore(MemoryTier(torch.device("cuda" if self._cuda else "cpu")))

    def _try_out(self) -> None:
        with closing(self()) as store:
            store.put(0, 0, torch.arange(5000))
            store.get(0, 0, torch.device("cpu"))


def _choose(offload: Offload, index: int, room: FreeMemory, sharing: int) -> TierName:
    """Choose the tier of one stage; ``sharing`` stages on its node share the host's memory and disk."""
    if offload.asked == "nvme" and room.disk is None:
        raise InputError(f"nvme_path: no folder {offload.nvme_path} on the node of stage {index}; make it there")
    cuda, host = room.device is not None, room.host // sharing
    free: dict[TierName, tuple[int, int | None]] = {
        "none": (offload.needed, room.device if cuda else host),
        "host": (offload.pinned if cuda else offload.needed, host),
        "nvme": (offload.needed, None if room.disk is None else room.disk // sharing),
    }
    for tier, (needed, there) in free.items():
        if offload.asked in ("auto", tier) and there is not None and needed <= _room(offload, tier, there, cuda):
            return tier
    found = [f"{_gib(there)} of {_WHERE[tier]}" for tier, (_, there) in free.items() if there is not None]
    if offload.nvme_path is None:
        found.append("no nvme_path")
    elif room.disk is None:
        found.append(f"no folder {offload.nvme_path}")
    asked: str = offload.asked
    if offload.asked == "auto":
        besides = "what else a stage needs" if offload.reserved else f"{1 - _UNPLANNED_SHARE:.0%} of memory"
        asked = f"auto (with {besides} left free)"
    raise InputError(
        f"offload: {asked}: activations of stage {index} need {_gib(offload.needed)}, its node has "
        f"{', '.join(found if cuda else found[1:])} for it; give nvme_path on a disk with room, or take fewer segments"
    )


def _room(offload: Offload, tier: TierName, there: int, cuda: bool) -> float:
    """Compute how many of the free bytes ``there`` activations may use."""
    if offload.asked != "auto" or tier == "nvme":
        return float(there)
    if offload.reserved is None:
        return _UNPLANNED_SHARE * there
    device, host = offload.reserved
    return _DEVICE_SHARE * there - device if cuda and tier == "none" else float(there - host)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _microbatch_bytes(job: Job, hidden_size: int) -> list[int]:
    """Return the bytes of each microbatch of the replica that has the most in all."""
    token = hidden_size * getattr(torch, job.compute_dtype).itemsize
    shares = [job.microbatches(replica) for replica in range(job.replicas)]
    lengths = {path: SegmentSet.open(path).sequence_length for path in {one.file.path for one in chain(*shares)}}
    return max(
        ([(one.stop - one.start) * lengths[one.file.path] * token for one in share] for share in shares), key=sum
    )


def _largest(count: int, sizes: Iterable[int]) -> int:
    return sum(sorted(sizes)[-count:])
