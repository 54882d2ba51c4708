"""Dense statistics of a sweep: which moments its runs need, which of them lie on disk, and what collects the others."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mbs_ray.cluster.resources import Resources
from mbs_ray.compression.stored_moments import Source, Target, block_moment_bytes
from mbs_ray.errors import InputError
from mbs_ray.files import digest
from mbs_ray.languages.facts import table_order
from mbs_ray.methods import Statistic
from mbs_ray.model.block_files import block_file
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import finished_result, forward_fields
from mbs_ray.run.sweep_folders import SweepFolders, is_listed
from mbs_ray.text.segment_request import SegmentRequest

FORMAT = 3  # raise it with any change that gives other moments for the same text


@dataclass(frozen=True)
class Pool:
    """Runs that take their moments from the same text of each language, through the same model and forward.

    ``request`` asks for all their languages. A language's text, and its moments, do not depend on the others.
    """

    runs: tuple[PreparedRun, ...]
    request: SegmentRequest

    @cached_property
    def languages(self) -> dict[str, SegmentRequest]:
        """Request for the text of each language, in table order."""
        return {language: self.request.for_language(language) for language in table_order(self.request.languages)}

    @property
    def tokens(self) -> int:
        """Tokens of one language."""
        assert self.request.allocation is not None
        return next(iter(self.request.allocation.values())) * self.request.sequence_length

    @property
    def label(self) -> str:
        """Name of the pool's job; its last digits distinguish pools of other text or another forward."""
        run = self.runs[0]
        texts = [one.fingerprint for one in self.languages.values()]
        apart = digest(run.model.fingerprint, run.spec.compute_dtype, str(run.microbatch), *texts)
        return f"statistics-{run.model.name}-seed{self.request.seed}-{apart[:6]}"


def pools(runs: Sequence[PreparedRun]) -> list[Pool]:
    """Group the runs that need dense moments by what these depend on besides the language."""
    found: dict[str, list[PreparedRun]] = {}
    for run in runs:
        if run.weights is not None and (run.spec.method.statistic is not Statistic.NONE or run.spec.per_language):
            text = {**run.calibration.plain(), "languages": None, "allocation": None}
            size = run.spec.statistics and run.spec.statistics.segments_per_language
            same = [run.model.fingerprint, text, size, run.spec.compute_dtype, run.microbatch]
            found.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    return [Pool(tuple(own), _joint(own)) for own in found.values()]


def _joint(runs: Sequence[PreparedRun]) -> SegmentRequest:
    allocation = {code: count for run in runs for code, count in (run.calibration.allocation or {}).items()}
    return replace(runs[0].calibration, languages=table_order(allocation), allocation=allocation)


