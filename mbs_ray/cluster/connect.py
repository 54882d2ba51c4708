"""A Ray to work on: a local one by default, or the cluster at an address."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Usage reporting is off unless the user turns it on; Ray reads this when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError

from mbs_ray.errors import InputError

#: Our own hand-over is bounded to a few microbatches; the rest serves Ray Data while it draws text.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """Provide a Ray connection for the length of a job; a Ray already running in this process is used as it is.

    Without an address (and outside a Ray job) a local Ray with at least ``cpus`` CPU slots is started.
    Raises :class:`InputError` when the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    # Says on every start, as a warning, that a local Ray asks its clients for a token.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    told = signal.getsignal(signal.SIGTERM)
    if address is None and "RAY_ADDRESS" not in os.environ:
        # "local", or Ray would join any other Ray that happens to run on this machine.
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    else:
        try:
            ray.init(address=address or "auto", logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, TimeoutError, ValueError, RuntimeError, RayError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--address {address or 'auto'}: no Ray cluster answers there ({reason}); "
                "with token authentication set RAY_AUTH_MODE=token here as on its nodes"
            ) from error
    if callable(told) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()
