"""The run directory says what its run is: written when it is claimed, and read of older versions too."""

import json
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.run.sweep_folders import SweepFolders

FACTS = RunFacts(
    label="wanda-50-equal",
    model="tiny",
    method="wanda-50",
    sampling="equal",
    sampling_name="equal",
    statistics="propagated",
    seed=3,
    languages=("en", "zh-Hans", "sw"),
    evaluation=("udhr", "all"),
    segments=64,
    sequence_length=32,
    fingerprints={"model": "a" * 64, "calibration": "b" * 64},
    resolved={"compute_dtype": "float32", "microbatch": 8, "device": "cpu", "threads": 1, "torch": "2.13.0"},
    versions={"mbs_ray": "0.1.0", "ray": "2.60.0"},
    layout={"stages": 2, "replicas": 3},
)
#: ``tracking.json`` of the same run as the version before ``run.json`` wrote it.
TOLD: dict[str, Any] = {
    "experiment": "a-sweep",
    "sweep": {
        "key": "0" * 16,
        "name": "a-sweep",
        "params": {"layout": {"replicas": 3, "stages": 2}, "runs": 4, "mbs_ray": "0.1.0"},
        "tags": {"mbs.folder": "/out/a-sweep"},
    },
    "run": {
        "key": "1" * 16,
        "name": "wanda-50-equal (tiny)",
        "params": {
            "model": "models/tiny",
            "corpus": "corpus",
            "method": {"name": "wanda", "sparsity": 0.5},
            "sampling": {"name": "equal"},
            "segments": 64,
            "sequence_length": 32,
            "seed": 3,
            "microbatch": "auto",
            "statistics": "propagated",
            "languages": "en,zh-Hans,sw",
            "evaluation": "udhr,all",
            "fingerprint": {"model": "a" * 64, "calibration": "b" * 64},
            "resolved": {"compute_dtype": "float32", "microbatch": 8, "device": "cpu", "threads": 1, "torch": "2.13.0"},
            "version": {"mbs_ray": "0.1.0", "ray": "2.60.0"},
        },
        "tags": {
            "model": "tiny",
            "method": "wanda-50",
            "sampling": "equal",
            "statistics": "propagated",
            "seed": "3",
            "mbs.folder": "/out/a-sweep/runs/wanda-50-equal",
            "mlflow.runColor": "#0072b2",
        },
    },
}
names = st.text(min_size=1, max_size=8)
texts = st.dictionaries(names, names, max_size=3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "a-sweep" / "runs" / FACTS.label)


@pytest.fixture
def older(directory: RunDirectory) -> RunDirectory:
    directory.path.mkdir(parents=True)
    (directory.path / "tracking.json").write_text(json.dumps(TOLD))
    return directory


@given(
    text=texts,
    lists=st.tuples(st.lists(names).map(tuple), st.lists(names).map(tuple)),
    counts=st.tuples(*[st.integers(0, 2**40)] * 3),
    resolved=st.dictionaries(names, st.one_of(names, st.integers(), st.booleans()), max_size=3),
)
def test_facts_are_read_as_they_were_written(text, lists, counts, resolved) -> None:
    languages, evaluation = lists
    seed, segments, length = counts
    facts = replace(
        FACTS,
        **dict.fromkeys(("label", "model", "method", "sampling", "sampling_name", "statistics"), "".join(text)),
        languages=languages,
        evaluation=evaluation,
        seed=seed,
        segments=segments,
        sequence_length=length,
        fingerprints=text,
        versions=text,
        resolved=resolved,
        layout={"stages": seed, "replicas": segments},
    )
    with TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.claim({}, facts)
        read = run.facts()
    assert read == facts and list(read.evaluation) == list(evaluation)
    assert set(facts.to_json()) == {field.name for field in fields(RunFacts)}


def test_a_directory_without_a_run_has_no_facts(directory: RunDirectory) -> None:
    assert directory.facts() is None and directory.facts_written() == 0 and directory.scored_sets() == {}
    directory.refuse_other_first_set("udhr")


def test_a_run_that_goes_on_has_the_facts_of_now_and_a_finished_one_those_of_then(directory: RunDirectory) -> None:
    directory.claim({"model": "a"}, FACTS)
    now = replace(FACTS, versions={"mbs_ray": "9"}, layout={"stages": 1, "replicas": 3})
    directory.claim({"model": "a"}, now, finished=True)
    assert directory.facts() == FACTS
    directory.claim({"model": "other"}, now)
    assert directory.facts() == now and directory.stored_signature() == {"model": "a"}


