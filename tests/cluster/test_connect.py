"""A Ray that cannot be had is one line that names option or variable, before a model is read."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mbs_ray.cluster.connect import check_ray, check_surroundings
from mbs_ray.errors import InputError
from tests.support.models import write_bloom


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nobody() -> str:
    """An address that nobody answers at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def said(address: str | None) -> str:
    with pytest.raises(InputError) as caught:
        check_surroundings(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_variable_that_names_a_cluster_that_is_gone_is_named(
    address: str | None, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    named = f"RAY_ADDRESS={nobody} (a variable of the environment): no Ray cluster answers there (Connection refused); "
    assert said(address).startswith(named)


def test_an_option_that_names_one_is_named_whatever_the_variable_says(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for address in (nobody, f"ray://{nobody}"):
        assert said(address).startswith(f"--address {address}: no Ray cluster answers there (Connection refused); ")
    assert "--address no-such-host.invalid:6379: no Ray cluster" in said("no-such-host.invalid:6379")


@pytest.mark.parametrize("address", [None, "local"])
def test_a_variable_without_an_address_asks_for_none(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        check_surroundings(address)


def test_whoever_listens_is_let_through() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        check_surroundings(f"127.0.0.1:{listening.getsockname()[1]}")


def test_a_temporary_folder_that_is_too_long_for_rays_sockets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/tmp/" + "scratch/" * 8
    monkeypatch.setenv("TMPDIR", long)
    line = said(None)
    assert line.startswith(f"TMPDIR={long}: paths of Ray's sockets") and "RAY_TMPDIR=/tmp" in line
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_surroundings(None)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("RAY_TMPDIR", long)
    assert said(None).startswith(f"RAY_TMPDIR={long}: ")


def test_the_limit_is_that_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest folder that is let through makes a path of 107 bytes, the most a Unix socket takes."""
    below = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    within = "/tmp/" + "x" * (107 - len("/tmp/" + below))
    monkeypatch.setenv("RAY_TMPDIR", within)
    check_surroundings(None)
    monkeypatch.setenv("RAY_TMPDIR", within + "x")
    assert "would have 108 bytes, and may have 107" in said(None)


def test_a_temporary_folder_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    assert said(None).startswith("RAY_TMPDIR=/dev/null: Ray cannot write there")


def test_a_running_ray_is_taken_as_it_is(ray_cluster: Cluster, nobody: str) -> None:
    check_ray(nobody)
    said(nobody)


@pytest.mark.parametrize("command", ["evaluate", "similarity", "compress"])
def test_a_job_asks_for_its_ray_before_it_reads_a_model(
    command: str, tmp_path: Path, corpus: Path, nobody: str
) -> None:
    """In a process of its own: this one may be connected to the cluster of all tests."""
    model = write_bloom(tmp_path / "model")
    (model / "config.json").write_text('{"model_type": 5}')  # which would be the error, were it read
    arguments = {
        "evaluate": [str(model), "--corpus", str(corpus)],
        "similarity": [str(model), str(corpus)],
        "compress": ["--model", str(model), "--corpus", str(corpus), "--method", "wanda", "--sampling", "equal"],
    }[command]
    common = ["--languages", "en,sw", "--sequence-length", "16", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "mbs_ray.cli", command, *arguments, *common],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": nobody},
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: RAY_ADDRESS={nobody}")


MONITORS = """
import os
from pathlib import Path

import ray

from mbs_ray.cluster.connect import connected


def monitors() -> int:
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            found += parent == os.getpid() and "/monitor.py" in process.joinpath("cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
    return found


def shutdown(own=ray.shutdown) -> None:
    print(monitors())
    own()


ray.shutdown = shutdown
with connected(None, 1):
    print(monitors())
"""


def test_a_ray_of_ones_own_is_ended_without_waiting_for_its_monitor() -> None:
    """Ray would ask it to end, wait for a second in vain, and then kill it."""
    done = subprocess.run([sys.executable, "-c", MONITORS], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "0"], done.stderr
