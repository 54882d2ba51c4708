"""Converts a finished run into a checkpoint of another form: ``mbs export``. Needs nothing but the run directory."""

from pathlib import Path

import torch

from mbs_ray.errors import InputError
from mbs_ray.methods import Amounts
from mbs_ray.model.assemble import assemble, assemble_packed
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import IntegerScheme, Schemes
from mbs_ray.model.readers import READERS, TRANSFORMERS
from mbs_ray.run.card import DENSE_FORMAT, PACKED_FORMAT, CardFacts, model_card
from mbs_ray.run.directory import RunDirectory

FORMATS = (PACKED_FORMAT, DENSE_FORMAT)


def export_run(folder: Path, form: str, to: Path | None, reader: str = TRANSFORMERS) -> Path:
    """Write the checkpoint of a run in a form of :data:`FORMATS`; return its folder.

    By default that is ``<run>/export/<form>``, for another reader than transformers ``<form>-<reader>``; an earlier
    export there is replaced. Raises :class:`InputError` naming what is wrong: another form or reader, a folder that
    holds no finished run, a method that gives no integers or none that the reader reads, a target that is in use.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form}: there are {', '.join(FORMATS)}")
    if reader not in READERS:
        raise InputError(f"--reader {reader}: there are {', '.join(READERS)}")
    run = RunDirectory(folder.resolve())
    card = run.finished()
    own = form if reader == TRANSFORMERS or form == DENSE_FORMAT else f"{form}-{reader}"
    target = to.resolve() if to is not None else run.exports / own
    if to is not None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"--to {to}: is there already; give a folder that is new or empty")
    scheme = IntegerScheme.of(card.method)
    if form == PACKED_FORMAT and scheme is None:
        raise InputError(
            f"--format {form}: {run.path.name} was pruned by {card.method['name']} and has no integers to pack; "
            f"its form is plain {DENSE_FORMAT} (--format {DENSE_FORMAT})"
        )
    checkpoint = Checkpoint(run.checkpoint)
    text = model_card(card, form, reader)
    try:
        if form == PACKED_FORMAT and scheme is not None:
            schemes = Schemes(scheme, _widths(card))
            return assemble_packed(Decoder(checkpoint, torch.float32), run.packed, schemes, target, text, reader)
        return assemble(checkpoint, checkpoint.files, target, text)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error


def _widths(card: CardFacts) -> dict[int, dict[str, int]] | None:
    """Return the bits of every linear, by block, where they were dealt out."""
    amounts = None if card.budget is None else Amounts.from_plain(card.budget["amounts"])
    if amounts is None or amounts.field != "bits":
        return None
    return {block: {name: int(bits) for name, bits in own.items()} for block, own in amounts.of_block.items()}
