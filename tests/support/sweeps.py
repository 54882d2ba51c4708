"""Sweeps of tests: conducted on warm stages, with their text drawn in this process where drawing is not the subject."""

import io
from pathlib import Path

from rich.console import Console

from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.driver.pools import pools
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep import conduct
from mbs_ray.run.prepare import PreparedRun, prepare_runs
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import draw_here
from tests.support.stages import WARM


def run_sweep(sweep: SweepSpec, out: Path, pool: StagePool | None = WARM) -> tuple[SweepResult, str]:
    """What a sweep came to, and all that it printed."""
    text = io.StringIO()
    return conduct(sweep, out, None, Progress(Console(file=text, width=200)), pool=pool), text.getvalue()


def prepared_runs(sweep: SweepSpec, out: Path) -> list[PreparedRun]:
    specs, folders = sweep.runs(), SweepFolders(out, sweep.name)
    return prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), folders.cache)


def predrawn(runs: list[PreparedRun], out: Path) -> dict[str, SegmentSet]:
    """All text of these runs, by fingerprint, drawn without Ray into where a sweep under ``out`` would draw it."""
    requests = [text for run in runs for text in run.evaluation.values()]
    requests += [run.calibration for run in runs if run.weights is None]
    requests += [text for pool in pools(runs) for text in pool.languages.values()]
    return {one.fingerprint: draw_here(one, out / "segments") for one in requests}
