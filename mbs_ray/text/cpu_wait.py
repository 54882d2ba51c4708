"""Drawing runs in Ray tasks, which need a CPU: where other work holds all of them, that is said, and not waited out."""

import logging
import time

import ray

from mbs_ray.errors import InputError

#: Jobs that end give their CPUs back; stages of another command keep theirs for hours.
LIMIT_SECONDS = 600.0
#: A process that has just ended still counts for a moment.
_TELL_SECONDS = 5.0
_LOOK_SECONDS = 0.5
log = logging.getLogger(__name__)


def await_cpu(limit: float = LIMIT_SECONDS) -> None:
    """Return once a CPU of the connected Ray is free; say who waits for what where that takes longer than a moment.

    Raises :class:`InputError` after ``limit`` seconds.
    """
    begun, told = time.monotonic(), False
    while ray.available_resources().get("CPU", 0) < 1:
        waited = time.monotonic() - begun
        held = f"all {ray.cluster_resources().get('CPU', 0):.0f} CPUs of the cluster are taken by other work"
        if waited > limit:
            raise InputError(
                f"drawing text: {held}, for {limit:.0f} s now (`ray status` shows it); end that, or bring nodes, and "
                "give the same command again"
            )
        if waited > _TELL_SECONDS and not told:
            log.warning("drawing text waits for a CPU: %s; at most %.0f s", held, limit)
            told = True
        time.sleep(_LOOK_SECONDS)
