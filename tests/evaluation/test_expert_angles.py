"""Angles between languages by the experts they use, against routers of plain transformers in float64."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from torch import nn
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.evaluation.language_angles import Similarity, measure_similarity
from mbs_ray.evaluation.similarity_files import write_experts, write_matrices, write_vectors
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from tests.support.mixtures import load_plain, write_translated

#: DeepSeek's first block has no experts.
NAMES = {"qwen3-moe": [0, 1, 2], "deepseek-v3": [1, 2]}
SEGMENTS = {"en": 5, "sw": 2, "hi": 3}
LENGTH = 12


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: write_translated(folder / name, name) for name in NAMES}


def token_ids() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    own = {"en": (0, 150), "sw": (100, 250), "hi": (240, 390)}
    return {
        language: torch.randint(*own[language], (count, LENGTH), generator=generator)
        for language, count in SEGMENTS.items()
    }


def measured(decoder: Decoder, microbatch: int = 2) -> Similarity:
    store = ActivationStore(MemoryTier(torch.device("cpu")))
    return measure_similarity(decoder, token_ids(), microbatch, store, lambda done, total: None)


def chosen(gate: Any, config: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Choose the experts of each token [tokens, k] in float64, from a router's inputs, weight and configuration."""
    logits = inputs.reshape(-1, inputs.shape[-1]).double() @ gate.weight.detach().double().T
    if config.model_type == "qwen3_moe":
        return logits.topk(config.num_experts_per_tok).indices
    scores = logits.sigmoid() + gate.e_score_correction_bias.double()
    groups = scores.view(len(scores), config.n_group, -1)
    best = groups.topk(2).values.sum(-1).topk(config.topk_group).indices
    outside = torch.ones(groups.shape[:2], dtype=torch.bool).scatter(1, best, value=False)
    return groups.masked_fill(outside[..., None], -1e9).flatten(1).topk(config.num_experts_per_tok).indices


def plain_counts(folder: Path, name: str) -> dict[int, dict[str, np.ndarray]]:
    """Count by block, and by language and segment, how often each expert is chosen: [segments, experts]."""
    model = load_plain(folder, name, torch.float64)
    counts: dict[int, dict[str, np.ndarray]] = {}
    for language, ids in token_ids().items():

        def count(block: int, gate: nn.Module, inputs: tuple[Any, ...], language: str = language) -> None:
            own = chosen(gate, model.config, inputs[0]).view(SEGMENTS[language], -1)
            rows = [torch.bincount(one, minlength=len(gate.weight)).numpy() for one in own]  # type: ignore[arg-type]
            counts.setdefault(block, {})[language] = np.array(rows)

        hooks = [
            layer.mlp.gate.register_forward_pre_hook(lambda gate, inputs, block=block: count(block, gate, inputs))
            for block, layer in enumerate(model.model.layers)
            if hasattr(layer.mlp, "gate")
        ]
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
    return counts


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("microbatch", [1, 3])
def test_counts_and_angles_are_those_of_the_routers_of_the_whole_model(
    name: str, microbatch: int, written: dict[str, Path]
) -> None:
    expected = plain_counts(written[name], name)
    similarity = measured(Decoder(Checkpoint(written[name]), torch.float32), microbatch)
    assert similarity.measured["experts"] == sorted(expected) == NAMES[name]
    for block, by_language in expected.items():
        (counts,) = similarity.routed[block].values()
        shares = {language: own.sum(0) / own.sum() for language, own in by_language.items()}
        assert any(len(np.unique(share)) > 1 for share in shares.values())
        for row, language in enumerate(similarity.languages):
            assert counts[row].tolist() == by_language[language].sum(0).tolist()
            assert counts[row].sum() == SEGMENTS[language] * LENGTH * 2
            halves = [half.sum(0) for half in np.array_split(by_language[language], 2)]
            assert similarity.halves["experts"][block, row] == pytest.approx(cosine(*halves), abs=1e-12)
            for column, other in enumerate(similarity.languages):
                angle = cosine(shares[language], shares[other])
                assert similarity.cosines["experts"][block, row, column] == pytest.approx(angle, abs=1e-12)


