"""The signature of a run: what it says, and what it leaves out so that runs of earlier versions go on."""

from pathlib import Path

import pytest

from mbs_ray.plan.hardware import Hardware, Node, this_machine
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.signature import signature
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.models import write_bloom
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
    numerics = Numerics("cpu", 1, kernel="C++ and AMX")
    plain, fitted = (signature(one, numerics, 1) for one in prepared_runs(sweep, tmp_path))
    # It needs full moments, which a kernel sums.
    assert fitted == {**plain, "fit_to": {"mode": "dense", "strength": "auto"}, "kernel": "C++ and AMX"}
    assert not {"fit_to", "kernel"} & set(plain)


def test_what_solves_linears_is_signed_where_the_method_solves_columns_and_on_gpus_some_are_wide(
    bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    wide = write_bloom(tmp_path / "wide", layers=1, hidden=256)  # and 1,024 columns between its halves
    run = {"corpus": str(corpus), "languages": ["en"], "segments": 2, "sequence_length": 8, "sampling": "equal"}
    grid = {"model": [str(bloom), str(wide)], "method": ["gptq", "wanda"]}
    sweep = validated(SweepSpec, {"name": "signed", "run": run, "grid": grid})
    runs = prepared_runs(sweep, tmp_path)
    for device, models in (("cpu", [bloom.name, "wide"]), ("cuda", ["wide"])):
        signed = [one for one in runs if "kernel" in signature(one, Numerics(device, 1, kernel="any"), 1)]
        assert [(one.model.name, one.spec.method.name) for one in signed] == [(name, "gptq") for name in models]


def test_what_solves_linears_is_asked_of_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_machine().cpu_kernel in ("C++ and AMX", "C++", "torch")
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert this_machine().cpu_kernel == "torch"
    monkeypatch.setenv("CXX", "no 'command")
    assert this_machine().cpu_kernel == "torch"
    one = Node(0, 0, 1, cpu_kernel="torch", gpu_kernel="torch")  # with a GPU that Ray does not count
    other = Node(1, 1, 1, cpu_kernel="C++", gpu_kernel="Triton")
    assert Hardware((one, other, one)).kernels("cpu") == "C++, torch"
    assert Hardware((one, other)).kernels("cuda") == "Triton"
