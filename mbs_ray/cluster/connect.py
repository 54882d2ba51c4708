"""A Ray to work on: a local one by default, or the cluster at an address."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

# Usage reporting is off unless the user turns it on; Ray reads this when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Likewise: SIGTERM is ours, and Ray would print a stack and abort.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")

import ray
from ray.exceptions import RayError

from mbs_ray.errors import InputError, one_line

# The processes that Ray starts print theirs where they crash.
del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]

#: Our own hand-over is bounded to a few microbatches; the rest serves Ray Data while it draws text.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


#: Seconds until a cluster must have answered a first knock; one that is gone often does not even refuse.
KNOCK_SECONDS = 10.0
#: The longest path of a Unix socket.
_SOCKET_BYTES = 107
#: Once connected Ray asks this often for a cluster's head, 45 seconds each time; its own default is 20.
_TRIES = {"RAY_gcs_server_port_wait_time_s": "1"}


def check_ray(address: str | None) -> None:
    """Raise :class:`InputError` where :func:`connected` would fail, before anything is read: it takes seconds."""
    if not ray.is_initialized():
        check_surroundings(address)


def check_surroundings(address: str | None) -> None:
    """Raise :class:`InputError` where nobody answers at the address that options and environment name.

    Without one: where Ray's temporary folder is none, or makes paths too long for sockets.
    """
    target, named = _target(address)
    if target is None:
        _check_sockets()
    elif parsed := _host_and_port(target):
        _knock(named, *parsed)


def on_cluster(address: str | None) -> bool:
    """Return whether options and environment name a cluster, to which nodes may still come; a local Ray has all."""
    return _target(address)[0] is not None


@contextmanager
def connected(address: str | None, cpus: int, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Provide a Ray connection for the length of a job; a Ray already running in this process is used as it is.

    Without an address (and outside a Ray job) a local Ray with at least ``cpus`` CPU slots is started, which leaves
    this process idle for seconds: ``meanwhile`` is called while it starts, or once a cluster is joined.
    Raises :class:`InputError` when the address does not answer, or no local Ray can be started.
    """
    if ray.is_initialized():
        meanwhile()
        yield
        return
    check_ray(address)
    # The thread stays until the end: Linux ends Ray's processes with the thread that started them.
    with ThreadPoolExecutor(1, thread_name_prefix="connect") as thread:
        begun = thread.submit(_connect, address, cpus)
        try:
            if _target(address)[0] is not None:
                begun.result()  # takes a moment, and what listens there may be no Ray
            meanwhile()
            begun.result()
            yield
        finally:
            # Also where the thread is still at it: a Ray that was begun is ended.
            wait([begun])
            _end_monitor()
            ray.shutdown()


def _end_monitor() -> None:
    """End the monitor of a Ray of one's own: Ray first ends what it talks to, and then waits for it for a second."""
    # Of a cluster that was joined there is none here.
    with suppress(AttributeError):
        ray._private.worker._global_node.kill_monitor(check_alive=False)


def _connect(address: str | None, cpus: int) -> None:
    """Start a local Ray, or join that at the address."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    # Says on every start, as a warning, that a local Ray asks its clients for a token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    worker = logging.getLogger("ray._private.worker")
    worker.setLevel(logging.ERROR)  # warns that in this thread it leaves SIGTERM alone, as it should
    try:
        _init(address, cpus)
    finally:
        worker.setLevel(logging.NOTSET)


def _init(address: str | None, cpus: int) -> None:
    target, named = _target(address)
    if target is None:
        # "local", or Ray would join any other Ray that happens to run on this machine.
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        return
    before = {name: os.environ.get(name) for name in _TRIES}
    try:
        os.environ.update({name: value for name, value in _TRIES.items() if before[name] is None})
        ray.init(address=target, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
        raise InputError(
            f"{named}: no Ray cluster answers there ({one_line(error)}); "
            "with token authentication set RAY_AUTH_MODE=token here as on its nodes"
        ) from error
    finally:
        for name in (name for name in _TRIES if before[name] is None):
            del os.environ[name]


def _target(address: str | None) -> tuple[str | None, str]:
    """Return the address that Ray will take, None for a Ray of one's own; and in what words the user named it."""
    variable = os.environ.get("RAY_ADDRESS")
    if variable and address in (None, "auto"):
        return (None if variable == "local" else variable), f"RAY_ADDRESS={variable} (a variable of the environment)"
    return (None if address == "local" else address), f"--address {address}"


def _host_and_port(target: str) -> tuple[str, int] | None:
    """Where to knock; None for "auto" and whatever else Ray makes an address of."""
    host, colon, port = target.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdecimal() and int(port) < 2**16 else None


def _knock(named: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"{named}: no Ray cluster answers there ({error.strerror or one_line(error)}); "
            "start it, or take the address away to work on a Ray of this machine alone"
        ) from None


def _check_sockets() -> None:
    """Ray's temporary folder must be there to write to, and leave room for the paths of its sockets."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[variable] if variable else "/tmp"
    named = f"{variable}={folder}" if variable else folder
    # What Ray puts below it, until there is the longest name of a socket.
    socket_file = Path(folder, "ray", f"session_2026-01-01_00-00-00_000000_{os.getpid()}", "sockets", "plasma_store")
    if (longest := len(os.fsencode(socket_file))) > _SOCKET_BYTES:
        raise InputError(
            f"{named}: paths of Ray's sockets below this folder would have {longest} bytes, and may have "
            f"{_SOCKET_BYTES}; name a shorter folder of this machine, for example RAY_TMPDIR=/tmp"
        )
    there = next((one for one in (Path(folder), *Path(folder).parents) if one.exists()), Path())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{named}: Ray cannot write there; name a folder of this machine in RAY_TMPDIR")
