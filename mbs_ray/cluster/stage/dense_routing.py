"""Counting the tokens that the dense model sends to each expert, on the text's way through it."""

from mbs_ray.cluster.job import Route
from mbs_ray.cluster.stage.block_reader import StageBlock
from mbs_ray.cluster.stage.stage_run import StageRun
from mbs_ray.compression.block_report import write_block_report
from mbs_ray.compression.routing import mixture_reports
from mbs_ray.model.routes import Routes


def count_routes(run: StageRun, work: Route, block: StageBlock) -> None:
    """Report the tokens of each language and expert of a dense block; compute the input of the next one.

    A job that goes on counts again what was counted: the text has to go through all blocks anyway.
    """
    decoder, index = run.decoder, block.index
    module = decoder.load_block(index, block.tensors)
    routes = Routes(module, list(dict.fromkeys(work.calibration.languages)))
    with run.timed(block.report, "propagate"), routes.counting(module):
        for microbatch in run.follow(index, "propagate", run.microbatches_of(work.calibration)):
            routes.begin(microbatch.languages)
            hidden = decoder.run_block(module, index, run.get(microbatch, index))
            if index != run.job.blocks[-1][-1]:
                run.pass_on(microbatch, index, hidden)
    run.agree(index)
    block.report.mixtures = mixture_reports(routes, {}, run.replicas.total)
    if run.writes:
        write_block_report(run.job.blocks_folder, block.report)
