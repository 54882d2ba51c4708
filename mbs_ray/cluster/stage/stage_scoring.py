"""Scoring of the evaluation segments by the last stage at the end of a run: the nll of every token."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.stage.stage_run import StageRun, token_ids_of
from mbs_ray.evaluation.scoring import score
from mbs_ray.evaluation.token_scores import write_token_scores
from mbs_ray.text.segment_file import SegmentSet

_HOST = torch.device("cpu")


def score_evaluation(run: StageRun) -> None:
    """Score all evaluation sets from the output of the last block; the first replica writes the token scores."""
    job, decoder, store = run.job, run.decoder, run.store
    end = decoder.blocks
    evaluating = list(job.by_file(job.evaluation, run.place.replica))
    together = [microbatch for _, microbatches in evaluating for microbatch in microbatches]
    for microbatch in run.follow(end, "evaluate", together):
        hidden = run.get(microbatch, end)
        store.put(microbatch.index, end + 1, decoder.finish(hidden))
    pairs = _Finished(store, end + 1, [(one.index, token_ids_of(one)) for one in together])
    # All files at once, or the head would be read again for each.
    scored = iter(score(decoder, pairs) if together else [])
    for file, microbatches in evaluating:
        segments = SegmentSet.open(file.path)
        nll = torch.zeros(len(segments), segments.sequence_length - 1)
        is_argmax = torch.zeros_like(nll) if file.requests else None
        for microbatch in microbatches:
            rows = slice(microbatch.start, microbatch.stop)
            nll[rows], likeliest = next(scored)
            if is_argmax is not None:
                is_argmax[rows] = likeliest.float()
        run.agree(end)
        run.replicas.add_up(nll)
        if is_argmax is not None:
            run.replicas.add_up(is_argmax)
        if run.writes:
            kept = None if is_argmax is None else is_argmax.bool()
            write_token_scores(job.scores_file(file.name), segments, nll, kept)


@dataclass(frozen=True)
class _Finished:
    """The microbatches to be scored; every pass over them asks the store again, so that none is held."""

    store: ActivationStore
    block: int
    token_ids: list[tuple[int, torch.Tensor]]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, token_ids in self.token_ids:
            yield self.store.get(index, self.block, _HOST), token_ids
