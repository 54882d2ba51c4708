"""Tests of what others read of ours run only where such a reader is named: ``make test-readers`` installs one."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("--vllm") else True


@pytest.fixture(scope="session")
def vllm(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment with vLLM."""
    return Path(request.config.getoption("--vllm"))
