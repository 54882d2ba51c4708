"""A checkpoint, and the stages that score it."""

from dataclasses import dataclass
from pathlib import Path

from mbs_ray.cluster.job import Job, JobText, Score
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.methods import Statistic
from mbs_ray.run.prepare import Model


@dataclass(frozen=True)
class CheckpointScorer:
    """A checkpoint and the stages that score it.

    ``name`` is the folder or hub id asked for; scores are written to ``folder``.
    """

    name: str
    model: Model
    compute_dtype: str
    driver: StageDriver
    folder: Path
    progress: Progress

    def job(self, texts: tuple[JobText, ...], *, tokens: int, microbatch: int, directory: Path) -> Job:
        """Make the job that scores these texts, which have ``tokens`` tokens in all."""
        layout, decoder = self.driver.resources.layout, self.model.decoder
        costs, head = block_costs(decoder, Statistic.NONE, 0, tokens), head_cost(decoder, tokens)
        return Job(
            key=self.model.name,
            model=self.model.checkpoint.folder,
            compute_dtype=self.compute_dtype,
            microbatch=microbatch,
            directory=directory,
            blocks=tuple(shard_blocks(costs, head, layout.stages)),
            work=Score(),
            evaluation=texts,
            replicas=layout.replicas,
        )
