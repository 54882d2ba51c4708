"""Time of a block and of a stage, part by part: operations and bytes over the rates of the hardware."""

from collections.abc import Iterable
from dataclasses import dataclass

from mbs_ray.cluster.sharding import assign_longest_first
from mbs_ray.compression.collect import needs_last_output
from mbs_ray.methods import HELD_OUT, Factored, Method, Statistic
from mbs_ray.methods.kernel import least_columns
from mbs_ray.model.decoder import Decoder
from mbs_ray.plan.expert_work import all_tokens_seconds, joining_seconds, loading_seconds
from mbs_ray.plan.planned_work import PlannedRun, PlannedWork, TokenBatches
from mbs_ray.plan.rates import Rates
from mbs_ray.plan.stage_memory import block_bytes, hidden_bytes, inputs_of, overall_columns, starved_inputs

#: Bytes that a score of the attention moves through memory: written, masked, softmaxed in float32 and read again.
_BYTES_OF_A_SCORE = 40


@dataclass(frozen=True)
class Seconds:
    """Seconds of one run in one stage, by part. ``read`` overlaps with computing, so only its excess counts."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        computing = sum(seconds for part, seconds in self.parts.items() if part != "read")
        return max(computing, self.parts.get("read", 0.0))


def stage_seconds(
    work: PlannedWork, blocks: Iterable[int], last: bool, rates: Rates, tier: str, cuda: bool, replicas: int = 1
) -> Seconds:
    """Estimate the seconds of a replica, whose share ``work`` holds. ``tier``: where its activations are.

    Linears are assigned to the replicas to be solved, and the busiest one decides.
    """
    parts: dict[str, float] = {}
    for index in blocks:
        own = _block(work, index, rates, tier, cuda)
        share = _largest_hand(work, index, replicas)
        for part, seconds in own.items():
            seconds *= share if part in ("factorise", "fit", "solve", "try") else 1.0
            parts[part] = parts.get(part, 0.0) + seconds
    if last and work.evaluation:
        parts["evaluate"] = head_seconds(work, rates, cuda)
    return Seconds(parts)


def head_operations(work: PlannedWork) -> float:
    """Count the operations of the logits of all scored tokens."""
    return 2.0 * work.decoder.vocabulary * work.decoder.width * sum(one.tokens for one in work.evaluation)


def head_seconds(work: PlannedWork, rates: Rates, cuda: bool) -> float:
    """Estimate the seconds of the head: its rows are read once, and meet every scored token."""
    stored = float(work.decoder.vocabulary * work.decoder.width * work.decoder.stored_dtype.itemsize)
    return head_operations(work) / rates.head + stored / rates.read + _uploaded(stored, rates, cuda)


def forward_seconds(decoder: Decoder, index: int, batches: TokenBatches, rates: Rates) -> float:
    """Estimate the seconds for all microbatches through one block."""
    linears = decoder.linears(index).items()
    weights = sum(rows * columns * decoder.routed(index, name) for name, (rows, columns) in linears)
    config = decoder.checkpoint.config.get_text_config()
    scores = config.num_attention_heads * batches.length * batches.tokens
    operations = 2.0 * weights * batches.tokens
    operations += 4.0 * decoder.checkpoint.hidden_size * batches.length * batches.tokens
    return operations / rates.forward + _BYTES_OF_A_SCORE * scores / rates.scores


def collecting_seconds(work: PlannedRun, index: int, rates: Rates, cuda: bool) -> float:
    """Estimate the seconds of the forwards that collect moments; in a true sequence every input takes one.

    The linears before it have changed then. A forward ends in the last of the calls that it watches, unless there are
    experts or outputs are compared with the dense model's.
    """
    decoder, batches = work.decoder, work.calibration
    whole = forward_seconds(decoder, index, batches, rates)
    inputs = [names for _, names in inputs_of(decoder, index)]
    if decoder.mixtures(index) or work.fit is not None:
        return whole * (len(inputs) if work.true_sequential else 1)
    linears = decoder.linears(index)
    computed = needs_last_output(work.statistic, cuda, decoder.compute_dtype)
    called = [name for names in inputs for name in names]
    seconds = 0.0
    for end in [names[-1] for names in inputs] if work.true_sequential else called[-1:]:
        others = called[called.index(end) + computed :]
        left_out = sum(rows * columns for rows, columns in (linears[name] for name in others))
        seconds += whole - 2.0 * left_out * batches.tokens / rates.forward
        if work.statistic is Statistic.FULL and not computed:  # the energy, from the moment
            rows, columns = linears[end]
            seconds += float(rows) * columns**2 / rates.product
    return seconds


def moment_operations(decoder: Decoder, index: int, tokens: int, experts: float = 1.0) -> float:
    """Count the operations of the moments (lower triangles) at all inputs of a block; experts see some tokens only.

    ``experts``: the share of the rate that theirs reach; they count for as many more.
    """
    shares = ((columns, decoder.routed(index, names[0])) for columns, names in inputs_of(decoder, index))
    return sum(columns**2 * share / (experts if share < 1 else 1) for columns, share in shares) * tokens


def solve_operations(decoder: Decoder, index: int) -> tuple[float, float]:
    """Count the operations of a block's factors and of its solved linears."""
    factors = sum(columns**3 / 3 for columns, _ in inputs_of(decoder, index))
    return factors, sum(float(rows) * columns**2 for rows, columns in decoder.linears(index).values())


def products_of(method: Method) -> int:
    """Return how often rows × columns² operations a method takes in products: half a square, and a square a pass."""
    return 1 + 2 * method.refine if isinstance(method, Factored) else 0


