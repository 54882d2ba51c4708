"""Further segments for starved experts, in sweeps on a real cluster: counted once, drawn, kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.errors import InputError
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_file import SegmentSet
from tests.support.architectures import WINDOW
from tests.support.mixtures import write_translated
from tests.support.models import HELD_OUT, write_corpus
from tests.support.stages import kill_a_stage_after
from tests.support.sweeps import predrawn, prepared_runs, run_sweep

LANGUAGES = ("en", "sw", "hi")
SEGMENTS, LENGTH, AT_MOST = 9, 3 * WINDOW, 12
#: Every weight stays, so that the run's own text is routed as in the dense model; then one that sees no text.
UNTOUCHED, PRUNED = {"name": "wanda", "sparsity": 0.0}, {"name": "sparsegpt", "sparsity": 0.5}
ROUNDED = {"name": "rtn", "bits": 4, "group_size": 8}
MODEL = "deepseek-v3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translated(tmp_path_factory.mktemp("models") / MODEL, MODEL)


@pytest.fixture(scope="module")
def run(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    held_out = write_corpus(tmp_path_factory.mktemp("held-out"), 20, first=HELD_OUT)
    return {
        "model": str(model),
        "corpus": str(corpus),
        "languages": list(LANGUAGES),
        "segments": SEGMENTS,
        "sequence_length": LENGTH,
        "sampling": "equal",
        "microbatch": 1,
        "expert_tokens": 2.5,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 2}},
    }


def sweep_of(run: dict[str, Any], methods: list[dict[str, Any]], **layout: int) -> SweepSpec:
    fields = {"name": "topped", "run": run, "grid": {"method": methods}, "layout": layout, "threads": 1}
    return validated(SweepSpec, fields)


def swept(out: Path, spec: SweepSpec) -> str:
    predrawn(prepared_runs(spec, out), out)
    result, printed = run_sweep(spec, out)
    assert result.failed == {}
    return printed


@pytest.fixture(scope="module")
def plain(ray_cluster: Cluster, run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep without further segments."""
    out = tmp_path_factory.mktemp("plain")
    swept(out, sweep_of(run, [UNTOUCHED], stages=2))
    return next((out / "topped" / "runs").iterdir())


@pytest.fixture(scope="module")
def topped(
    ray_cluster: Cluster, run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SweepSpec, str]:
    out = tmp_path_factory.mktemp("topped")
    spec = sweep_of({**run, "expert_segments": AT_MOST}, [UNTOUCHED, PRUNED, ROUNDED], stages=2)
    return out, spec, swept(out, spec)


def directory(out: Path, method: str) -> Path:
    (found,) = (out / "topped" / "runs").glob(f"{method}*")
    return found


def content(folder: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / name).read_text())
    return read


def by_expert(folder: Path) -> pd.Series:
    return pd.read_parquet(folder / "experts.parquet").groupby(["block", "expert"])["tokens"].sum()