@dataclass(frozen=True)
class PoolMoments:
    """The moments of a pool on disk; ``forward`` holds all of machine and arithmetic that can change a bit of them."""

    pool: Pool
    folders: SweepFolders
    forward: Mapping[str, Any]

    def targets(self, runs: Iterable[PreparedRun]) -> list[Target]:
        """Return the moments, missing in whole or in part, without which these runs of the pool cannot be solved."""
        found: dict[Path, Target] = {}
        for run in runs:
            own, measured = self._of_method(run), self._measured(run)
            found |= {target.folder: target for target, _, _ in [*own, *measured]}
        return [one for one in found.values() if not self._whole(one)]

    def sources(self, run: PreparedRun) -> tuple[Source, ...]:
        """Return the stored moments, with coefficients, that the run's moments are the sum of."""
        return tuple(Source(target.folder, one, code) for target, one, code in self._of_method(run))

    def measured(self, run: PreparedRun) -> tuple[Source, ...]:
        """Return the moments that measure how much each language loses; none where that is not asked for."""
        return tuple(Source(target.folder, one, code) for target, one, code in self._measured(run))

    def missing_bytes(self, targets: Iterable[Target]) -> int:
        """Bound the bytes of the files that are still to be written."""
        decoder = self.pool.runs[0].model.decoder
        return sum(
            block_moment_bytes(decoder.linears(index).values(), one.statistic)
            for one in targets
            for index in range(decoder.blocks)
            if not one.holds(index)
        )

    def _of_method(self, run: PreparedRun) -> list[tuple[Target, float, str]]:
        """List (target, coefficient, language) of the moments the method needs; no language for those of a sampling."""
        statistic = run.spec.method.statistic
        if statistic is Statistic.NONE:
            return []
        if self._apart(run, statistic):
            return [(self._language(code, statistic), one, code) for code, one in coefficients(run).items()]
        return [(self._sampling(run, statistic), 1.0, "")]

    def _measured(self, run: PreparedRun) -> list[tuple[Target, float, str]]:
        # Trials mix, and measure by, the moments of single languages.
        asked = coefficients(run) if run.spec.per_language or run.adaptive else ()
        return [(self._language(code, Statistic.FULL), 1.0, code) for code in asked]

    def _apart(self, run: PreparedRun, statistic: Statistic) -> bool:
        """Decide whether a run's moments are stored by language, as its statistics say.

        With ``auto``: where trials or measurements need it, all are stored so already, or sums would not be fewer.
        """
        assert run.spec.statistics is not None
        if run.spec.statistics.stored != "auto":
            return run.spec.statistics.stored == "languages"
        if any(one.spec.per_language or one.adaptive for one in self.pool.runs):
            return True
        if all(self._whole(self._language(code, statistic)) for code in coefficients(run)):
            return True
        alike = [one for one in self.pool.runs if one.spec.method.statistic is statistic]
        languages = {code for one in alike for code in coefficients(one)}
        return len({self._sampling(one, statistic).folder for one in alike}) >= len(languages)

    def _language(self, language: str, statistic: Statistic) -> Target:
        return Target(self.folders.statistics(self._key(language, statistic)), statistic, {language: 1.0})

    def _sampling(self, run: PreparedRun, statistic: Statistic) -> Target:
        own = coefficients(run)
        if list(own.values()) == [1.0]:
            return self._language(next(iter(own)), statistic)
        parts = [f"{self._key(code, statistic)} {one!r}" for code, one in own.items()]
        return Target(self.folders.statistics(digest("sum", *parts)), statistic, own)

    def _key(self, language: str, statistic: Statistic) -> str:
        model, text = self.pool.runs[0].model.fingerprint, self.pool.languages[language].fingerprint
        forward = json.dumps(self.forward, sort_keys=True)
        return digest(str(FORMAT), model, text, statistic.value, forward)

    def _whole(self, target: Target) -> bool:
        return all(target.holds(index) for index in range(self.pool.runs[0].model.decoder.blocks))


def coefficients(run: PreparedRun) -> dict[str, float]:
    """Return the factor of each language's moments with which a run sees as many tokens as its pool has.

    The pool has equally many tokens of each of its n languages, so a factor is n times the weight.
    """
    assert run.weights is not None
    return {code: float(weight * len(run.weights)) for code, weight in run.weights.items()}


def pool_moments(pool: Pool, folders: SweepFolders, resources: Resources) -> PoolMoments:
    """Describe the moments of a pool as these resources would compute them."""
    forward = forward_fields(pool.runs[0], resources.numerics)
    return PoolMoments(pool, folders, {**forward, "replicas": resources.layout.replicas})


def is_unsolved(folders: SweepFolders, run: PreparedRun) -> bool:
    """Check whether a run is not finished and lacks some of its blocks."""
    if finished_result(folders, run) is not None:
        return False
    blocks = folders.run(run.label).blocks
    return not all(is_listed(blocks / block_file(index), folders.out) for index in range(run.model.decoder.blocks))


def refuse_moments_without_room(runs: Sequence[PreparedRun], folders: SweepFolders, resources: Resources) -> None:
    """Raise :class:`InputError` where the moments that are to be collected for these runs do not fit on the disk."""
    needed = 0
    for pool in pools(runs):
        moments = pool_moments(pool, folders, resources)
        needed += moments.missing_bytes(moments.targets(run for run in pool.runs if is_unsolved(folders, run)))
    refuse_full_disk(folders.all_statistics, needed)


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise :class:`InputError` where moments of ``needed`` bytes do not fit on the disk of ``folder``."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"statistics: second moments need up to {needed / 2**30:.2f} GiB in {folder}, {free / 2**30:.2f} GiB are "
            "free; remove what old sweeps left there, take fewer samplings at once, or propagated statistics"
        )
