"""A Ray that cannot be had is one line that names option or variable, within a minute, before a model is read."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mbs_ray.cluster.connect import check_ray
from tests.support.models import write_bloom

#: In a process of its own: this one may be connected to the cluster of all tests.
CHECK = "import sys; from mbs_ray.cluster.connect import check_ray; check_ray(*map(eval, sys.argv[1:]))"


def said(program: str, address: str | None, **environment: str) -> str:
    """The last line of what a program says when it is given this address."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", program, repr(address)], capture_output=True, text=True, env=clean | environment
    )
    return (done.stderr.strip().splitlines() or [""])[-1]


@pytest.fixture
def nobody() -> str:
    """An address that nobody answers at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_an_address_that_does_not_answer_is_named_by_whoever_gave_it(nobody: str) -> None:
    for address, environment, named in (
        (None, {"RAY_ADDRESS": nobody}, f"RAY_ADDRESS={nobody} (a variable of the environment)"),
        ("auto", {"RAY_ADDRESS": nobody}, f"RAY_ADDRESS={nobody} (a variable of the environment)"),
        (nobody, {"RAY_ADDRESS": "local"}, f"--address {nobody}"),
    ):
        assert f"InputError: {named}: no Ray cluster answers there (Connection refused)" in said(
            CHECK, address, **environment
        )


def test_a_temporary_folder_that_is_too_long_for_rays_sockets_is_named(tmp_path: Path) -> None:
    long = tmp_path / ("scratch" * 8)
    long.mkdir()
    line = said(CHECK, None, TMPDIR=str(long))
    assert f"InputError: TMPDIR={long}: paths of Ray's sockets" in line and "RAY_TMPDIR=/tmp" in line
    assert said(CHECK, None, TMPDIR=str(long), RAY_TMPDIR="/tmp") == ""
    assert said(CHECK, None, TMPDIR="/tmp", RAY_TMPDIR=str(long)).startswith(
        f"mbs_ray.errors.InputError: RAY_TMPDIR={long}: "
    )


def test_the_limit_is_that_of_ray() -> None:
    """The longest folder that is let through makes a path of 107 bytes, the most a Unix socket takes."""
    within = "/tmp/" + "x" * (
        107 - len(f"/tmp//ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    )
    program = f"import os; os.getpid = lambda: {os.getpid()}\n{CHECK}"
    assert said(program, None, RAY_TMPDIR=within) == ""
    assert "would have 108 bytes" in said(program, None, RAY_TMPDIR=within + "x")


def test_a_temporary_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Ray cannot write there" in said(CHECK, None, RAY_TMPDIR=str(tmp_path / "file"))


def test_a_running_ray_is_taken_as_it_is(ray_cluster: object, nobody: str) -> None:
    check_ray(nobody)


def test_a_job_asks_for_its_ray_before_it_reads_a_model(tmp_path: Path, corpus: Path, nobody: str) -> None:
    model = write_bloom(tmp_path / "model")
    (model / "config.json").write_text("{")  # which would be the error, were it read
    environment = os.environ | {"RAY_ADDRESS": nobody}
    common = ["--languages", "en,sw", "--sequence-length", "16", "--out", str(tmp_path / "out")]
    for command in (
        ["evaluate", str(model), "--corpus", str(corpus)],
        ["similarity", str(model), str(corpus)],
        ["compress", "--model", str(model), "--corpus", str(corpus), "--method", "wanda", "--sampling", "equal"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mbs_ray.cli", *command, *common], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith(f"error: RAY_ADDRESS={nobody}")