def test_a_block_without_experts_has_no_angles_of_them_anywhere(written: dict[str, Path], tmp_path: Path) -> None:
    similarity = measured(Decoder(Checkpoint(written["deepseek-v3"]), torch.float32))
    assert not [name for name in similarity.metrics(0) if "experts" in name]
    of_experts = {name: value for name, value in similarity.metrics(1).items() if "experts" in name}
    languages = ("en", "sw", "hi")
    names = {
        *(f"angle_experts/{one}" for one in (*languages, "mean")),
        *(f"angle_experts_halves/{one}" for one in languages),
    }
    assert of_experts.keys() == names and 0 < min(of_experts.values()) < max(of_experts.values()) <= 90
    write_vectors(tmp_path / "vectors", similarity)
    write_matrices(tmp_path / "matrices", similarity)
    write_experts(tmp_path / "experts", similarity)
    halves = pd.read_parquet(tmp_path / "vectors").set_index("block")["halves_experts"]
    assert halves[0].isna().all() and halves[[1, 2]].notna().all()
    matrices = pd.read_parquet(tmp_path / "matrices").groupby("statistic")["block"]
    assert {statistic: sorted(set(blocks)) for statistic, blocks in matrices} == {
        "diagonal": [0, 1, 2],
        "experts": [1, 2],
        "full": [0, 1, 2],
    }
    experts = pd.read_parquet(tmp_path / "experts")
    assert set(experts["block"]) == {1, 2} and set(experts["mixture"]) == {"mlp.experts"}
    assert len(experts) == 2 * 3 * 8


def test_a_dense_model_has_no_experts_and_does_not_load_its_last_block(llama: Path, tmp_path: Path) -> None:
    loaded: list[int] = []

    class Listed(Decoder):
        def load_block(self, index: int, tensors: Any) -> nn.Module:
            loaded.append(index)
            return super().load_block(index, tensors)

    similarity = measured(Listed(Checkpoint(llama), torch.float32))
    assert loaded == list(range(similarity.blocks - 1))
    assert list(similarity.measured) == list(similarity.cosines) == list(similarity.halves) == ["diagonal", "full"]
    assert similarity.routed == {} and not [name for name in similarity.metrics(0) if "experts" in name]
    write_vectors(tmp_path / "vectors", similarity)
    columns = ["block", "language", "tokens", "vector", "halves_diagonal", "halves_full"]
    assert list(pd.read_parquet(tmp_path / "vectors").columns) == columns


def test_a_block_is_gone_when_the_next_is_loaded(written: dict[str, Path]) -> None:
    """What has counted its tokens holds none of its weights."""
    blocks: list[weakref.ref] = []
    alive: list[int] = []

    class Watched(Decoder):
        def load_block(self, index: int, tensors: Any) -> nn.Module:
            alive.append(sum(one() is not None for one in blocks))
            block = super().load_block(index, tensors)
            blocks.extend(weakref.ref(parameter) for parameter in block.parameters())
            return block

    similarity = measured(Watched(Checkpoint(written["qwen3-moe"]), torch.float32))
    assert alive == [0, 0, 0] and len(blocks) > 3 * 12
    assert sorted(similarity.routed) == [0, 1, 2]


def test_the_command_leaves_the_experts_in_tables_figures_and_mlflow(
    ray_cluster: Cluster, written: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    how = ("--languages", "en,fr,hi,sw", "--segments", 4, "--sequence-length", 32, "--out", tmp_path)
    command = ["similarity", written["deepseek-v3"], corpus, *how]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(one) for one in command])
    assert result.exit_code == 0, result.output
    for title in ("input of block 0", "input of block 2", "experts of block 1", "experts of block 2"):
        assert f"deepseek-v3, {title}" in result.stdout
    assert "experts of block 0" not in result.stdout
    (folder,) = (tmp_path / "similarity").iterdir()
    experts = pd.read_parquet(folder / "experts.parquet")
    assert list(experts.columns) == ["block", "mixture", "expert", "language", "tokens", "share"]
    by_language = experts.groupby(["block", "language"])
    assert len(by_language) == 2 * 4 and set(by_language["tokens"].sum()) == {4 * 32 * 2}
    assert by_language["share"].sum().to_numpy() == pytest.approx(1.0)
    matrices = pd.read_parquet(folder / "matrices.parquet").set_index(["statistic", "block", "language", "other"])
    shares = experts.pivot_table(index=["block", "language"], columns="expert", values="share")
    for block in (1, 2):
        angle = np.degrees(np.arccos(cosine(*(shares.loc[(block, one)].to_numpy() for one in ("en", "hi")))))
        assert matrices.loc[("experts", block, "en", "hi"), "degrees"] == pytest.approx(angle, abs=1e-6)

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("similarity")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "angle_experts/sw")
    to_others = matrices.loc["experts"]["degrees"].groupby(["block", "language"]).sum() / 3
    assert {one.step: one.value for one in history} == pytest.approx(
        {block: to_others[block, "sw"] for block in (1, 2)}
    )
    for name in ("angle_experts/mean", "angle_experts_halves/hi"):
        assert [one.step for one in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    assert "tokens by expert of languages, block 1" in run.data.tags["mlflow.note.content"]
    paths = {file.path for name in ("figures", "reports") for file in client.list_artifacts(run.info.run_id, name)}
    assert "reports/experts.parquet" in paths
    assert {path for path in paths if "experts-block" in path} == {
        "figures/experts-block-00001.png",
        "figures/experts-block-00002.png",
    }
