"""The hardware of a cluster: nodes with their devices, memory and disks."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mbs_ray.cluster.activations.host_memory import KILL_SHARE, HostMemory, host_memory
from mbs_ray.errors import InputError
from mbs_ray.run.plain_yaml import read_yaml

#: Vendor's figures of instance types with GPUs: GPUs, GB of each, its name, CPUs, GiB of host, GB of NVMe.
_INSTANCES = {
    "p4d.24xlarge": (8, 40, "A100", 96, 1152, 8000),
    "p4de.24xlarge": (8, 80, "A100", 96, 1152, 8000),
    "p5.48xlarge": (8, 80, "H100", 192, 2048, 30400),
    "p5en.48xlarge": (8, 141, "H200", 192, 2048, 30400),
    "g5.12xlarge": (4, 24, "A10G", 48, 192, 3800),
    "g5.48xlarge": (8, 24, "A10G", 192, 768, 7600),
    "g6e.12xlarge": (4, 48, "L40S", 48, 384, 3800),
    "g6e.48xlarge": (8, 48, "L40S", 192, 1536, 7600),
}
#: What is usable of a device's memory: the driver, the libraries and gaps between tensors take the rest.
_DEVICE_RESERVE = 2**30
_USABLE_DEVICE = 0.95
_ASK_SECONDS = 60


@dataclass(frozen=True)
class Node:
    """One machine; sizes in bytes, of which ``host_used`` are in use. ``nvme`` 0: no local disk for activations."""

    gpus: int
    gpu_memory: int
    host_memory: int
    nvme: int = 0
    cpus: int = 1
    device: str = ""
    host_used: int = 0
    kill_share: float = KILL_SHARE
    no_cuda: str = ""
    """Why torch cannot use the GPUs that Ray counts on it."""
    capability: str = ""
    """CUDA's compute capability of the GPUs, as ``9.0``."""
    cpu_kernel: str = ""
    gpu_kernel: str = ""
    """What solves linears here, by kind of device, as :func:`~mbs_ray.methods.kernel.kernel_here` names it."""

    @property
    def actors(self) -> int:
        """Number of actors: one on each GPU, or one on a node without GPUs."""
        return self.gpus or 1

    @property
    def device_room(self) -> int:
        return round(_USABLE_DEVICE * max(0, self.gpu_memory - _DEVICE_RESERVE))

    @property
    def host_room(self) -> int:
        return HostMemory(self.host_memory, self.host_used, self.kill_share).budget


@dataclass(frozen=True)
class Hardware:
    """Nodes in the order in which actors fill them; ``storage``: bytes free where results go, None if unknown."""

    nodes: tuple[Node, ...]
    storage: int | None = None

    @property
    def cuda(self) -> bool:
        return any(node.gpus for node in self.nodes)

    @property
    def workers(self) -> list[Node]:
        """Nodes that take actors: those with GPUs, if any has."""
        return [node for node in self.nodes if node.gpus] if self.cuda else list(self.nodes)

    @property
    def actors(self) -> int:
        return sum(node.actors for node in self.workers)

    @property
    def kinds_of_gpus(self) -> str:
        """Names and compute capabilities of the GPUs, each kind once; empty without GPUs that torch can use."""
        kinds = {f"{node.device} ({node.capability})" for node in self.nodes if node.gpus}
        return ", ".join(sorted(kinds))

    def kernels(self, device: str) -> str:
        """Return what solves linears on a kind of device, each once."""
        if device == "cpu":
            return ", ".join(sorted({node.cpu_kernel for node in self.nodes}))
        return ", ".join(sorted({node.gpu_kernel for node in self.nodes if node.gpus}))

    @property
    def device(self) -> str:
        """Name of the devices, empty if unknown."""
        return next((node.device for node in self.workers), "")

    def node_of_actor(self, actors: int) -> list[int]:
        """Return the index in ``workers`` of each actor's node: GPUs fill node by node, CPU nodes take turns."""
        workers = self.workers
        if not self.cuda:
            return [actor % len(workers) for actor in range(actors)]
        places = [index for index, node in enumerate(workers) for _ in range(node.actors)]
        return [places[actor % len(places)] for actor in range(actors)]

    def for_device(self, kind: str) -> "Hardware":
        """Return what stages on ``cuda`` or ``cpu`` have of this; raise :class:`InputError` where torch has no GPU."""
        if kind == "cpu":
            return replace(self, nodes=tuple(replace(node, gpus=0) for node in self.nodes))
        reason = next((node.no_cuda for node in self.nodes if node.no_cuda), "")
        if reason:
            raise InputError(f"device: cuda: on a node with GPUs {reason}; mend that, or give device: cpu")
        return self

    def storing(self, folder: Path) -> "Hardware":
        """Return a copy with the space free in the folder, or in the nearest one above that exists."""
        existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
        return replace(self, storage=shutil.disk_usage(existing).free)