@pytest.mark.slow
def test_tokens_rise_where_it_was_predicted_of_the_languages_that_were_chosen(
    plain: Path, topped: tuple[Path, SweepSpec, str]
) -> None:
    folder = directory(topped[0], "wanda")
    top_up, before, after = content(folder, "top_up.json"), by_expert(plain), by_expert(folder)
    assert 0 < sum(top_up["segments"].values()) <= AT_MOST
    equal = dict.fromkeys(LANGUAGES, SEGMENTS // 3)
    assert content(plain, "allocation.json") == equal
    assert content(folder, "allocation.json") == {
        code: count + top_up["segments"].get(code, 0) for code, count in equal.items()
    }
    starved = {(one["block"], one["expert"]): one for one in top_up["experts"]}
    # The pilot counts what the run itself does, whose weights are the dense model's.
    assert {key: one["tokens"] for key, one in starved.items()} == {key: before[key] for key in starved}
    assert starved.keys() == {key for key in before.index if before[key] < 2.5 * 32}
    assert top_up["starved"]["before"] == len(starved) > top_up["starved"]["expected"]
    predicted = {key for key, one in starved.items() if one["expected"] > one["tokens"]}
    assert predicted and all(after[key] > before[key] for key in predicted)
    # Drawn segments are few and random: together the experts get about what the average segment promises.
    gains = [(after[key] - before[key], starved[key]["expected"] - before[key]) for key in predicted]
    assert sum(got for got, _ in gains) == pytest.approx(sum(promised for _, promised in gains), rel=0.5)
    tokens = LENGTH * (SEGMENTS + sum(top_up["segments"].values()))
    assert (after.groupby("block").sum() == 2 * tokens).all()
    metrics = [content(one, "result.json")["metrics"]["experts/starved"] for one in (plain, folder)]
    assert metrics[0] == len(starved) > metrics[1]


@pytest.mark.slow
def test_runs_of_one_text_share_one_count_and_a_method_without_text_gets_none(
    topped: tuple[Path, SweepSpec, str],
) -> None:
    out, _, printed = topped
    (counted,) = (out / "adaptive").iterdir()
    reports = read_block_reports(counted / "blocks")
    assert [len(report.mixtures) for report in reports] == [0, 1, 1]
    assert not any(report.linears for report in reports)
    assert printed.count("routes-") == printed.count(f"routes-{MODEL}-seed0-") == 1
    ours, theirs = (content(directory(out, one), "top_up.json") for one in ("wanda", "sparsegpt"))
    assert ours == theirs
    assert not (directory(out, "rtn") / "top_up.json").exists()
    assert sum(content(directory(out, "rtn"), "allocation.json").values()) == SEGMENTS


@pytest.mark.slow
def test_the_console_the_card_and_mlflow_say_which_segments_were_added(topped: tuple[Path, SweepSpec, str]) -> None:
    out, _, printed = topped
    folder = directory(out, "sparsegpt")
    top_up = content(folder, "top_up.json")
    count, spread = sum(top_up["segments"].values()), ", ".join(f"{k} {v}" for k, v in top_up["segments"].items())
    said = f"{count} further segments: {spread}, for {top_up['starved']['before']} starved experts"
    assert f"{folder.name}: {said}" in printed
    card = (folder / "checkpoint" / "README.md").read_text()
    assert f"- for experts that too few tokens reach, {count} of the segments: {spread}" in card
    assert content(folder, "run.json")["segments"] == SEGMENTS + count
    assert len(list((out / "artifacts").rglob("top_up.json"))) == 2


@pytest.mark.slow
def test_segments_that_were_drawn_before_are_among_those_that_are_drawn_then(
    plain: Path, topped: tuple[Path, SweepSpec, str]
) -> None:
    rows = []
    for folder in (plain, directory(topped[0], "wanda")):
        fingerprint = content(folder, "run.json")["fingerprints"]["calibration"]
        read = SegmentSet.open(folder.parents[2] / "segments" / f"{fingerprint[:16]}.parquet").read()
        rows.append({(language, tuple(ids)) for language, ids in zip(read.language, read.token_ids, strict=True)})
    assert rows[0] < rows[1]


@pytest.mark.slow
def test_a_second_command_repeats_nothing(topped: tuple[Path, SweepSpec, str]) -> None:
    out, spec, _ = topped
    before = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*.json")) if path.name != "report.json"}
    printed = swept(out, spec)
    assert "all runs are finished; nothing to compute" in printed and "routes-" not in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["counts", "kept"])
