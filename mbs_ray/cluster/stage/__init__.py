"""Everything that runs inside the actor of a stage; only ``actor.py`` and ``replicas.py`` know that there are others.

Begin with ``block_loop.py``: collect, solve, measure, write and propagate, one under the other.
"""

import os

import ray

from mbs_ray.cluster.activations.host_memory import LARGE_PAGES
from mbs_ray.cluster.garbage import collect_garbage_rarely

# Before torch is imported: torch reads it once.
os.environ.update(LARGE_PAGES)
if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
    collect_garbage_rarely()