def _besides_products(decoder: Decoder, index: int, method: Method, rates: Rates, cuda: bool) -> float:
    """Estimate the seconds of a block's columns and weights; without measuring, only OBS solvers go by columns."""
    of_weight = rates.weight
    of_column = of_compiled = 0.0
    if method.label in rates.solve:
        of_column, of_weight = rates.solve[method.label]
        of_compiled = of_column
    elif isinstance(method, Factored):
        times = 1 + method.refine
        of_column, of_compiled, of_weight = times * rates.column, times * rates.compiled_column, times * rates.weight
    least = least_columns("cuda" if cuda else "cpu")
    return sum(
        columns * (of_compiled if columns >= least else of_column) + rows * columns * of_weight
        for rows, columns in decoder.linears(index).values()
    )


def _block(work: PlannedWork, index: int, rates: Rates, tier: str, cuda: bool) -> dict[str, float]:
    decoder = work.decoder
    stored = block_bytes(decoder, index)
    parts = {"read": stored / rates.read + joining_seconds(decoder, index, rates)}
    placed = _uploaded(stored, rates, cuda) if cuda else loading_seconds(decoder, index, rates)
    forwards = {one: forward_seconds(decoder, index, one, rates) for one in work.batches}
    if isinstance(work, PlannedRun):
        method, calibration = work.method, work.calibration
        own = [calibration] * (1 if work.fit is None else 2)
        if work.statistic is not Statistic.NONE:
            around = _moving(decoder, own, rates, tier, cuda, 1) + placed
            repeated = len(inputs_of(decoder, index)) if work.true_sequential else 1
            parts["collect"] = collecting_seconds(work, index, rates, cuda) + around * repeated
            if work.fit is not None:
                # Of the dense model's forwards one propagates, where anything follows.
                parts["collect"] += forwards[calibration] * (repeated - (index < decoder.blocks - 1))
            if starved_inputs(work, index):
                # One more forward, and all tokens through the experts that too few reach.
                parts["collect"] += forwards[calibration] + around - placed + all_tokens_seconds(work, index, rates)
        if work.statistic is Statistic.FULL:
            operations = moment_operations(decoder, index, calibration.tokens, rates.expert_moments)
            parts["moments"] = operations / rates.moments
            squares = sum(columns**2 for columns in overall_columns(work, index))
            parts["moments"] += squares * calibration.tokens / rates.moments
        factors, solved = solve_operations(decoder, index)
        weights = sum(rows * columns for rows, columns in decoder.linears(index).values())
        parts["solve"] = _besides_products(decoder, index, method, rates, cuda)
        if isinstance(method, Factored):
            parts["factorise"] = factors / rates.factor
            parts["solve"] += solved * products_of(method) / rates.product
        if work.fit is not None:
            # Drifts of all tokens and of those held out; two triangles a step, and a product to try it on the latter.
            held, chosen = (1 / HELD_OUT, 1) if work.chooses_strength else (0.0, 0)
            parts["moments"] += held * parts["moments"] + 2 * (1 + held) * weights * calibration.tokens / rates.moments
            parts["fit"] = (1 + chosen) * factors / rates.factor + (2 + 4 * chosen) * solved / rates.product
        if cuda:
            moved = float(weights * decoder.stored_dtype.itemsize)
            parts["solve"] += moved / rates.upload + moved / rates.download
        for part in ("factorise", "solve"):
            if part in parts:
                parts[part] *= work.solvings
        if work.trials < work.solvings:  # trials alone write nothing
            parts["write"] = stored * (1 + getattr(method, "bits", 0) / 16) / rates.write
            parts["write"] += joining_seconds(decoder, index, rates)
        if work.trials:
            # ΔW S for every language and trial.
            parts["try"] = work.trials * work.languages * 2 * solved / rates.product
        if work.routed is not None:
            # The dense block is read once more; after the last one nothing is kept.
            parts["read"] *= 2
            ways = 2 if index < decoder.blocks - 1 else 1
            counting = forward_seconds(decoder, index, work.routed, rates)
            parts["route"] = counting + _moving(decoder, [work.routed], rates, tier, cuda, ways) + placed
        if work.per_language:
            parts["measure"] = 2 * forwards[calibration] + placed
    following = work.batches if index < decoder.blocks - 1 else work.evaluation
    moving = _moving(decoder, following, rates, tier, cuda, 2)
    parts["propagate"] = sum(forwards[one] for one in following) + moving + placed
    return parts


def _largest_hand(work: PlannedWork, index: int, replicas: int) -> float:
    """Compute the share of a block's solving that the busiest replica has."""
    shapes = work.decoder.linears(index)
    costs = [
        columns**3 / 3 + sum(shapes[name][0] for name in names) * columns**2
        for columns, names in inputs_of(work.decoder, index)
    ]
    hands = assign_longest_first(costs, replicas)
    loads = [sum(cost for cost, hand in zip(costs, hands, strict=True) if hand == one) for one in range(replicas)]
    return max(loads) / sum(costs)


def _uploaded(size: float, rates: Rates, cuda: bool) -> float:
    """Estimate the seconds from plain host memory to the device."""
    return size / rates.upload if cuda else 0.0


def _moving(decoder: Decoder, batches: Iterable[TokenBatches], rates: Rates, tier: str, cuda: bool, ways: int) -> float:
    """Estimate the seconds of activations to and from their tier; 0 if that is the memory that computes."""
    if tier == "none" or (tier == "host" and not cuda):
        return 0.0
    size = sum(hidden_bytes(decoder, one, one.segments) for one in batches)
    return ways * size / (rates.nvme if tier == "nvme" else rates.link)