def test_a_run_that_is_taken_up_again_has_the_same_further_segments_and_bits(
    lost: str, topped: tuple[Path, SweepSpec, str], tmp_path: Path
) -> None:
    """Whether the counts of the first command are gone, or what its run kept of them."""
    out, spec, _ = topped
    shutil.copytree(out, tmp_path / "out")
    folder = directory(tmp_path / "out", "sparsegpt")
    expected = content(directory(out, "sparsegpt"), "top_up.json")
    if lost == "counts":
        shutil.rmtree(tmp_path / "out" / "adaptive")
    else:
        (folder / "top_up.json").unlink()
    (folder / "result.json").unlink()
    (folder / "blocks" / "block-00002.safetensors").unlink()
    printed = swept(tmp_path / "out", spec)
    assert "routes-" not in printed and not (lost == "counts" and (tmp_path / "out" / "adaptive").exists())
    assert content(folder, "top_up.json") == expected
    theirs = directory(out, "sparsegpt")
    assert (folder / "blocks" / "block-00002.safetensors").read_bytes() == (
        theirs / "blocks" / "block-00002.safetensors"
    ).read_bytes()
    assert content(folder, "signature.json") == content(theirs, "signature.json")


@pytest.mark.slow
def test_replicas_and_stages_count_the_same(
    topped: tuple[Path, SweepSpec, str], run: dict[str, Any], tmp_path: Path
) -> None:
    spec = sweep_of({**run, "expert_segments": AT_MOST}, [UNTOUCHED], stages=1, replicas=2)
    swept(tmp_path, spec)
    counts = []
    for out in (topped[0], tmp_path):
        (folder,) = (out / "adaptive").iterdir()
        counts.append([report.mixtures for report in read_block_reports(folder / "blocks")])
    assert counts[0] == counts[1]
    assert content(directory(tmp_path, "wanda"), "top_up.json") == content(directory(topped[0], "wanda"), "top_up.json")


@pytest.mark.slow
def test_a_stage_that_dies_while_tokens_are_counted_changes_no_bit(
    topped: tuple[Path, SweepSpec, str], run: dict[str, Any], tmp_path: Path
) -> None:
    killer = kill_a_stage_after(tmp_path, "adaptive/routes-*/blocks/block-00000.json")
    swept(tmp_path, sweep_of({**run, "expert_segments": AT_MOST}, [PRUNED], stages=2))
    killer.join()
    ours, theirs = directory(tmp_path, "sparsegpt"), directory(topped[0], "sparsegpt")
    assert content(ours, "top_up.json") == content(theirs, "top_up.json")
    for block in sorted((theirs / "blocks").glob("*.safetensors")):
        assert (ours / "blocks" / block.name).read_bytes() == block.read_bytes()


@pytest.mark.slow
def test_nothing_is_drawn_where_no_expert_is_starved(ray_cluster: Cluster, run: dict[str, Any], tmp_path: Path) -> None:
    fed = {**run, "expert_tokens": 0.01, "expert_segments": AT_MOST}
    printed = swept(tmp_path, sweep_of(fed, [UNTOUCHED], stages=1))
    folder = directory(tmp_path, "wanda")
    assert "no further segments: no expert is starved" in printed
    assert content(folder, "top_up.json")["segments"] == {}
    assert sum(content(folder, "allocation.json").values()) == SEGMENTS


@pytest.mark.slow
def test_more_segments_than_there_are_is_an_error_that_names_the_field(
    ray_cluster: Cluster, run: dict[str, Any], tmp_path: Path
) -> None:
    spec = sweep_of({**run, "expert_tokens": 1000.0, "expert_segments": 100_000}, [UNTOUCHED], stages=1)
    predrawn(prepared_runs(spec, tmp_path), tmp_path)
    with pytest.raises(InputError, match=r"expert_segments, more text for starved experts: language '\w+': the corpus"):
        run_sweep(spec, tmp_path)


def test_a_model_without_experts_is_refused_by_the_field(bloom: Path, corpus: Path, tmp_path: Path) -> None:
    fields = {"model": str(bloom), "corpus": str(corpus), "languages": ["en"], "sampling": "equal", "segments": 2}
    run = {**fields, "sequence_length": 32, "expert_segments": 1}
    with pytest.raises(InputError, match=r"^expert_segments: .* is no mixture of experts.*leave it out$"):
        prepared_runs(sweep_of(run, [UNTOUCHED]), tmp_path)
