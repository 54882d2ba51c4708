"""Makes the checkpoint of a finished run: of its block files, its card, and the tensors that no method touches."""

from pathlib import Path

from mbs_ray.model.assemble import assemble
from mbs_ray.model.block_files import block_file, write_outside
from mbs_ray.run.card import DENSE_FORMAT, CardFacts, model_card
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.sweep_folders import SweepFolders


def assemble_run(folders: SweepFolders, run: PreparedRun, card: CardFacts) -> Path:
    """Complete the block files of a run to a checkpoint in its directory, and return its folder.

    The untouched tensors are shared by all runs of the model under ``--out``.
    """
    directory, model = folders.run(run.label), run.model
    outside = write_outside(model.checkpoint, model.decoder, folders.outside(model.fingerprint))
    shards = [outside, *(directory.blocks / block_file(index) for index in range(model.decoder.blocks))]
    return assemble(model.checkpoint, shards, directory.checkpoint, model_card(card, DENSE_FORMAT))
