"""Memory of one stage, part by part and phase by phase.

A forward is run once on the meta device, where tensors have shapes and no memory, and its live bytes are counted: so
attention, masks and whatever else an architecture does need no formula each. Everything else follows the order in
which :class:`~mbs_ray.cluster.stage.worker.Worker` allocates and frees.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from mbs_ray.compression.collect import collect
from mbs_ray.compression.collect_drift import Pair, collect_with_drift
from mbs_ray.evaluation.scoring import LOGIT_BYTES
from mbs_ray.methods import Statistic, moment_bytes
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.head import VOCABULARY_CHUNK
from mbs_ray.plan.live_bytes import LiveBytes
from mbs_ray.plan.planned_work import PlannedRun, PlannedWork, TokenBatches
from mbs_ray.plan.solver_memory import factor_bytes, fitting_bytes, preparing_bytes, solving_bytes


@dataclass(frozen=True)
class Phase:
    """Memory alive at the peak of a phase, in bytes by part; on a CPU all of it is ``host``."""

    name: str
    device: Mapping[str, int] = field(default_factory=dict)
    host: Mapping[str, int] = field(default_factory=dict)

    def on_cpu(self) -> "Phase":
        """Return both memories as one: copies for the device are left out, parts of the same name added up."""
        together = dict(self.host)
        for part, size in self.device.items():
            if part not in ("microbatch", "weight"):
                together[part] = together.get(part, 0) + size
        return Phase(self.name, {}, together)


def phases_of(work: PlannedWork, blocks: Iterable[int], last: bool) -> list[Phase]:
    """Return the largest of each phase over some blocks, without activations. ``last``: the head follows."""
    largest: dict[str, Phase] = {}
    for index in sorted({alike(work.decoder, index) for index in blocks}):
        for phase in _block_phases(work, index):
            before = largest.get(phase.name)
            if before is None or _total(phase) > _total(before):
                largest[phase.name] = phase
    if last and work.evaluation:
        largest["evaluate"] = head_memory(work)
    return list(largest.values())


@lru_cache(maxsize=1024)
def block_bytes(decoder: Decoder, index: int) -> int:
    """Compute the bytes of a block as it is stored."""
    infos = [decoder.checkpoint.tensors[stored] for stored in decoder.block_tensors(index)]
    return sum(torch.Size(info.shape).numel() * info.dtype.itemsize for info in infos)


@lru_cache(maxsize=1024)
def joined_bytes(decoder: Decoder, index: int) -> int:
    """Compute the bytes of experts that lie in a stored tensor with others: to be written, they are copied into it.

    A configuration does not tell how they are stored, so that those that lie one by one are counted as well.
    """
    linears = decoder.linears(index).items()
    apart = sum(rows * columns for name, (rows, columns) in linears if decoder.stored_weight(index, name) is None)
    return apart * _stored_itemsize(decoder)


def hidden_bytes(decoder: Decoder, batches: TokenBatches, segments: int) -> int:
    """Compute the bytes of the hidden states of this many segments."""
    return segments * batches.length * decoder.checkpoint.hidden_size * decoder.compute_dtype.itemsize


def _total(phase: Phase) -> int:
    return sum(phase.device.values()) + sum(phase.host.values())


@lru_cache(maxsize=1024)
def alike(decoder: Decoder, index: int) -> int:
    """Return the first block that has the same linears."""
    return next(other for other in range(index + 1) if decoder.linears(other) == decoder.linears(index))


def _block_phases(work: PlannedWork, index: int) -> Iterator[Phase]:
    decoder = work.decoder
    stored = block_bytes(decoder, index)
    host = {"block as stored": stored, "next block": stored if decoder.blocks > 1 else 0}
    microbatch = max(hidden_bytes(decoder, one, one.rows) for one in work.batches)
    block = _module_bytes(decoder, index)
    masks = _mask_bytes(work)
    if isinstance(work, PlannedRun):
        statistic = work.statistic
        if statistic is not Statistic.NONE:
            rows, length = work.calibration.rows, work.calibration.length
            moments = sum(_sums(work, index, columns, names) for columns, names in inputs_of(decoder, index))
            moments += sum(moment_bytes(statistic, columns) for columns in overall_columns(work, index))
            parts = {"block": block, "microbatch": microbatch}
            if work.fit is None:
                scratch = _forward_bytes(decoder, index, rows, length, statistic)
            else:
                scratch = _drift_bytes(decoder, index, rows, length, work.chooses_strength)
                # Two models' hidden states, and in a true sequence the block as it was and as it becomes.
                parts = {"block": block * (2 if work.true_sequential else 1), "microbatch": 2 * microbatch}
            device = {"moments": moments, "forward": scratch, "masks": masks, **parts}
            yield Phase("collect", device, host)
        yield _solve(work, index, host, masks)
        if work.per_language:
            linears = decoder.linears(index).values()
            weights = sum(rows * columns for rows, columns in linears)
            changes = weights * decoder.compute_dtype.itemsize + 8 * max(rows * columns for rows, columns in linears)
            scratch = _forward_bytes(decoder, index, work.calibration.rows, work.calibration.length, Statistic.NONE)
            device = {"block": block, "changes": changes, "forward": scratch, "masks": masks, "microbatch": microbatch}
            yield Phase("measure", device, {**host, "solved weights": weights * _stored_itemsize(decoder)})
        # Experts of one stored tensor were taken apart as they were read, and are put together to be written.
        joined = joined_bytes(decoder, index)
        yield Phase("write", {"masks": masks}, {**host, "experts together": joined} if joined else host)
    scratch = max(_forward_bytes(decoder, index, one.rows, one.length, Statistic.NONE) for one in work.batches)
    yield Phase("propagate", {"block": block, "forward": scratch, "masks": masks, "microbatch": microbatch}, host)


def _solve(work: PlannedRun, index: int, host: Mapping[str, int], masks: int) -> Phase:
    """Find the peak of solving, widest inputs first: a moment is freed after its linears, a solved weight stays."""
    decoder, method = work.decoder, work.method
    itemsize, shapes = _stored_itemsize(decoder), decoder.linears(index)
    inputs = sorted(inputs_of(decoder, index), key=lambda one: one[0], reverse=True)
    waiting = sum(_sums(work, index, columns, names) for columns, names in inputs)
    solved, packed, peak = 0, 0, Phase("solve")
    for columns, names in inputs:
        own, weights = _sums(work, index, columns, names), 0
        if work.fit is not None:
            weights = sum(shapes[name][0] for name in names) * columns * itemsize
            fitting = max(fitting_bytes(shapes[name][0], columns, work.chooses_strength) for name in names)
            device = {"moments": waiting, "weight": 2 * weights, "solver": fitting, "masks": masks}
            peak = max(peak, Phase("solve", device, {**host, "solved weights": solved + packed}), key=_total)
            # Fitted weights take the place of the drifts; the moment stays.
            waiting -= own - moment_bytes(Statistic.FULL, columns)
            own = moment_bytes(Statistic.FULL, columns)
        preparing = {"moments": waiting, "factor": preparing_bytes(method, columns), "weight": weights, "masks": masks}
        peak = max(peak, Phase("solve", preparing, {**host, "solved weights": solved + packed}), key=_total)
        for name in names:
            rows, _ = shapes[name]
            device = {
                "moments": waiting,
                "factor": factor_bytes(method, columns),
                "weight": max(weights, rows * columns * itemsize),
                "solver": solving_bytes(method, rows, columns, itemsize),
                "masks": masks,
            }
            peak = max(peak, Phase("solve", device, {**host, "solved weights": solved + packed}), key=_total)
            solved += rows * columns * itemsize
            packed += rows * columns * getattr(method, "bits", 0) // 8
        waiting -= own
    return peak


def _sums(work: PlannedRun, index: int, columns: int, names: Iterable[str]) -> int:
    """Compute the bytes of what is summed up at one input: moments, and drifts where linears are fitted."""
    sums = moment_bytes(work.statistic, columns)
    if work.fit is not None:
        rows = sum(work.decoder.linears(index)[name][0] for name in names)
        sums = (sums + 4 * rows * columns) * (2 if work.chooses_strength else 1)
    return sums


def head_memory(work: PlannedWork) -> Phase:
    """Compute the head's memory: some rows of the vocabulary at a time, over all scored tokens, with sums per token."""
    decoder = work.decoder
    rows, width = min(VOCABULARY_CHUNK, decoder.vocabulary), decoder.width
    compute, stored = decoder.compute_dtype.itemsize, _stored_itemsize(decoder)
    # Logits and their exponentials; a copy in the forward's dtype where that is not float32.
    largest = min(LOGIT_BYTES, 4 * rows * max(one.rows * one.length for one in work.evaluation))
    logits = 2 * largest + (0 if compute == 4 else largest * compute // 4)
    tokens = sum(one.tokens for one in work.evaluation)
    device = {"head": rows * width * compute, "logits": logits}
    # Maximum, sum, logit of the token, and its id.
    return Phase("evaluate", device, {"head as stored": 2 * rows * width * stored, "scores": 20 * tokens})


def _stored_itemsize(decoder: Decoder) -> int:
    return decoder.stored_dtype.itemsize


def _module_bytes(decoder: Decoder, index: int) -> int:
    parameters = decoder.block_tensors(index)
    return sum(torch.Size(decoder.checkpoint.tensors[name].shape).numel() for name in parameters) * (
        decoder.compute_dtype.itemsize
    )


@lru_cache(maxsize=256)
def _forward_bytes(decoder: Decoder, index: int, rows: int, length: int, statistic: Statistic) -> int:
    """Measure the peak bytes of a block's forward without block, moments, masks and its own input."""
    with torch.inference_mode():
        block = decoder.load_block(index, decoder.read_block(index))
        hidden = torch.empty(
            rows, length, decoder.checkpoint.hidden_size, dtype=decoder.compute_dtype, device=decoder.device
        )
        decoder.run_block(block, index, hidden)
        with LiveBytes() as propagating:
            decoder.run_block(block, index, hidden)
        if statistic is Statistic.NONE:
            return propagating.peak
        with LiveBytes() as live:
            # Twice: in the first forward the moments of later linears are not there yet.
            collected = collect(decoder, block, index, [hidden, hidden], statistic)
            moments = {id(moment): moment for moment in collected.moments.values()}.values()
            return max(propagating.peak, live.peak - sum(moment.sum.nbytes for moment in moments))


@lru_cache(maxsize=256)
def _drift_bytes(decoder: Decoder, index: int, rows: int, length: int, chooses: bool) -> int:
    """Measure the peak bytes of a block's two forwards without block, sums, masks and its own inputs."""
    with torch.inference_mode():
        block = decoder.load_block(index, decoder.read_block(index))
        width = decoder.checkpoint.hidden_size
        hidden = torch.empty(rows, length, width, dtype=decoder.compute_dtype, device=decoder.device)
        decoder.run_block(block, index, hidden)
        held = torch.arange(rows) == 0 if chooses else None
        pairs = [Pair(hidden, hidden.clone(), held)] * 2
        writers = [name for name, shape in decoder.linears(index).items() if shape[0] == width]
        with LiveBytes() as live:
            collected = collect_with_drift(decoder, block, block, index, pairs, lambda _: None, writers)
            peak, parts = live.peak, [one for one in (collected, collected.held) if one is not None]
            moments = {id(moment): moment.sum for one in parts for moment in one.moments.values()}
            drifts = [drift.sum for one in parts for drift in one.drifts.values()]
            return peak - sum(one.nbytes for one in (*moments.values(), *drifts))


def _mask_bytes(work: PlannedWork) -> int:
    """Compute the bytes recorded for the blocks, over every shape of microbatch."""
    shapes = {(rows, one.length) for one in work.batches for rows in one.shapes}
    with torch.inference_mode():
        return sum(work.decoder.recorded_bytes(rows, length) for rows, length in shapes)


def starved_inputs(work: PlannedRun, index: int) -> list[tuple[int, list[str]]]:
    """List the inputs of experts that, were tokens spread evenly, too few of them would reach."""
    decoder, tokens = work.decoder, work.calibration.tokens
    return [
        (columns, names)
        for columns, names in inputs_of(decoder, index)
        if (share := decoder.routed(index, names[0])) < 1 and share * tokens < work.expert_tokens * columns
    ]


def overall_columns(work: PlannedRun, index: int) -> list[int]:
    """List the columns of the moments over all tokens that starved experts borrow from: their input is a common one."""
    starved = starved_inputs(work, index)
    inner = [columns for columns, names in starved if names[0].endswith(".down_proj")]
    outer = {columns for columns, names in starved if not names[0].endswith(".down_proj")}
    return [*outer, *inner]


@lru_cache(maxsize=256)
def inputs_of(decoder: Decoder, index: int) -> list[tuple[int, list[str]]]:
    """List the inputs of a block's linears: the columns of each, and the linears that share it."""
    if alike(decoder, index) != index:
        return inputs_of(decoder, alike(decoder, index))
    with torch.inference_mode():
        block = decoder.load_block(index, decoder.read_block(index))
        hidden = torch.empty(1, 2, decoder.checkpoint.hidden_size, dtype=decoder.compute_dtype, device=decoder.device)
        collected = collect(decoder, block, index, [hidden], Statistic.DIAGONAL)
    return [(collected.moments[group[0]].columns, group) for group in collected.inputs()]
