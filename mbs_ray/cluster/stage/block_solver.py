"""Collecting the moments of a block's linears and solving them, divided among the replicas of a stage."""

from collections.abc import Iterator

import torch
from torch import nn

from mbs_ray.cluster.job import Compress, CompressStored, Fit, Try
from mbs_ray.cluster.sharding import assign_longest_first
from mbs_ray.cluster.stage.block_reader import StageBlock
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.collect import Collected, sequential_groups
from mbs_ray.compression.collect import collect as collect_moments
from mbs_ray.compression.routing import borrow, collect_routed, mixture_reports
from mbs_ray.compression.solve import check_called, solving_costs
from mbs_ray.compression.solve import solve as solve_linears
from mbs_ray.compression.stored_moments import RunMoments
from mbs_ray.methods import Amounts, Method, Statistic
from mbs_ray.model.routes import Routes


def solving_groups(
    run: StageRun, work: Compress | CompressStored | Try, method: Method, block: StageBlock
) -> list[list[str]]:
    """Group the linears that are solved after one forward: all, or in a true sequence those that share an input."""
    decoder = run.decoder
    if (
        not isinstance(work, Compress)
        or not work.true_sequential
        or (method.statistic is Statistic.NONE and work.fit is None)
    ):
        return [list(decoder.linears(block.index))]
    first = run.microbatches_of(run.job.learned[0])[0]
    hidden = run.store.get(first.index, block.index, decoder.device)
    return sequential_groups(decoder, decoder.load_block(block.index, block.tensors), block.index, hidden)


def collect(
    run: StageRun, work: Compress | CompressStored | Try, method: Method, block: StageBlock, group: list[str]
) -> Collected | RunMoments:
    """Collect second moments at the inputs of these linears in a forward of the block, or open those on disk."""
    if isinstance(work, Compress):
        with run.timed(block.report, "collect"):
            module = run.decoder.load_block(block.index, block.tensors)
            if run.decoder.mixtures(block.index):
                return _collect_routed(run, work, method, block, group, module)
            calibrating = run.follow(block.index, "collect", run.microbatches_of(work.calibration))
            hidden = (run.get(microbatch, block.index) for microbatch in calibrating)
            return collect_moments(run.decoder, module, block.index, hidden, method.statistic, group)
    if work.moments and method.statistic is not Statistic.NONE:
        return RunMoments(work.moments, block.index)
    return Collected()


def _collect_routed(
    run: StageRun, work: Compress, method: Method, block: StageBlock, group: list[str], module: nn.Module
) -> Collected:
    """Collect the moments of a block with experts, and count which tokens reach them where their input is collected."""
    routes = Routes(module, list(dict.fromkeys(work.calibration.languages)))

    def hidden() -> Iterator[torch.Tensor]:
        for microbatch in run.follow(block.index, "collect", run.microbatches_of(work.calibration)):
            routes.begin(microbatch.languages)
            yield run.get(microbatch, block.index)

    def total(counts: torch.Tensor) -> torch.Tensor:
        run.agree(block.index)
        return run.replicas.total(counts)

    decoder, below = run.decoder, work.expert_tokens
    collected = collect_routed(decoder, module, block.index, hidden, method.statistic, group, below, routes, total)
    # Methods that see no text take no forward. In a true sequence, the one before any expert is compressed tells.
    if routes.tokens and (block.routes is None or any(name.endswith(".up_proj") for name in group)):
        block.routes = routes
    return collected


def report_routes(run: StageRun, block: StageBlock) -> None:
    """Report which tokens reached which expert, and which experts were starved."""
    if block.routes is None:
        return
    run.agree(block.index)
    borrowed = {linear.name: linear.borrowed for linear in block.report.linears if linear.borrowed}
    block.report.mixtures = mixture_reports(block.routes, borrowed, run.replicas.total)


def solve(
    run: StageRun,
    method: Method,
    block: StageBlock,
    group: list[str],
    collected: Collected | RunMoments,
    fit: Fit | None = None,
    amounts: Amounts | None = None,
) -> None:
    """Replace the weights of these linears in the block, keep their packed forms, and report what they lost."""
    decoder, report, replicas = run.decoder, block.report, run.replicas
    linears = decoder.linears(block.index)
    where, inputs = f"block {block.index}", collected.inputs()
    statistic = method.statistic if fit is None else Statistic.FULL
    check_called(group, inputs, statistic, where)
    # Every replica computes the same owners, so that they need not be exchanged. Then: each owner gets the summed
    # moments of its linears (reduce), solves those, and everybody gets all solved weights (broadcast).
    costs = solving_costs(linears, group, inputs, statistic)
    workers = assign_longest_first([cost for _, cost in costs], replicas.size)
    owners = {name: owner for (names, _), owner in zip(costs, workers, strict=True) for name in names}
    own = [name for name in group if owners[name] == replicas.rank]
    if isinstance(collected, RunMoments):
        with run.timed(report, "collect"):
            collected = collected.read(own, decoder.device)
    else:
        with run.exchanged(report, "reduce"):
            run.agree(block.index)
            collected = replicas.gather(collected, owners)
            collected.borrowed = borrow(collected)
    with run.timed(report, "solve"):
        run.tell(block.index, "solve", 0, 1)
        strength = None if fit is None else fit.strength
        methods = {} if amounts is None else amounts.methods(method, block.index)
        solved = solve_linears(block.tensors, own, collected, method, decoder.device, where, strength, methods)
    with run.exchanged(report, "broadcast"):
        run.agree(block.index)
        solved = replicas.share(solved, owners, block.tensors)
    block.tensors.update(solved.weights)
    block.packed.update(solved.packed)
    order = list(linears)
    report.linears = sorted([*report.linears, *solved.reports], key=lambda linear: order.index(linear.name))
