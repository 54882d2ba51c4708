"""Tokens by expert of the dense model in stages: as plain transformers routes them, whatever the stages."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mbs_ray.cluster.job import Job, Route, job_text
from mbs_ray.compression.block_report import read_block_reports
from mbs_ray.compression.routing import MixtureReport
from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import LANGUAGES, LENGTH, draw, make_job, run_here
from tests.support.mixtures import load_plain, write_translated

EXPERTS = 4


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translated(tmp_path_factory.mktemp("models") / "mixtral", "mixtral")


@pytest.fixture(scope="module")
def text(mixtral: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentSet:
    """Two segments of each language, so that microbatches of three hold several."""
    return draw(corpus, mixtral, tmp_path_factory.mktemp("segments"), 2)


def routing_job(model: Path, folder: Path, text: SegmentSet, stages: int) -> Job:
    job = make_job("routes", model, folder, stages, None, text, None, blocks=3)
    return replace(job, work=Route(job_text("calibration", text)), evaluation=())


def counted(folder: Path) -> list[list[MixtureReport]]:
    return [report.mixtures for report in read_block_reports(folder / "blocks")]


def routed_by_transformers(model: Path, text: SegmentSet) -> list[list[list[int]]]:
    """Tokens by block, language and expert, from the router's own choice in the plain model."""
    plain, content = load_plain(model, "mixtral"), text.read()
    tokens = np.zeros((3, len(LANGUAGES), EXPERTS), dtype=int)
    languages = list(text.allocation)
    for ids, language in zip(content.token_ids, content.language, strict=True):
        with torch.no_grad():
            row = torch.tensor(ids, dtype=torch.int64)[None]
            logits = plain(input_ids=row, use_cache=False, output_router_logits=True).router_logits
        for block, one in enumerate(logits):
            chosen = one.topk(2, dim=-1).indices.flatten()
            tokens[block, languages.index(language)] += np.bincount(chosen.numpy(), minlength=EXPERTS)
    return tokens.tolist()


def test_the_tokens_of_every_expert_are_those_that_transformers_sends_it(
    mixtral: Path, text: SegmentSet, tmp_path: Path
) -> None:
    run_here(1, [routing_job(mixtral, tmp_path, text, 1)])
    expected = routed_by_transformers(mixtral, text)
    assert [[one.tokens for one in block] for block in counted(tmp_path)] == [[one] for one in expected]
    assert {tuple(one.languages) for block in counted(tmp_path) for one in block} == {tuple(text.allocation)}
    assert {sum(row) for block in expected for row in block} == {2 * 2 * LENGTH}


def test_stages_count_the_same_and_a_broken_count_goes_on_to_it(
    mixtral: Path, text: SegmentSet, tmp_path: Path
) -> None:
    run_here(1, [routing_job(mixtral, tmp_path / "1", text, 1)])
    whole = counted(tmp_path / "1")
    assert not list((tmp_path / "1").rglob("*.safetensors"))
    run_here(3, [routing_job(mixtral, tmp_path / "3", text, 3)])
    assert counted(tmp_path / "3") == whole
    (tmp_path / "1" / "blocks" / "block-00001.json").unlink()
    run_here(2, [routing_job(mixtral, tmp_path / "1", text, 2)])
    assert counted(tmp_path / "1") == whole
