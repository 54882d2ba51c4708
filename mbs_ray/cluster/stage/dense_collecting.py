"""Collecting the second moments of a dense block, language by language, into files."""

from collections.abc import Sequence
from itertools import islice

import torch

from mbs_ray.cluster.activations.host_memory import host_memory, return_freed_memory
from mbs_ray.cluster.job import Collect
from mbs_ray.cluster.stage.block_reader import StageBlock
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.collect import Collected, collecting
from mbs_ray.compression.solve import check_called
from mbs_ray.compression.stored_moments import MomentSum, Target, block_moment_bytes
from mbs_ray.errors import InputError
from mbs_ray.methods import Statistic
from mbs_ray.model.block_files import block_file
from mbs_ray.model.decoder import Decoder


def collect_pool(run: StageRun, work: Collect, block: StageBlock) -> None:
    """Collect the moments of a dense block that targets lack, and in the same forward the input of the next block.

    The device holds the moments of one language. Replicas sum theirs at the first one, which writes. Raises
    :class:`InputError` where host memory has no room for the sums, or a replica's tokens miss a linear.
    """
    job, decoder, replicas, timeline, index = run.job, run.decoder, run.replicas, run.timeline, block.index
    # Only the first replica looks: what others have once not found on a shared folder may stay hidden from them.
    there = [run.agree(index, not run.writes or target.holds(index)) for target in work.targets]
    targets = BlockTargets([one for one, held in zip(work.targets, there, strict=True) if not held], index)
    if run.writes:
        targets.check_host_memory(decoder, host_memory().budget // run.process.sharing)
    linears = list(decoder.linears(index))
    last = index == job.blocks[-1][-1]
    # Nothing follows the last block: what is not collected there need not go through it.
    texts = [text for text in work.pool if not last or targets.statistics(text.name)]
    pooled = list(job.by_file(texts, replicas.rank))
    following = run.follow(index, "collect", [one for _, own in pooled for one in own])
    module = decoder.load_block(index, block.tensors)
    for text, own in pooled:
        statistics = targets.statistics(text.name)
        with timeline.part(job.key, index, "collect"), collecting(module, statistics) as seen:
            for microbatch in islice(following, len(own)):
                hidden = decoder.run_block(module, index, run.get(microbatch, index))
                if not last:
                    run.pass_on(microbatch, index, hidden)
        for statistic in statistics:
            collected = seen.pop(0)
            if replicas.size > 1:
                check_called(linears, collected.inputs(), statistic, f"block {index}, language {text.name}:")
                run.agree(index)
                with timeline.part(job.key, index, "reduce"):
                    collected = replicas.gather(collected, dict.fromkeys(linears, 0))
            if run.writes:
                with timeline.part(job.key, index, "write"):
                    targets.add(text.name, statistic, collected)
            del collected
    return_freed_memory()


class BlockTargets:
    """The targets that one block still lacks; a sum lives in host memory from its first language to its last."""

    def __init__(self, targets: Sequence[Target], index: int) -> None:
        self._index = index
        self._open = {target: set(target.coefficients) for target in targets}
        self._sums: dict[Target, MomentSum] = {}

    def statistics(self, language: str) -> list[Statistic]:
        """Return the statistics that targets still want of a language."""
        return list(dict.fromkeys(one.statistic for one, left in self._open.items() if language in left))

    def check_host_memory(self, decoder: Decoder, free: int) -> None:
        """Raise :class:`InputError` where the sums, and one language's moments, need more than these bytes."""
        shapes = decoder.linears(self._index).values()
        held = [block_moment_bytes(shapes, one.statistic) for one in self._open if len(one.coefficients) > 1]
        needed = sum(held) + max((block_moment_bytes(shapes, one.statistic) for one in self._open), default=0)
        if needed > free:
            raise InputError(
                f"statistics.stored: sums of {len(held)} samplings in block {self._index} need "
                f"{needed / 2**30:.2f} GiB of host memory, {free / 2**30:.2f} GiB are free; take stored: languages, "
                "or fewer samplings at once"
            )

    def add(self, language: str, statistic: Statistic, collected: Collected) -> None:
        """Add the complete moments of a language; a target that has its last language is written."""
        for target, left in list(self._open.items()):
            if target.statistic is not statistic or language not in left:
                continue
            total = self._sums.setdefault(target, MomentSum(torch.device("cpu")))
            total.add(collected, target.coefficients[language])
            left.remove(language)
            if not left:
                total.write(target.folder / block_file(self._index))
                del self._open[target], self._sums[target]
