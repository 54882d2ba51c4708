"""What the tests of tasks share."""

from pathlib import Path

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
