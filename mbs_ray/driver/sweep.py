"""Conducts a sweep: calibration → stages → checkpoint → evaluation → tracking."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mbs_ray.cluster.connect import check_ray, connected
from mbs_ray.cluster.layout import resolve_layout
from mbs_ray.cluster.numerics import resolve_numerics, room_for_actors
from mbs_ray.cluster.offload import Offload
from mbs_ray.driver.adaptive import find_weights
from mbs_ray.driver.conclusion import SweepResult, distinct_allocations
from mbs_ray.driver.conductor import Conductor
from mbs_ray.driver.interrupt import interrupted_by_sigterm
from mbs_ray.driver.plan_check import planned
from mbs_ray.driver.pools import pools
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import Driver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.driver.sweep_texts import draw_texts
from mbs_ray.run.prepare import PreparedRun, prepare_runs
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.sweep_tracking import SweepTracking


def conduct(sweep: SweepSpec, out: Path, address: str | None, progress: Progress, force: bool = False) -> SweepResult:
    """Run a sweep, or go on with it: what is finished is kept, what is begun is continued.

    Raises :class:`InputError` before any actor starts where something in the sweep cannot work, or does not fit by
    its plan and ``force`` is not given.
    """
    with interrupted_by_sigterm():
        return _conduct(sweep, out, address, progress, force)


def _conduct(sweep: SweepSpec, out: Path, address: str | None, progress: Progress, force: bool) -> SweepResult:
    folders = SweepFolders(out.resolve(), sweep.name)
    offload = Offload(sweep.offload, sweep.nvme_path)
    specs = sweep.runs()
    check_ray(address)
    runs = prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), folders.cache, progress.work)
    # Those of adaptive runs are told once they are found.
    for run in distinct_allocations([run for run in runs if run.adaptive is None]):
        progress.allocation(run.spec.sampling.label, run.allocation, run.shares)
    uri = default_tracking_uri(folders.out)
    told = any(folders.run(run.label).tracking_identity() is not None for run in runs)
    connection = MlflowConnection(uri, sweep.name, folders.artifacts, patient=told)
    threads = sweep.threads if sweep.threads != "auto" else _stored("threads", folders, runs)
    replicas = sweep.layout.replicas if sweep.layout.replicas != "auto" else _stored("replicas", folders, runs)
    stages = sweep.layout.stages if sweep.layout.stages != "auto" else None
    with connected(address, (stages or 1) * (replicas or 1) * (threads or 1)):
        layout = resolve_layout(
            stages,
            replicas,
            actors=room_for_actors(threads),
            runs=len(runs),
            blocks=min(run.model.decoder.blocks for run in runs),
            microbatches=min(run.shared_microbatches for run in runs),
        )
        segments: dict[str, SegmentSet] = {}
        jobs = SweepJobs(folders, resolve_numerics(layout.actors, threads), layout, segments, pools(runs))
        progress.say(f"layout: {layout}, {jobs.numerics.threads} thread(s) each, on {jobs.numerics.device}")
        for run in runs:
            if run.adaptive is None:  # whose weights are not known yet
                folders.run(run.label).refuse_changed(jobs.signature(run))
            folders.run(run.label).refuse_other_first_set(next(iter(run.evaluation), ""))
        offload = planned(offload, runs, jobs, progress.say, force)
        jobs.refuse_full_disk()
        segments.update(draw_texts(runs, jobs.pools, folders, progress))
        driver = Driver(jobs, offload, progress)
        runs = find_weights(runs, driver, progress)
        driver.jobs = replace(driver.jobs, pools=pools(runs))
        for run in runs:
            folders.run(run.label).refuse_changed(driver.jobs.signature(run))
            folders.run(run.label).claim(driver.jobs.signature(run))
        tracked = SweepTracking(connection, folders, {"layout": vars(layout), "runs": len(runs)})
        return Conductor(runs, driver, tracked, progress).conduct(uri)


def _stored(field: str, folders: SweepFolders, runs: Sequence[PreparedRun]) -> int | None:
    """What ``auto`` was resolved to when the sweep was begun."""
    signatures = (folders.run(run.label).stored_signature() for run in runs)
    return next((int(signature[field]) for signature in signatures if signature is not None), None)
