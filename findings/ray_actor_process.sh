#!/bin/sh
# ray 2.60.0: an actor is never given a process that has run a task. Idle processes are kept, and tasks get them again, so
# that what a task has imported is there for the next one; an actor gets a process that has run nothing yet, or waits for
# a new one. Tasks that are sent ahead to import torch and transformers take seconds of CPU and leave the actor to import
# both once more. Only the actor itself, started before it is needed, imports for it.
#
# Seen (local Ray with two CPUs, two tasks at a time, then an actor, then a task):
#   processes that ran tasks and idle: 2
#   the actor's is one of them: False
#   the next task's is one of them: True
#
# Takes a minute.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet ray==2.60.0
RAY_USAGE_STATS_ENABLED=0 "$folder/env/bin/python" - <<'PYTHON'
import logging
import os
import time

import ray

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


@ray.remote(num_cpus=1)
def process(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


@ray.remote(num_cpus=1)
class Actor:
    def process(self) -> int:
        return os.getpid()


def running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


used = set(ray.get([process.remote(1.5) for _ in range(2)]))
time.sleep(0.5)
idle = {one for one in used if running(one)}
actor = Actor.remote()
of_actor = ray.get(actor.process.remote())
of_task = ray.get(process.remote())
print(f"processes that ran tasks and idle: {len(idle)}")
print(f"the actor's is one of them: {of_actor in idle}")
print(f"the next task's is one of them: {of_task in idle}")
assert len(idle) == 2 and of_actor not in idle and of_task in idle, "this has changed"
PYTHON
