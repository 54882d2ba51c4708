"""Models whose tokenizer begins every text with a token, through every command that draws text, on a real cluster."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.similarity import language_similarity
from mbs_ray.driver.sweep import conduct
from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_draw import draw_per_language
from mbs_ray.text.segment_file import SegmentSet
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.architectures import write_architecture
from tests.support.models import HELD_OUT, documents, write_corpus
from tests.support.stages import WARM

pytestmark = pytest.mark.slow

LANGUAGES = ("en", "sw")
LENGTH = 24
BEGIN, END = 1, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name in ("llama", "gemma3"):
        found[name] = write_architecture(folder / name, name, torch.float32)
        made = Tokenizer.from_file(str(found[name] / "tokenizer.json"))
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def out(ray_cluster: Cluster, models: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over both, with both joins, and what makes a language's angles."""
    folder = tmp_path_factory.mktemp("out")
    held_out = write_corpus(folder / "held-out", 8, LANGUAGES, first=HELD_OUT)
    scored = {"corpus": str(held_out), "segments": None}
    run = {
        "corpus": str(corpus),
        "languages": list(LANGUAGES),
        "segments": 8,
        "sequence_length": LENGTH,
        "sampling": "equal",
        "method": {"name": "wanda", "sparsity": 0.5},
        "keep": "metrics",
        "evaluation": {"end": scored, "blank": {**scored, "join": "blank_line"}},
    }
    spec = validated(
        SweepSpec, {"name": "two", "run": run, "grid": {"model": [*map(str, models.values())]}, "threads": 1}
    )
    assert conduct(spec, folder, None, Progress(Console(file=io.StringIO())), pool=WARM).failed == {}
    language_similarity(
        str(models["llama"]),
        str(corpus),
        revision=None,
        languages="en,sw",
        segments=2,
        sequence_length=LENGTH + 1,
        seed=0,
        compute_dtype="float32",
        cluster=ClusterOptions(threads=1),
        out=folder,
        progress=Progress(Console(file=io.StringIO())),
    )
    return folder


def test_all_segments_of_calibration_evaluation_and_similarity_begin_with_exactly_one(out: Path, corpus: Path) -> None:
    sets = [SegmentSet.open(path) for path in (out / "segments").iterdir()]
    # One text of calibration and two of evaluation, which both models share, and one of similarity.
    assert sorted({one.sequence_length for one in sets}) == [LENGTH, LENGTH + 1] and len(sets) == 4
    for one in sets:
        rows = one.read()
        assert (rows.token_ids[:, 0] == BEGIN).all() and (rows.token_ids[:, 1:] != BEGIN).all()
        assert (rows.document_index[:, 0] == -1).all() and (rows.bytes[:, 0] == 0).all()


def test_languages_that_adaptive_sampling_draws_apart_begin_so_too(
    ray_cluster: Cluster, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    asked = SegmentRequest(corpus, str(models["gemma3"]), LANGUAGES, dict.fromkeys(LANGUAGES, 3), LENGTH)
    for one in draw_per_language(asked, tmp_path).values():
        ids = one.read().token_ids
        assert ids.shape == (3, LENGTH) and (ids[:, 0] == BEGIN).all() and (ids[:, 1:] != BEGIN).all()


def plain_scores(folder: Path, language: str, join: str) -> tuple[float, float]:
    """Perplexity and bits per byte of the held-out text by a loop that knows nothing of segments' files."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = documents(language, 8, HELD_OUT)
    pieces = [(text, "</s>" if join == "end_token" else "\n\n") for text in texts]
    stream: list[tuple[int, int]] = []
    if join == "end_token":
        for text, _ in pieces:
            stream += [(token, len(tokenizer.decode([token]).encode())) for token in tokenizer.encode(text)[1:]]
            stream.append((END, 0))
    else:
        whole = "".join(text + after for text, after in pieces)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            stream.append((token, len(whole[start:stop].strip("\n").encode())))
    nll, size = [], 0
    with torch.no_grad():
        for start in range(0, len(stream) - LENGTH + 2, LENGTH - 1):
            own = stream[start : start + LENGTH - 1]
            ids = torch.tensor([[BEGIN, *(token for token, _ in own)]])
            scores = model(ids, use_cache=False).logits[0].double().log_softmax(-1)
            for place, (token, own_bytes) in enumerate(own):
                if own_bytes:
                    nll.append(-float(scores[place, token]))
                    size += own_bytes
    total = math.fsum(nll)
    return math.exp(total / len(nll)), total / math.log(2) / size


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_perplexity_and_bits_per_byte_are_those_of_a_plain_loop_that_begins_so(
    out: Path, models: dict[str, Path], name: str, language: str
) -> None:
    metrics: dict[str, float] = json.loads(
        (out / "two" / "runs" / f"{name}-wanda-50-equal" / "result.json").read_text()
    )["metrics"]
    card: dict[str, Any] = json.loads((out / "two" / "runs" / f"{name}-wanda-50-equal" / "card.json").read_text())
    for position, (tail, join) in enumerate((("", "end_token"), ("_blank", "blank_line"))):
        perplexity, bits = plain_scores(models[name], language, join)
        dense = metrics[f"ppl{tail}/{language}"] / metrics[f"ppl_increase{tail}/{language}"]
        assert dense == pytest.approx(perplexity, rel=1e-6)
        assert card["evaluation"][position]["bits_per_byte"][language][0] == pytest.approx(bits, rel=1e-6)


def test_it_is_told_to_mlflow_and_printed_with_the_allocation(out: Path, models: dict[str, Path]) -> None:
    told = json.loads((out / "two" / "runs" / "llama-wanda-50-equal" / "tracking.json").read_text())
    assert told["run"]["params"]["begin"] == [BEGIN]
    command = ["allocate", "--model", str(models["llama"]), "--sampling", "equal", "--languages", "en,sw"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, command)
    assert (
        result.exit_code == 0 and "every segment begins with <s> (1), as the tokenizer begins a text" in result.stdout
    )


def test_an_allocation_of_bloom_says_nothing_of_it(bloom: Path) -> None:
    command = ["allocate", "--model", str(bloom), "--sampling", "equal", "--languages", "en,sw"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, command)
    assert result.exit_code == 0 and "begins" not in result.stdout
