"""Text waits for a CPU that other work holds: with a word, and not for ever."""

import logging
import threading

import pytest
from ray.cluster_utils import Cluster
from ray.util.placement_group import remove_placement_group

from mbs_ray.errors import InputError
from mbs_ray.text import cpu_wait
from mbs_ray.text.cpu_wait import await_cpu
from tests.support.cpus import all_cpus


def test_who_waits_for_what_is_said_and_a_limit_ends_it(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_wait, "_TELL_SECONDS", 0.2)
    await_cpu(limit=60)
    taken = all_cpus()
    with caplog.at_level(logging.WARNING):
        with pytest.raises(InputError, match="drawing text: all 12 CPUs of the cluster are taken by other work, for 1"):
            await_cpu(limit=1)
        freed = threading.Timer(1.5, lambda: [remove_placement_group(one) for one in taken])
        freed.start()
        await_cpu(limit=60)
    assert [record.message for record in caplog.records] == [
        f"drawing text waits for a CPU: all 12 CPUs of the cluster are taken by other work; at most {limit} s"
        for limit in (1, 60)
    ]
