"""A finished sweep, which the tests of this folder share."""

import os
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mbs_ray.driver.conclusion import SweepResult
from tests.support.models import HELD_OUT, write_corpus
from tests.support.sweeps import run_sweep
from tests.support.tiny_sweep import tiny_sweep


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("held-out"), 25, first=HELD_OUT)


@pytest.fixture(scope="session")
def swept(
    ray_cluster: Cluster, bloom: Path, corpus: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SweepResult, str]:
    assert "MLFLOW_TRACKING_URI" not in os.environ
    out = tmp_path_factory.mktemp("out")
    return out, *run_sweep(tiny_sweep(bloom, corpus, held_out), out)
