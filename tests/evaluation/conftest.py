"""What the tests of tasks share."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.task_files import write_tasks


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks")


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own 14,000 tasks take it ten seconds to find."""
    from lm_eval.tasks import TaskManager

    first = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **given: first(self, **given, include_defaults=False))


@pytest.fixture(scope="module")
def harness(bloom: Path) -> Any:
    """lm-eval's own HFLM of the small BLOOM; it reads at most 40 tokens."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(bloom), device="cpu", dtype="float32", batch_size=3, max_length=40)
