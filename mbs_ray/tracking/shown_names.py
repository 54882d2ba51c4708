"""Names under which people find things in MLflow."""

from pathlib import Path

from mbs_ray.run.prepare import PreparedRun


def shown_model(model: str) -> str:
    """Return the name of a model's folder; that of the run for the checkpoint of one."""
    path = Path(model)
    return path.parent.name if path.name == "checkpoint" else path.name


def shown_run(run: PreparedRun) -> str:
    """Return a run's label with the model's name at its end: MLflow cuts long names short there."""
    rest = run.label.removeprefix(f"{run.model.name}-")
    return run.label if rest == run.label else f"{rest} ({run.model.name})"
