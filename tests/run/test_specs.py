"""Sweep files: what is read from them, and one clear line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, SparseGPT
from mbs_ray.run.spec import RunSpec
from mbs_ray.run.sweep_spec import SweepSpec, load_sweep, validated

BASE = {
    "name": "grid",
    "model": "bigscience/bloom-560m",
    "corpus": "corpus",
    "languages": ["en", "sw"],
    "segments": 16,
    "sequence_length": 128,
    "evaluation": {"validation": {"corpus": "held-out"}},
    "grid": {
        "method": [{"name": "sparsegpt", "sparsity": 0.5}, {"name": "gptq", "bits": 3}],
        "sampling": [{"name": "monolingual", "language": "en"}, "proportional"],
        "seed": [0, 1],
    },
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_a_grid_is_all_combinations_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path))
    runs = sweep.runs()
    assert sweep.labels(runs) == [
        "sparsegpt-50-monolingual-en-seed0",
        "sparsegpt-50-monolingual-en-seed1",
        "sparsegpt-50-proportional-seed0",
        "sparsegpt-50-proportional-seed1",
        "gptq-3bit-monolingual-en-seed0",
        "gptq-3bit-monolingual-en-seed1",
        "gptq-3bit-proportional-seed0",
        "gptq-3bit-proportional-seed1",
    ]
    assert sweep.columns(runs)[:2] == [("sparsegpt-50", "monolingual-en")] * 2
    assert runs[0].method == SparseGPT(sparsity=0.5) and runs[-1].method == GPTQ(bits=3)
    assert runs[0].segments == 16 and runs[0].evaluation["validation"].segments == 64


def test_relative_folders_are_relative_to_the_file_and_hub_ids_stay(tmp_path: Path) -> None:
    run = load_sweep(write(tmp_path)).runs()[0]
    assert run.corpus == str(tmp_path / "corpus")
    assert run.evaluation["validation"].corpus == str(tmp_path / "held-out")
    assert run.model == "bigscience/bloom-560m"
    (tmp_path / "own-model").mkdir()
    grid = {"model": ["own-model", "bigscience/bloom-1b1"], "method": ["wanda"], "sampling": ["equal"]}
    content = {key: value for key, value in BASE.items() if key != "model"}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({**content, "grid": grid}))
    sweep = load_sweep(tmp_path / "models.yaml")
    assert [run.model for run in sweep.runs()] == [str(tmp_path / "own-model"), "bigscience/bloom-1b1"]
    assert sweep.labels(sweep.runs()) == ["own-model-wanda-50-equal", "bloom-1b1-wanda-50-equal"]


def test_a_spec_round_trips_through_plain_values(tmp_path: Path) -> None:
    for run in load_sweep(write(tmp_path)).runs():
        assert validated(RunSpec, run.model_dump(mode="json")) == run


def test_statistics_are_propagated_unless_said_and_are_told_apart_in_labels(tmp_path: Path) -> None:
    statistics = ["propagated", "dense", {"mode": "dense", "segments_per_language": 4, "weights": "allocation"}]
    grid = {"method": ["wanda"], "sampling": ["equal"], "statistics": statistics}
    sweep = load_sweep(write(tmp_path, grid=grid))
    propagated, dense, _ = runs = sweep.runs()
    assert propagated == load_sweep(write(tmp_path, grid={**grid, "statistics": ["propagated"]})).runs()[0]
    assert propagated.statistics is None and dense.statistics is not None
    assert (dense.statistics.segments_per_language, dense.statistics.weights) == (16, "shares")
    ends = ["propagated", "dense", "dense-4-allocation"]
    assert sweep.labels(runs) == [f"wanda-50-equal-{end}" for end in ends]
    assert sweep.columns(runs) == [("wanda-50", f"equal-{end}") for end in ends]
    assert all(validated(RunSpec, run.model_dump(mode="json")) == run for run in runs)
    assert propagated.model_dump(mode="json")["statistics"] == "propagated"


def test_what_runs_are_fitted_to_is_told_apart_in_labels(tmp_path: Path) -> None:
    fits = ["propagated", "dense", {"strength": 0.25}]
    sweep = load_sweep(write(tmp_path, grid={"method": ["wanda"], "sampling": ["equal"], "fit_to": fits}))
    runs = sweep.runs()
    assert [run.fit_to and run.fit_to.strength for run in runs] == [None, "auto", 0.25]
    assert sweep.labels(runs) == [f"wanda-50-equal-fit-{end}" for end in ("propagated", "dense", "dense-0.25")]
    assert all(validated(RunSpec, run.model_dump(mode="json")) == run for run in runs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmnets": 3}, "sweep.yaml: segmnets: no such field; there are .*segments"),
        ({"segments": 0}, "segments: Input should be greater than 0"),
        ({"sequence_length": 1}, "sequence_length: Input should be greater than or equal to 2"),
        ({"seed": -1, "grid": {"method": ["rtn"], "sampling": ["equal"]}}, "seed: .*greater than or equal to 0"),
        ({"compute_dtype": "float8"}, "compute_dtype: Input should be"),
        ({"evaluation": {"v": {"corpus": "x", "segment": 3}}}, "evaluation.v.segment: no such field"),
        ({"evaluation": {"../v": {"corpus": "x"}}}, "evaluation: .*a name has letters"),
        ({"evaluation": {"increase": {"corpus": "x"}}}, "evaluation: .*'increase': metrics are named like that"),
        ({"name": "../../etc"}, "name: .*a name has letters"),
        ({"name": ""}, "name: .*a name has letters"),
        ({"grid": {"method": [{"name": "gptq", "bits": 1}], "sampling": ["equal"]}}, "method: .*bits"),
        ({"grid": {"method": [{"name": "wandaa"}], "sampling": ["equal"]}}, "method: .*unknown name 'wandaa'.*wanda"),
        ({"grid": {"method": [{"name": "gptq", "bit": 3}], "sampling": ["equal"]}}, "gptq has no field 'bit'.*bits"),
        ({"grid": {"method": ["rtn"], "sampling": ["fair"]}}, "sampling: unknown sampling 'fair'.*proportional"),
        ({"grid": {"methods": ["rtn"]}}, "grid.methods: no field of a run"),
        ({"grid": {"method": [], "sampling": ["equal"]}}, "grid.method: no values"),
        ({"grid": {"method": ["rtn", "rtn"], "sampling": ["equal"]}}, "two runs would both be named rtn"),
        ({"layout": {"stages": 0}}, r"layout\.stages.*: Input should be greater than 0"),
        ({"layout": {"stage": 2}}, r"layout\.stage: "),
        ({"layout": "wide"}, "layout: "),
        ({"stages": 2}, "stages: no such field; there are .*layout"),
        ({"grid": {"method": ["rtn"]}}, "sampling: Field required"),
        ({"statistics": "sparse"}, "statistics: .*unknown statistics 'sparse'; there are propagated and dense"),
        ({"statistics": {"segments_per_language": 0}}, r"statistics\.segments_per_language: .*greater than 0"),
        ({"statistics": {"weight": "shares"}}, r"statistics\.weight: no such field"),
        ({"statistics": {"mode": "propagated", "weights": "shares"}}, "statistics: .*propagated .*no field 'weights'"),
        ({"statistics": "dense", "true_sequential": True}, "true_sequential: .*dense statistics see no linear"),
        ({"fit_to": "sparse"}, "fit_to: .*unknown fit_to 'sparse'; there are propagated and dense"),
        ({"fit_to": {"strength": 0}}, r"fit_to\.strength: is 0; give auto, or a number above 0"),
        ({"fit_to": {"strength": True}}, r"fit_to\.strength: is True; give auto"),
        ({"fit_to": "dense", "segments": 15}, "fit_to: strength: auto .*needs 16; give a strength"),
        ({"fit_to": "dense", "per_language": True}, "per_language: would count what fit_to changes"),
        ({"fit_to": {"strengths": 0.5}}, r"fit_to\.strengths: no such field"),
        ({"fit_to": "dense", "statistics": "dense"}, "fit_to: .*dense statistics see no inputs after compressed"),
        ({"offload": "disk"}, "offload: Input should be 'auto', 'none', 'host' or 'nvme'"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_field(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_sweep(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "sweep.yaml") in str(caught.value)


def test_files_that_are_no_sweep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    with pytest.raises(InputError, match="cannot be read"):
        load_sweep(path)
    path.write_text("a: [1,")
    with pytest.raises(InputError, match="not valid YAML"):
        load_sweep(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="expected a mapping"):
        load_sweep(path)
    path.write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="not valid YAML"):
        load_sweep(path)


def test_an_unquoted_pattern_that_yaml_takes_for_a_number_is_explained(tmp_path: Path) -> None:
    text = yaml.safe_dump({**BASE, "grid": {"sampling": ["equal"]}}) + "method: {name: sparsegpt, pattern: 2:4}\n"
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(InputError, match="quote"):
        load_sweep(tmp_path / "sweep.yaml")


def test_stages_and_threads_are_no_fields_of_a_run() -> None:
    with pytest.raises(InputError, match=r"grid\.stages: no field of a run"):
        validated(SweepSpec, {"name": "x", "run": {}, "grid": {"stages": [1, 2]}}).runs()
