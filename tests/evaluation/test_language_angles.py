"""Similarity of languages against the whole model in float64, and the command from text to figures and MLflow."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from mbs_ray.cli import app
from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.errors import InputError
from mbs_ray.evaluation.language_angles import Similarity, cluster, measure_similarity
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder

SEGMENTS = {"en": 5, "sw": 2, "hi": 3}


def token_ids() -> dict[str, torch.Tensor]:
    """Each language uses tokens of its own and a few that all use."""
    generator = torch.Generator().manual_seed(3)
    own = {"en": (0, 150), "sw": (100, 250), "hi": (240, 400)}
    return {
        language: torch.randint(*own[language], (count, 12), generator=generator)
        for language, count in SEGMENTS.items()
    }


def measured(folder: Path, microbatch: int = 2) -> Similarity:
    told: list[tuple[int, int]] = []
    decoder = Decoder(Checkpoint(folder), torch.float32)
    store = ActivationStore(MemoryTier(torch.device("cpu")))
    similarity = measure_similarity(decoder, token_ids(), microbatch, store, lambda *at: told.append(at))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))
    return similarity


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


@pytest.mark.parametrize("layout", ["bloom", "llama"])
def test_vectors_and_cosines_are_those_of_the_hidden_states_of_the_whole_model(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        states = {
            language: model(ids, output_hidden_states=True).hidden_states for language, ids in token_ids().items()
        }
    similarity = measured(folder)
    assert similarity.languages == ("en", "sw", "hi") and similarity.tokens == (60, 24, 36)
    assert similarity.blocks == model.config.num_hidden_layers
    for block in range(similarity.blocks):
        tokens = {language: own[block].flatten(0, 1) for language, own in states.items()}
        full = {language: x.T @ x for language, x in tokens.items()}
        mean = {language: x.square().mean(0) for language, x in tokens.items()}
        for row, language in enumerate(similarity.languages):
            np.testing.assert_allclose(similarity.vectors[block, row], mean[language].numpy(), rtol=2e-4)
            for column, other in enumerate(similarity.languages):
                expected = cosine(mean[language], mean[other]), cosine(full[language], full[other])
                assert similarity.cosines["diagonal"][block, row, column] == pytest.approx(expected[0], abs=1e-5)
                assert similarity.cosines["full"][block, row, column] == pytest.approx(expected[1], abs=1e-5)
            halves = [one.flatten(0, 1) for one in states[language][block].tensor_split(2)]
            means, moments = [x.square().mean(0) for x in halves], [x.T @ x for x in halves]
            assert similarity.halves["diagonal"][block, row] == pytest.approx(cosine(*means), abs=1e-5)
            assert similarity.halves["full"][block, row] == pytest.approx(cosine(*moments), abs=1e-5)


def test_cutting_into_microbatches_changes_rounding_alone(bloom: Path) -> None:
    one, three = measured(bloom, 1), measured(bloom, 3)
    np.testing.assert_allclose(one.vectors, three.vectors, rtol=1e-4)
    np.testing.assert_allclose(one.cosines["full"], three.cosines["full"], atol=1e-5)


def from_vectors(vectors: list[list[float]]) -> Similarity:
    """One block, in which the cosines are those of these vectors."""
    rows = np.array(vectors)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    cosines = (unit @ unit.T)[None]
    languages = tuple("abcdefgh"[: len(rows)])
    halves = {"diagonal": np.ones((1, len(rows))), "full": np.full((1, len(rows)), 0.5)}
    return Similarity(
        languages, (4,) * len(rows), rows[None].astype(np.float32), {"diagonal": cosines, "full": cosines}, halves
    )


@given(st.lists(st.floats(1.0, 89.0), min_size=2, max_size=6))
def test_angles_are_those_between_vectors_at_known_angles(angles: list[float]) -> None:
    similarity = from_vectors([[np.cos(np.radians(one)), np.sin(np.radians(one))] for one in angles])
    degrees = similarity.degrees("full", 0).to_numpy()
    expected = np.abs(np.subtract.outer(angles, angles))
    # A cosine near 1 leaves half its digits to its angle.
    np.testing.assert_allclose(degrees, expected, atol=2e-6)
    metrics = similarity.metrics(0)
    others = len(angles) - 1
    assert metrics["angle_diagonal/a"] == pytest.approx(expected[0].sum() / others, abs=1e-5)
    assert metrics["angle_full/mean"] == pytest.approx(expected.sum() / others / len(angles), abs=1e-5)
    assert metrics["angle_full_halves/b"] == pytest.approx(60.0) and metrics["angle_diagonal_halves/b"] == 0.0


def test_alike_languages_are_joined_first_at_their_mean_angle() -> None:
    # a and c are 2° apart, b and d 10°; the pairs 40°, 50°, 38° and 48°.
    angles = {"a": 0.0, "b": 40.0, "c": 2.0, "d": 50.0}
    degrees = pd.DataFrame({x: {y: abs(p - q) for y, q in angles.items()} for x, p in angles.items()})
    joined = cluster(degrees)
    assert sorted(joined[0, :2]) == [0, 2] and sorted(joined[1, :2]) == [1, 3]
    assert joined[:, 2].tolist() == pytest.approx([2.0, 10.0, 44.0])


def test_inputs_that_are_not_finite_are_refused_by_language_and_block(bloom: Path) -> None:
    decoder = Decoder(Checkpoint(bloom), torch.float32)

    class Overflowing(ActivationStore):
        def put(self, microbatch: int, block: int, hidden: torch.Tensor) -> None:
            super().put(microbatch, block, hidden * (float("inf") if block == 2 and microbatch == 4 else 1.0))

    with pytest.raises(InputError, match="sw: the inputs of block 2 are all zero or not finite"):
        store = Overflowing(MemoryTier(torch.device("cpu")))
        measure_similarity(decoder, token_ids(), 2, store, lambda done, total: None)


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["similarity", *map(str, arguments)])


def test_the_command_leaves_tables_figures_and_an_mlflow_run_that_is_found_again(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    command = (bloom, corpus, "--languages", "en,fr,hi,sw", "--segments", 4, "--sequence-length", 32, "--out", tmp_path)
    for _ in range(2):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
    assert "input of block 3" in result.stdout
    (folder,) = (tmp_path / "similarity").iterdir()
    vectors = pd.read_parquet(folder / "vectors.parquet")
    assert len(vectors) == 4 * 4 and set(vectors["tokens"]) == {4 * 32}
    assert all(len(vector) == 32 for vector in vectors["vector"])
    matrices = pd.read_parquet(folder / "matrices.parquet").set_index(["block", "statistic", "language", "other"])
    assert len(matrices) == 4 * 2 * 4 * 4
    by_language = vectors[vectors["block"] == 1].set_index("language")["vector"]
    a, b = (by_language[language].astype(np.float64) for language in ("en", "hi"))
    angle = np.degrees(np.arccos(a @ b / np.sqrt((a @ a) * (b @ b))))
    assert matrices.loc[(1, "diagonal", "en", "hi"), "degrees"] == pytest.approx(angle, abs=1e-3)

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("similarity")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("similarity tiny-bloom", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "angle_diagonal/sw")
    assert [one.step for one in history] == [0, 1, 2, 3]
    to_others = matrices.xs("diagonal", level="statistic")["degrees"].groupby(["block", "language"]).sum() / 3
    assert [one.value for one in history] == pytest.approx([to_others[block, "sw"] for block in range(4)])
    paths = {file.path for name in ("figures", "reports") for file in client.list_artifacts(run.info.run_id, name)}
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert paths == {f"figures/{name}" for name in figures} | {"reports/vectors.parquet", "reports/matrices.parquet"}
    assert {"blocks.png", "diagonal-block-00000.png", "full-block-00003.png"} <= figures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--languages", "en"), "--languages: similarity needs at least two"),
        (("--languages", "en,sw", "--compute-dtype", "int8"), "--compute-dtype int8: there are auto, float32"),
        (("--languages", "en,sw", "--sequence-length", 129), "--sequence-length: 129 tokens are more than the 128"),
        (("--languages", "en,yo", "--sequence-length", 32), "yo"),
        (("--languages", "en,sw", "--sequence-length", 32, "--segments", 10**9), "--segments: hidden states of"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    options: tuple, message: str, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    result = invoke(bloom, corpus, *options, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "similarity").exists() and not (tmp_path / "mlflow.db").exists()
