"""The table of the report page that compares runs at equal size."""

from collections.abc import Sequence
from itertools import groupby

from mbs_ray.report.page_tables import Cell, overall
from mbs_ray.report.run_results import RunResults


def sizes(runs: Sequence[RunResults]) -> list[tuple[str, list[tuple[RunResults, list[Cell]]]]]:
    """List the finished runs of each model whose size is known, the smallest first.

    The cells are bits per weight as stored, with a bitmask, and the smaller of both; mean and worst increase.
    """
    known = [run for run in runs if run.size is not None and run.metrics is not None]
    return [
        (model, sorted(((run, _cells(run)) for run in own), key=lambda one: (one[1][2].value, one[0].facts.label)))
        for model, own in groupby(known, key=lambda run: run.facts.model)
    ]


def _cells(run: RunResults) -> list[Cell]:
    assert run.size is not None
    bits = (run.size.stored, run.size.bitmask, run.size.least)
    mean, worst, _ = overall(run)
    return [*(Cell(None) if one is None else Cell(one, f"{one:.2f}") for one in bits), mean, worst]
