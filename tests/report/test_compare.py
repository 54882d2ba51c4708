"""``mbs compare`` reads run directories alone: of runs that were never tracked, and of the version before."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbs_ray.errors import InputError
from mbs_ray.evaluation.token_scores import SCHEMA
from mbs_ray.report.compare import compare_runs, compare_with_dense
from mbs_ray.run.card import CardFacts, EvaluationScores
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.run.sweep_folders import SweepFolders

SETS = {"udhr": "1" * 64, "all": "2" * 64}
FACTS = RunFacts(
    label="",
    model="tiny",
    method="wanda-50",
    sampling="equal",
    sampling_name="equal",
    statistics="propagated",
    seed=0,
    languages=("en", "sw"),
    evaluation=tuple(SETS),
    segments=8,
    sequence_length=32,
    fingerprints={"model": "a" * 64, "calibration": "b" * 64},
    resolved={"compute_dtype": "float32", "microbatch": 8, "device": "cpu", "threads": 1, "torch": "2.13.0"},
    versions={"mbs_ray": "0.1.0", "ray": "2.60.0"},
    layout={"stages": 1, "replicas": 1},
)


def write_scores(path: Path, loss: float) -> None:
    """Two segments of two tokens in each language; every token loses as much."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nll = np.array([1.0, 2.0, 3.0, 2.5] * 2) + loss
    columns = {
        "nll": nll.tolist(),
        "language": ["en"] * 4 + ["sw"] * 4,
        "document": ["d"] * 8,
        "bytes": [3] * 8,
        "segment": [0, 0, 1, 1, 2, 2, 3, 3],
    }
    pq.write_table(pa.table(columns).cast(SCHEMA), path)


def write_run(folders: SweepFolders, label: str, loss: float) -> RunDirectory:
    directory = folders.run(label)
    directory.claim({"model": FACTS.fingerprints["model"], **FACTS.resolved}, replace(FACTS, label=label))
    directory.checkpoint.mkdir()
    for name in SETS:
        write_scores(directory.scores(name), loss)
    scores = [EvaluationScores(name, {}, {}) for name in SETS]
    directory.keep_card(CardFacts("tiny", None, ["en", "sw"], {}, {}, {}, 32, 0, "b" * 64, scores, "0.1.0"))
    directory.finish({"metrics": {}, "evaluation": SETS, "dense": {}})
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    folders = SweepFolders(tmp_path, "tiny-sweep")
    for name, text in SETS.items():
        folder = folders.dense(FACTS.fingerprints["model"], text, FACTS.resolved)
        write_scores(folder / "evaluation" / f"{name}.parquet", 0.0)
    return [write_run(folders, label, loss) for label, loss in (("one", 0.25), ("other", 0.75))]


def as_the_version_before(directory: RunDirectory) -> None:
    params: dict[str, Any] = {
        **{field: asdict(FACTS)[field] for field in ("segments", "sequence_length", "resolved", "seed")},
        "sampling": {"name": FACTS.sampling_name},
        "languages": ",".join(FACTS.languages),
        "evaluation": ",".join(FACTS.evaluation),
        "fingerprint": FACTS.fingerprints,
        "version": FACTS.versions,
    }
    tags = {"model": FACTS.model, "method": FACTS.method, "sampling": FACTS.sampling, "seed": str(FACTS.seed)}
    told = {"sweep": {"params": {"layout": FACTS.layout}}, "run": {"params": params, "tags": tags}}
    directory.keep_tracking_identity(told)
    (directory.path / "run.json").unlink()


@pytest.mark.parametrize("older", [False, True])
def test_two_runs_and_a_run_and_its_dense_model_are_compared(runs: list[RunDirectory], older: bool) -> None:
    one, other = runs
    if older:
        as_the_version_before(one)
    assert (one.path / "tracking.json").exists() == older
    for found, a, b, nll in (
        (compare_runs(one.path, other.path), "one", "other", 0.5),
        (compare_with_dense(one.path), "tiny (dense)", "one", 0.25),
    ):
        assert [(pair.evaluation, pair.a, pair.b) for pair in found] == [("udhr", a, b), ("all", a, b)]
        for pair in found:
            assert {row: found.nll for row, found in pair.differences.items()} == {
                row: pytest.approx(nll) for row in ("en", "sw", "geomean")
            }


def test_groups_that_both_runs_have_alike_are_compared_too(runs: list[RunDirectory]) -> None:
    one, other = runs
    groups = {"latin": ("en", "sw"), "low-share": ("sw",), "high-share": ("en",)}
    for directory, own in ((one, {**groups, "high-share": ("en", "sw")}), (other, groups)):
        directory.claim({}, replace(FACTS, label=directory.path.name, groups=own))
    (pair, _) = compare_runs(one.path, other.path)
    assert list(pair.differences) == ["en", "sw", "geomean", "latin", "low-share"]
    assert pair.differences["latin"] == pair.differences["geomean"]
    assert pair.differences["low-share"].nll == pair.differences["sw"].nll
    (pair, _) = compare_with_dense(other.path)
    assert list(pair.differences)[2:] == ["geomean", *groups]


def test_runs_of_one_name_are_told_apart_by_their_sweeps(runs: list[RunDirectory], tmp_path: Path) -> None:
    elsewhere = write_run(SweepFolders(tmp_path, "second"), "one", 0.5)
    (pair, _) = compare_runs(runs[0].path, elsewhere.path)
    assert (pair.a, pair.b) == ("tiny-sweep/one", "second/one")
    assert pair.figure == elsewhere.path / "comparisons" / "tiny-sweep-one-udhr.png"


def test_a_directory_that_says_nowhere_what_its_run_is_is_refused(runs: list[RunDirectory]) -> None:
    (runs[0].path / "run.json").unlink()
    with pytest.raises(InputError, match=r"one: says nowhere what the run is; .* writes run\.json"):
        compare_with_dense(runs[0].path)


def test_a_run_that_is_not_finished_is_refused(runs: list[RunDirectory]) -> None:
    result = runs[1].path / "result.json"
    content = json.loads(result.read_text())
    result.unlink()
    with pytest.raises(InputError, match="other: the run is not finished"):
        compare_runs(runs[0].path, runs[1].path)
    runs[1].finish(content)
    assert len(compare_runs(runs[0].path, runs[1].path)) == len(SETS)
