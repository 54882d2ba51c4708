"""A checkpoint, and the stages that score it."""

from dataclasses import dataclass
from pathlib import Path

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.cluster.job import Job, JobText, Score
from mbs_ray.cluster.resources import settle_resources
from mbs_ray.cluster.sharding import block_costs, head_cost, shard_blocks
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.methods import Statistic
from mbs_ray.run.prepare import Model
from mbs_ray.run.sweep_folders import EVALUATED


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


def open_scorer(
    name: str,
    model: Model,
    *,
    compute_dtype: str,
    cluster: ClusterOptions,
    microbatches: int,
    pool: StagePool,
    out: Path,
    progress: Progress,
) -> CheckpointScorer:
    """Settle what the connected Ray has for a checkpoint, of ``microbatches`` that replicas can share.

    Actors are started with the first job, or taken over from the ``pool``, whose last ones may have the same layout.
    Raises :class:`InputError` where there is no room for an actor.
    """
    resources = settle_resources(cluster, runs=1, blocks=model.decoder.blocks, microbatches=microbatches)
    driver = StageDriver(resources.shrunk_to_cluster(progress.say), pool, cluster.tiers, progress)
    dtype = resources.numerics.compute_dtype(compute_dtype, model.decoder.stored_dtype)
    return CheckpointScorer(name, model, dtype, driver, out / EVALUATED, progress)
