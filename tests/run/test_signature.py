"""The signature of a run: what it says, and what it leaves out so that runs of earlier versions go on."""

from pathlib import Path

from mbs_ray.run.numerics import Numerics
from mbs_ray.run.signature import signature
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.sweeps import prepared_runs


def test_refining_is_signed_where_there_is_any(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    run = {"model": str(bloom), "corpus": str(corpus), "languages": ["en"], "segments": 2, "sequence_length": 8}
    methods = [{"name": "gptq"}, {"name": "gptq", "refine": 2}, {"name": "wanda"}]
    sweep = validated(SweepSpec, {"name": "signed", "run": {**run, "sampling": "equal"}, "grid": {"method": methods}})
    signed = [signature(one, Numerics("cpu", 1), 1)["method"] for one in prepared_runs(sweep, tmp_path)]
    assert [one.get("refine") for one in signed] == [None, 2, None]
    assert signed[1] == {**signed[0], "refine": 2}


def test_fitting_is_signed_where_there_is_any(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    run = {"model": str(bloom), "corpus": str(corpus), "languages": ["en"], "segments": 16, "sequence_length": 8}
    grid = {"method": ["wanda"], "fit_to": ["propagated", "dense"]}
    sweep = validated(SweepSpec, {"name": "signed", "run": {**run, "sampling": "equal"}, "grid": grid})
    plain, fitted = (signature(one, Numerics("cpu", 1), 1) for one in prepared_runs(sweep, tmp_path))
    assert fitted == {**plain, "fit_to": {"mode": "dense", "strength": "auto"}}
    assert "fit_to" not in plain
