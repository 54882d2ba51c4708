"""Conducts a sweep: prepare, settle, plan, draw, find segments, weights and amounts, compress, conclude."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from mbs_ray.cluster.arrivals import nodes_awaited
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.connect import check_ray, connected, on_cluster
from mbs_ray.cluster.resources import Resources, settle_resources, settled_device
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.adaptive import find_weights
from mbs_ray.driver.budgets import find_amounts, measure_sensitivities, pilots, untried
from mbs_ray.driver.conclusion import SweepResult, distinct_allocations
from mbs_ray.driver.conductor import Conductor
from mbs_ray.driver.interrupt import interrupted_by_sigterm
from mbs_ray.driver.plan_check import checked_plan
from mbs_ray.driver.pools import refuse_moments_without_room
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.requested_cluster import requested_cluster
from mbs_ray.driver.run_card import run_facts
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.driver.sweep_texts import draw_texts
from mbs_ray.driver.top_ups import awaits_top_up, find_top_ups, with_kept_top_ups
from mbs_ray.errors import InputError
from mbs_ray.plan.hardware import Hardware, live_cluster
from mbs_ray.run.lease import Lease, leased
from mbs_ray.run.prepare import PreparedRun, prepare_runs, read_models
from mbs_ray.run.signature import finished_result, forward_fields, signature
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.tracking.mlflow_client import MlflowConnection, default_tracking_uri
from mbs_ray.tracking.sweep_tracking import SweepTracking


def conduct(
    sweep: SweepSpec,
    out: Path,
    address: str | None,
    progress: Progress,
    force: bool = False,
    take_over: bool = False,
    pool: StagePool | None = None,
    wait: float | None = None,
) -> SweepResult:
    """Run a sweep, or resume it: finished runs are kept, begun ones continued.

    Stages are started once, unless ``pool`` lends warm ones. Raises :class:`InputError` before any stage works where
    something in the sweep cannot work, does not fit by its plan and ``force`` is not given, or another command conducts
    it; ``take_over`` as for :func:`leased`, ``wait`` seconds for nodes as :func:`nodes_awaited` does.
    """
    folders = SweepFolders(out.resolve(), sweep.name)
    with interrupted_by_sigterm():
        check_ray(address)
        with leased(folders.sweep, take_over, progress.say) as lease:
            options = requested_cluster(sweep, ClusterOptions(address=address, wait=wait), folders)
            return _conduct(sweep, folders, options, progress, force, pool, lease)


def _conduct(
    sweep: SweepSpec,
    folders: SweepFolders,
    options: ClusterOptions,
    progress: Progress,
    force: bool,
    pool: StagePool | None,
    lease: Lease,
) -> SweepResult:
    runs = _prepared(sweep, folders, progress)
    uri = default_tracking_uri(folders.out)
    with ExitStack() as open_until_end:
        read = partial(read_models, runs, progress.work)
        open_until_end.enter_context(connected(options.address, options.cpus, read))
        stages = pool or open_until_end.enter_context(StagePool())
        connection = _connection(uri, folders, runs)
        open_until_end.enter_context(nodes_awaited(options, _useful_stages(runs), progress.say))
        hardware = live_cluster(options.nvme_path, on_cluster(options.address))
        device = settled_device(options.device)
        runs = with_kept_top_ups([replace(run, device=device) for run in runs], folders)
        resources = _settled(options, runs, hardware).shrunk_to_cluster(progress.say)
        progress.say(f"layout: {resources}")
        _refuse_changed(runs, resources, folders)
        offload = checked_plan(options.tiers, runs, folders, resources, hardware, progress.say, force)
        refuse_moments_without_room([*runs, *untried(runs, folders, resources)], folders, resources)
        drawn = draw_texts(runs, folders, progress)
        jobs = SweepJobs(folders, resources, drawn | _drawn_for_trials(runs, folders, progress), runs)
        measure_sensitivities(jobs, progress)
        driver = StageDriver(resources, stages, offload, progress, lease.check)
        jobs = find_top_ups(jobs, driver, progress)
        jobs = replace(jobs, runs=find_weights(jobs, driver, progress))
        jobs = replace(jobs, runs=find_amounts(jobs, driver, progress))
        lease.check()
        _claim(jobs)
        tracked = SweepTracking(connection, folders, {"layout": vars(resources.layout), "runs": len(runs)})
        return Conductor(jobs, driver, tracked, progress).run(uri)


def _drawn_for_trials(runs: Sequence[PreparedRun], folders: SweepFolders, progress: Progress) -> dict[str, SegmentSet]:
    """Draw the text of the trials of budgets."""
    own = pilots(runs)
    try:
        return draw_texts(own, folders, progress) if own else {}
    except InputError as error:
        raise InputError(f"budget.segments_per_language, of the trials: {error}") from error


def _prepared(sweep: SweepSpec, folders: SweepFolders, progress: Progress) -> list[PreparedRun]:
    """Check all that takes no time and no cluster, and show how many segments each language gets."""
    specs = sweep.runs()
    runs = prepare_runs(specs, sweep.labels(specs), sweep.columns(specs), folders.cache)
    # Weights of adaptive runs are shown once they are found.
    for run in distinct_allocations([run for run in runs if run.adaptive is None]):
        progress.allocation(run.spec.sampling.label, run.allocation, run.shares)
    return runs


def _connection(uri: str, folders: SweepFolders, runs: Sequence[PreparedRun]) -> MlflowConnection:
    """Connect to MLflow, which must be reachable unless the sweep is known to it already."""
    known = any(folders.run(run.label).tracking_identity() is not None for run in runs)
    return MlflowConnection(uri, folders.name, folders.artifacts, patient=known)


def _useful_stages(runs: Sequence[PreparedRun]) -> int:
    """Count the stages that runs keep busy, one in each; no stage is without a block."""
    return min(len(runs), min(run.model.decoder.blocks for run in runs))


def _settled(options: ClusterOptions, runs: Sequence[PreparedRun], hardware: Hardware) -> Resources:
    resources = settle_resources(
        options,
        runs=len(runs),
        blocks=min(run.model.decoder.blocks for run in runs),
        microbatches=min(run.shared_microbatches for run in [*runs, *pilots(runs)]),
    )
    device = resources.numerics.device
    gpu = "" if device == "cpu" else hardware.kinds_of_gpus
    return replace(resources, numerics=replace(resources.numerics, gpu=gpu, kernel=hardware.kernels(device)))


def _refuse_changed(runs: Sequence[PreparedRun], resources: Resources, folders: SweepFolders) -> None:
    for run in runs:
        directory = folders.run(run.label)
        # Weights, amounts or further segments are not known yet.
        if run.adaptive is None and run.spec.budget is None and not awaits_top_up(run):
            finished = finished_result(folders, run) is not None
            directory.refuse_changed(signature(run, resources.numerics, resources.layout.replicas), finished)
        directory.refuse_other_first_set(next(iter(run.evaluation), ""))


def _claim(jobs: SweepJobs) -> None:
    """Claim the run directories for the runs, now that all of their weights are known."""
    numerics, layout = jobs.resources.numerics, jobs.resources.layout
    for run in jobs.runs:
        directory, own = jobs.folders.run(run.label), signature(run, numerics, layout.replicas)
        finished = finished_result(jobs.folders, run) is not None
        directory.refuse_changed(own, finished)
        directory.claim(own, run_facts(run, forward_fields(run, numerics), layout), finished)
