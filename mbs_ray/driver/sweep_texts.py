"""Draws the texts of a sweep, each once, and refuses evaluation text that shares documents with calibration text."""

from collections.abc import Mapping, Sequence

from mbs_ray.driver.pools import Pool, pools
from mbs_ray.driver.progress import Progress
from mbs_ray.evaluation.text_warnings import text_warnings
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.text.overlap import refuse_overlap
from mbs_ray.text.segment_draw import draw_per_language, draw_segments
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.segment_request import SegmentRequest


def draw_texts(runs: Sequence[PreparedRun], folders: SweepFolders, progress: Progress) -> dict[str, SegmentSet]:
    """Every distinct set of segments once, by the fingerprint of its request; of a pool one per language."""
    texts: dict[str, tuple[str, SegmentRequest]] = {}
    for run in runs:
        for name, text in run.evaluation.items():
            texts.setdefault(text.fingerprint, (f"evaluation text {name}", text))
        if run.weights is None:
            what = f"calibration text {run.spec.sampling.label}, seed {run.spec.seed}"
            texts.setdefault(run.calibration.fingerprint, (what, run.calibration))
    drawn: dict[str, SegmentSet] = {}
    own_pools = pools(runs)
    for pool in own_pools:
        progress.work(f"drawing text of {len(pool.languages)} languages for {pool.label}", 0, 1)
        apart = draw_per_language(pool.request, folders.segments)
        drawn |= {pool.languages[language].fingerprint: one for language, one in apart.items()}
    for done, (key, (what, text)) in enumerate(texts.items()):
        progress.work(f"drawing {what}", done, len(texts))
        drawn[key] = draw_segments(text, folders.segments)
    progress.work("drawing text", len(texts), len(texts))
    for warning in text_warnings(one.facts for one in drawn.values()):
        progress.say(warning)
    _refuse_overlaps(runs, own_pools, drawn)
    return drawn


def _refuse_overlaps(runs: Sequence[PreparedRun], own_pools: Sequence[Pool], drawn: Mapping[str, SegmentSet]) -> None:
    """Raise :class:`InputError` where an evaluation set shares documents with a calibration set it is scored after."""
    calibrations = [(run, [run.calibration]) for run in runs if run.weights is None]
    calibrations += [(run, [*pool.languages.values()]) for pool in own_pools for run in pool.runs]
    pairs = {
        (name, text.fingerprint, one.fingerprint)
        for run, texts in calibrations
        for one in texts
        for name, text in run.evaluation.items()
    }
    for name, evaluation, calibration in sorted(pairs):
        refuse_overlap(name, drawn[evaluation], drawn[calibration])