def this_machine(nvme_path: Path | None = None) -> Node:
    """Return the node of this process, with what is free on it now."""
    import torch

    from mbs_ray.compression.device import why_no_cuda
    from mbs_ray.methods.kernel import kernel_here

    gpus = torch.cuda.device_count()
    memory = min((torch.cuda.mem_get_info(index)[0] for index in range(gpus)), default=0)
    name = torch.cuda.get_device_name(0) if gpus else ""
    capability = "{}.{}".format(*torch.cuda.get_device_capability(0)) if gpus else ""
    there = nvme_path is not None and nvme_path.is_dir()
    nvme = shutil.disk_usage(nvme_path).free if nvme_path is not None and there else 0
    host = host_memory()
    cpus = os.cpu_count() or 1
    return Node(
        gpus,
        memory,
        host.total,
        nvme,
        cpus,
        name,
        host.used,
        host.kill_share,
        why_no_cuda(),
        capability,
        cpu_kernel=kernel_here("cpu"),
        gpu_kernel=kernel_here("cuda") if gpus else "",
    )


def live_cluster(nvme_path: Path | None = None, joined: bool = False) -> Hardware:
    """Ask every node of the connected Ray what it has free; raise :class:`InputError` if one does not answer.

    ``joined``: the own node is asked, too, as the environment of its Ray may not be that of this process.
    """
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from mbs_ray.text.ray_deaths import DEATHS, why

    own = None if joined else ray.util.get_node_ip_address()
    ask: Any = ray.remote(this_machine)
    working = [node for node in ray.nodes() if node["Alive"] and node["Resources"].keys() & {"CPU", "GPU"}]
    asked = {}
    for node in working:
        if node["NodeManagerAddress"] != own:
            home = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # A task that takes no GPU sees all of them.
            asked[node["NodeID"]] = ask.options(num_cpus=0, scheduling_strategy=home).remote(nvme_path)
    try:
        answers = dict(zip(asked, ray.get(list(asked.values()), timeout=_ASK_SECONDS), strict=True))
    except GetTimeoutError as error:
        raise InputError(f"--address: a node did not say within {_ASK_SECONDS} s what it has") from error
    except DEATHS as error:
        raise InputError(f"--address: a node was lost while it was asked what it has ({why(error)})") from error
    here = this_machine(nvme_path) if len(asked) < len(working) else None
    nodes = []
    for node in working:
        found, resources = answers.get(node["NodeID"], here), node["Resources"]
        assert found is not None
        gpus = int(resources.get("GPU", 0))
        usable = gpus if found.gpu_memory else 0
        no_cuda = found.no_cuda if gpus and not usable else ""
        nodes.append(replace(found, gpus=usable, cpus=int(resources.get("CPU", 0)), no_cuda=no_cuda))
    return Hardware(tuple(nodes))


def cluster_file(path: Path) -> Hardware:
    """Read the workers of a Ray cluster launcher file, by instance type, as many as ``min_workers`` (or one).

    Raises :class:`InputError` naming the file if it cannot be read or has no known instance type.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        kinds = content["available_node_types"]
        items = [(kind["node_config"]["InstanceType"], kind.get("min_workers", 0)) for kind in kinds.values()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no available_node_types with an InstanceType each; describe the nodes with --gpus, "
            "--gpu-memory and --host-memory instead"
        ) from error
    known = [(kind, least) for kind, least in items if kind in _INSTANCES]
    if not known:
        raise InputError(
            f"{path}: none of {', '.join(kind for kind, _ in items)} is an instance type whose GPUs are known "
            f"({', '.join(_INSTANCES)}); describe the nodes with --gpus, --gpu-memory and --host-memory instead"
        )
    wanted = [(kind, least) for kind, least in known if least] or [(known[0][0], 1)]
    return Hardware(tuple(_instance(kind) for kind, least in wanted for _ in range(least)))


def _instance(kind: str) -> Node:
    gpus, gigabytes, device, cpus, host, nvme = _INSTANCES[kind]
    return Node(gpus, gigabytes * 10**9, host * 2**30, nvme * 10**9, cpus, device)
