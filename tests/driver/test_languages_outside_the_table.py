"""German and Japanese, which our table lacks: compressed, scored and compared like any other language."""

import io
import json
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.evaluate import EvaluationResult, TextQuestion, evaluate
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.similarity import language_similarity
from mbs_ray.driver.sweep import conduct
from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import DISTRIBUTION_FILE
from mbs_ray.run.spec import EvaluationSpec
from mbs_ray.run.sweep_spec import SweepSpec, validated
from tests.support.stages import WARM
from tests.support.texts import some_texts, write_jsonl


def progress() -> Progress:
    return Progress(Console(file=io.StringIO(), width=200))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for code, words, part in (
        ("de", "en", "corpus"),
        ("jpn_Jpan", "sw", "corpus"),
        ("en", "en", "corpus"),
        ("de", "en", "held-out"),
        ("jpn_Jpan", "sw", "held-out"),
    ):
        (folder / part).mkdir(exist_ok=True)
        write_jsonl(folder / part / f"{code}.jsonl", some_texts(words, 40, seed=len(code) + 10 * (part == "corpus")))
    return folder


@pytest.mark.slow
def test_a_checkpoint_of_any_language_is_scored_and_its_languages_compared(
    ray_cluster: Cluster, llama: Path, texts: Path, tmp_path: Path
) -> None:
    cluster = ClusterOptions(stages=1, replicas=1, threads=1)
    how = {"revision": None, "compute_dtype": "auto", "cluster": cluster, "out": tmp_path}
    sets = {"held-out": EvaluationSpec(corpus=str(texts / "held-out"), segments=3, sequence_length=32)}

    def scored(languages: str) -> EvaluationResult:
        text = TextQuestion(languages, sets)
        return evaluate(str(llama), text=text, tasks=None, progress=progress(), pool=WARM, **how)

    _, scores = scored("de,jpn_Jpan").texts["held-out"]
    assert list(scores) == ["de", "jpn_Jpan"] and all(one.perplexity > 1 for one in scores.values())
    asked = {"segments": 4, "sequence_length": 32, "seed": 0, "progress": progress()}
    found = language_similarity(str(llama), str(texts / "corpus"), languages="de,jpn_Jpan", **asked, **how)
    assert found.similarity.languages == ("de", "jpn_Jpan")
    with pytest.raises(InputError, match=r"language 'ru': no file in .*; languages there: de, jpn_Jpan"):
        scored("de,ru")
    with pytest.raises(InputError, match="the model's distribution, and none is known"):
        scored("all")


@pytest.mark.slow
def test_a_sweep_needs_no_distribution_and_all_are_those_of_the_one_it_is_given(
    ray_cluster: Cluster, llama: Path, texts: Path, tmp_path: Path
) -> None:
    run = {
        "model": str(llama),
        "corpus": str(texts / "corpus"),
        "languages": "de,jpn_Jpan",
        "segments": 4,
        "sequence_length": 32,
        "method": "magnitude",
        "evaluation": {"held-out": {"corpus": str(texts / "held-out"), "segments": 3}},
    }
    samplings = ["equal", {"name": "monolingual", "language": "en"}, {"name": "counts", "counts": {"de": 3, "en": 1}}]
    content = {"name": "any", "layout": {"stages": 1, "replicas": 1}, "threads": 1}
    result = conduct(
        validated(SweepSpec, {**content, "run": run, "grid": {"sampling": samplings}}),
        tmp_path,
        None,
        progress(),
        pool=WARM,
    )
    assert result.failed == {}
    (table,) = result.tables.values()
    assert list(table.index) == ["de", "jpn_Jpan", "geomean", "worst", "latin", "non-latin"] and len(table.columns) == 3
    distribution = tmp_path / DISTRIBUTION_FILE
    distribution.write_text(json.dumps({"source": "own", "unit": "bytes", "languages": {"jpn_Jpan": 1, "de": 3}}))
    asked = {**run, "languages": "all", "distribution": str(distribution), "sampling": "proportional"}
    conduct(validated(SweepSpec, {**content, "run": asked}), tmp_path, None, progress(), pool=WARM)
    allocation = tmp_path / "any" / "runs" / "magnitude-50-proportional" / "allocation.json"
    assert json.loads(allocation.read_text()) == {"de": 3, "jpn_Jpan": 1}