def test_a_begun_run_stays_with_versions_and_gpus_and_a_finished_one_is_shown_by_any(directory: RunDirectory) -> None:
    signed = {"method": {"name": "wanda"}, "gpu": "A (8.0)", "torch": "2.13.0", "transformers": "5", "arithmetic": 1}
    signed["kernel"] = "C++"
    directory.claim(signed, FACTS)
    for field, other in {
        "gpu": "H (9.0)",
        "torch": "3",
        "transformers": "6",
        "arithmetic": 2,
        "kernel": "torch",
    }.items():
        with pytest.raises(InputError, match=f"was begun with {field} "):
            directory.refuse_changed({**signed, field: other})
        directory.refuse_changed({**signed, field: other}, finished=True)
    with pytest.raises(InputError, match=r"was begun with method\.name 'wanda', now it is 'rtn'"):
        directory.refuse_changed({**signed, "method": {"name": "rtn"}}, finished=True)


def test_a_run_that_an_earlier_version_began_goes_on_though_it_signed_less(directory: RunDirectory) -> None:
    directory.claim({"model": "a", "threads": 2}, FACTS)
    directory.refuse_changed({"model": "a", "threads": 2, "transformers": "5", "arithmetic": 1})
    with pytest.raises(InputError, match="was begun with threads 2, now it is None"):
        directory.refuse_changed({"model": "a", "gpu": "A (8.0)"})


def test_a_directory_of_the_version_before_has_the_same_facts(older: RunDirectory) -> None:
    assert older.facts() == FACTS
    without = json.loads(json.dumps(TOLD))
    without["run"]["params"]["evaluation"] = ""
    older.keep_tracking_identity(without)
    assert older.facts() == replace(FACTS, evaluation=())


def test_with_dense_statistics_the_version_before_counted_what_was_drawn_in_its_allocation(older: RunDirectory) -> None:
    (older.path / "allocation.json").write_text(json.dumps({"en": 16, "sw": 16}))
    assert older.facts() == FACTS
    (older.path / "weights.json").write_text(json.dumps({"en": 0.75, "sw": 0.25}))
    assert older.facts() == replace(FACTS, segments=32)


def test_a_run_of_the_version_before_gets_its_facts_when_it_goes_on(older: RunDirectory) -> None:
    now = replace(FACTS, versions={"mbs_ray": "9"})
    older.claim({}, now, finished=True)
    assert older.facts() == FACTS and not (older.path / "run.json").exists()
    older.claim({}, now)
    assert older.facts() == now and (older.path / "run.json").is_file()
    assert json.loads((older.path / "tracking.json").read_text()) == TOLD


@pytest.mark.parametrize("newer", [True, False])
def test_another_first_set_is_refused(directory: RunDirectory, newer: bool) -> None:
    if newer:
        directory.claim({}, FACTS)
        misleading = json.loads(json.dumps(TOLD).replace("udhr,all", "all,udhr"))
        directory.keep_tracking_identity(misleading)
    else:
        directory.path.mkdir(parents=True)
        directory.keep_tracking_identity(TOLD)
    directory.refuse_other_first_set("udhr")
    directory.refuse_other_first_set("")
    with pytest.raises(InputError, match="was begun with evaluation set 'udhr' first, now 'all' is; keep the first"):
        directory.refuse_other_first_set("all")


def test_a_run_without_evaluation_may_get_any_first_set(directory: RunDirectory) -> None:
    directory.claim({}, replace(FACTS, evaluation=()))
    directory.refuse_other_first_set("all")


def test_a_result_has_its_sets_in_order_and_the_perplexities_of_the_dense_model(older: RunDirectory) -> None:
    older.checkpoint.mkdir()
    older.finish({"metrics": {}, "evaluation": {"all": "2" * 64, "udhr": "1" * 64}})
    assert list(older.scored_sets().items()) == [("udhr", "1" * 64), ("all", "2" * 64)]
    card: dict[str, Any] = dict.fromkeys(("model", "base_model", "languages", "method", "sampling", "allocation"))
    card |= dict.fromkeys(("sequence_length", "seed", "calibration", "version"))
    card["evaluation"] = [{"name": "udhr", "perplexity": {"en": (2.5, 3.0)}, "bits_per_byte": {"en": (0.5, 0.6)}}]
    (older.path / "card.json").write_text(json.dumps(card))
    result = older.result()
    assert result is not None and result["dense"] == {"udhr": {"en": 2.5}}
    older.finish({**result, "dense": {"udhr": {"en": 7.0}}})
    result = older.result()
    assert result is not None and result["dense"] == {"udhr": {"en": 7.0}}


def test_a_run_knows_its_sweep_and_a_sweep_its_runs(directory: RunDirectory, tmp_path: Path) -> None:
    folders = SweepFolders(tmp_path, "a-sweep")
    assert SweepFolders.of(directory.sweep) == folders and folders.run(FACTS.label).path == directory.path
    assert RunDirectory.all_of(folders.sweep) == []
    for label in ("b", "a"):
        folders.run(label).claim({}, FACTS)
    (folders.sweep / "runs" / "note.txt").touch()
    assert [run.path.name for run in RunDirectory.all_of(folders.sweep)] == ["a", "b"]
    assert directory.figures == directory.path / "figures" and folders.figures == folders.sweep / "figures"
    assert directory.scores("udhr") == directory.path / "evaluation" / "udhr.parquet"
