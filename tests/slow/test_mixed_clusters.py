"""Clusters of several kinds of nodes: each ends in a right run, or in one right line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CPUS, GPU = {"num_cpus": 2, "num_gpus": 0}, {"num_cpus": 2, "num_gpus": 1}
HEAD = {"num_cpus": 0, "num_gpus": 0}


def outcome(folder: Path, nodes: list[dict[str, int]], wait: float | None = None, **fields: Any) -> dict[str, Any]:
    given = [json.dumps(one) for one in (nodes, fields, wait)]
    command = [sys.executable, "-m", "tests.slow.mixed_clusters", str(folder), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_head_without_cpus_leaves_the_work_to_the_others(tmp_path: Path) -> None:
    told = outcome(tmp_path, [HEAD, CPUS, CPUS], layout={"stages": 3}, threads=2)
    assert told["failed"] == {} and told["signature"]["device"] == "cpu"
    assert "the cluster has room for 2 of 3 stages: going on with those" in told["printed"]
    assert "layout: 2 × 1 (stages × replicas), 2 thread(s) each, on cpu" in told["printed"]


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_that_torch_cannot_use_are_refused_with_the_reason_before_text_is_drawn(
    device: str, tmp_path: Path
) -> None:
    told = outcome(tmp_path, [HEAD, CPUS, GPU], device=device, layout={"stages": 2})
    assert told["refused"].startswith("device: cuda: on a node with GPUs torch ")
    assert told["refused"].endswith("is a build for CPUs; mend that, or give device: cpu")
    # Two stages on one GPU became one, with the CPUs of its node; nothing was drawn.
    assert "layout: 1 × 1 (stages × replicas), 2 thread(s) each, on cuda" in told["printed"]
    assert not (tmp_path / "out" / "segments").exists()


def test_cpus_compute_beside_gpus_where_that_is_asked_for(tmp_path: Path) -> None:
    told = outcome(tmp_path, [HEAD, CPUS, GPU], device="cpu", layout={"stages": 2}, threads=2)
    assert told["failed"] == {}
    assert (told["signature"]["device"], told["signature"]["compute_dtype"]) == ("cpu", "float32")
    assert "layout: 2 × 1 (stages × replicas), 2 thread(s) each, on cpu" in told["printed"]


def test_nodes_that_come_after_twenty_seconds_are_waited_for(tmp_path: Path) -> None:
    told = outcome(tmp_path, [HEAD, {**CPUS, "after": 20}], wait=90, layout={"stages": 1}, threads=2, device="cpu")
    assert told["failed"] == {} and told["signature"]["device"] == "cpu"
    (waited,) = [line for line in told["printed"] if "waiting for nodes" in line]
    assert waited.startswith("waiting for nodes: room for 0 of 1 actor(s) of 2 CPU(s), 0 node(s) on their way; at most")


def test_gpus_that_come_after_twenty_seconds_are_waited_for_before_the_device_is_decided(tmp_path: Path) -> None:
    told = outcome(tmp_path, [HEAD, CPUS, {**GPU, "after": 20}], wait=90, layout={"stages": 1})
    # They came, and are GPUs that torch cannot use: without waiting the sweep would have run on CPUs.
    assert told["refused"].startswith("device: cuda: on a node with GPUs torch ")


def test_nodes_that_never_come_are_named_after_the_wait(tmp_path: Path) -> None:
    told = outcome(tmp_path, [HEAD], wait=3, layout={"stages": 1}, device="cpu")
    assert told["refused"].startswith("layout: no node has 1 CPU(s) for an actor; there are nodes of 0 CPUs and 0 GPUs")
    assert any(line.startswith("nodes: room for 0 of 1 actor(s) of 1 CPU(s) after 3 s") for line in told["printed"])
