"""One real Ray cluster of three nodes for the whole session."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray's workers are nicer than all others by default: beside the other process of `make test` they starve for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
import ray
from hypothesis import settings
from ray.cluster_utils import Cluster

from mbs_ray.cluster.activations.aio_op import is_built, load_aio
from tests.support.models import to_hub_layout, write_bloom, write_corpus, write_llama
from tests.support.stages import WARM

# Of tests that do not say how many examples they want, the default profile takes a third.
settings.register_profile("ci", max_examples=100, deadline=None)
settings.register_profile("default", max_examples=33, deadline=None)

OBJECT_STORE_BYTES = 80 * 2**20
#: More than there are, on three nodes: stages of several layouts stay up between tests, and a process costs no CPU.
CPUS_OF_NODE = 4


# A script's background job ignores Ctrl-C, and so would all processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-aio", action="store_true", help="fail, not skip, where async_io is not built")
    parser.addoption("--vllm", help="Python of an environment with vLLM, for tests/readers (make test-readers)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def aio(request: pytest.FixtureRequest) -> Any:
    """DeepSpeed's async_io. Tests do not wait the minutes it takes to build it."""
    if not is_built():
        message = "async_io is not built: python -m mbs_ray.cluster.activations.aio_op"
        if request.config.getoption("--require-aio"):
            pytest.fail(message)
        pytest.skip(message)
    return load_aio()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": CPUS_OF_NODE,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            # Neither autoscaler nor a reader of logs: both look around all the time.
            "no_monitor": True,
            "include_log_monitor": False,
        },
    )
    for _ in range(2):
        cluster.add_node(num_cpus=CPUS_OF_NODE, object_store_memory=OBJECT_STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    cluster.wait_for_nodes()
    yield cluster
    WARM.rest()
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLOOM of four blocks as `save_pretrained` leaves it."""
    return write_bloom(tmp_path_factory.mktemp("bloom") / "tiny-bloom")


@pytest.fixture(scope="session")
def hub_bloom(bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the hub's layout."""
    return to_hub_layout(bloom, tmp_path_factory.mktemp("hub") / "hub-bloom")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four languages, 60 documents each."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
