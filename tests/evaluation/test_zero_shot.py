"""Tasks of lm-evaluation-harness on the stages give what its own HFLM gives."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mbs_ray.cluster.activations.memory_tier import MemoryTier
from mbs_ray.cluster.activations.store import ActivationStore
from mbs_ray.cluster.job import Job, Score
from mbs_ray.cluster.layout import Layout
from mbs_ray.cluster.offload import AUTO
from mbs_ray.cluster.resources import Resources
from mbs_ray.cluster.stage.worker import Worker
from mbs_ray.cluster.stage_pool import StagePool
from mbs_ray.driver.checkpoint_scorer import CheckpointScorer
from mbs_ray.driver.evaluate_tasks import score_requests
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.stage_driver import StageDriver
from mbs_ray.driver.token_requests import TokenRequests
from mbs_ray.errors import InputError
from mbs_ray.evaluation.token_scores import RequestScore
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.run.numerics import Numerics
from mbs_ray.run.prepare import open_model
from mbs_ray.text.tokenizer_files import load_tokenizer
from tests.support.models import TEXTS
from tests.support.stages import ONE

MAX_LENGTH = 40  # as `harness` has it


pytestmark = pytest.mark.usefixtures("own_tasks_only")


def staged_lm(folder: Path, score: Any, max_length: int | None = MAX_LENGTH) -> Any:
    from mbs_ray.evaluation.staged_lm import StagedLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return StagedLM(tokenizer, AutoModelForCausalLM.from_pretrained(folder).config, score, max_length)


def score_plainly(folder: Path) -> Any:
    """One sequence after the other through the whole model; log-softmax in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def score(sequences: list[list[int]]) -> list[RequestScore]:
        answers = []
        for sequence in sequences:
            with torch.inference_mode():
                logits = model(torch.tensor([sequence[:-1]])).logits[0].double()
            own = torch.tensor(sequence[1:])
            nll = -logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
            answers.append(RequestScore(nll.float().numpy(), (logits.argmax(-1) == own).numpy()))
        return answers

    return score


@contextmanager
def scoring(model: Path, out: Path, stages: int, replicas: int = 1) -> Iterator[Callable[..., list[RequestScore]]]:
    """The function that scores requests on stages of their own."""
    opened, progress = open_model(str(model), None, out / "cache"), Progress(Console(quiet=True))
    with StagePool() as pool:
        driver = StageDriver(Resources(Layout(stages, replicas), Numerics("cpu", 1)), pool, AUTO, progress)
        scorer = CheckpointScorer(str(model), opened, "float32", driver, out / "evaluated", progress)
        yield partial(score_requests, scorer)
        assert pool.starts == 1


def of_texts(*pairs: tuple[str, ...]) -> list[Any]:
    return [SimpleNamespace(args=pair, task_name="river_en") for pair in pairs]


def assert_same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert len(ours) == len(theirs)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    for (one, _), (other, _) in zip(ours, theirs, strict=True):
        assert math.isclose(one, other, abs_tol=1e-4, rel_tol=1e-6)


def test_requests_are_encoded_truncated_and_summed_as_hflm_does(bloom: Path, harness: Any) -> None:
    lm = staged_lm(bloom, score_plainly(bloom))
    long = TEXTS["sw"] * 3
    requests = of_texts(
        ("", TEXTS["en"]),  # the context is <s>
        ("", "<s> noon"),  # begins with it already
        ("<s>The river", " was high"),
        ("The river ", "was high"),  # the space goes to the continuation
        ("T", "he"),
        (long, " na"),
        (long, TEXTS["fr"][:60]),
        ("Nobody was", " high"),
        ("Nobody was", " high"),
        ("Nobody was", " hi"),
    )
    assert_same(lm.loglikelihood(requests), harness.loglikelihood(requests, disable_tqdm=True))
    with torch.inference_mode():
        is_argmax = int(harness.model(torch.tensor([[7, 8, 9]])).logits[0, -1].argmax())
    tokens = [
        (("", ""), [9], list(range(30, 30 + MAX_LENGTH))),  # as long a continuation as there may be
        (("", ""), [7, 8, 9], [is_argmax]),
        (("", ""), [6, 8], [9, is_argmax]),
    ]
    ours = lm._loglikelihood_tokens(tokens)
    assert_same(ours, harness._loglikelihood_tokens(tokens, disable_tqdm=True))
    assert ours[1][1]


@pytest.mark.parametrize(("begin", "token"), [("<s>", 1), ("</s>", 2)])
def test_requests_begin_as_the_tokenizer_begins_a_text_as_hflm_has_it(
    llama: Path, tmp_path: Path, begin: str, token: int
) -> None:
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path / "beginning"
    shutil.copytree(llama, folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, token)])
    special = {"unk_token": "<unk>", "bos_token": begin, "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    score, asked = score_plainly(folder), []

    def listening(sequences: list[list[int]]) -> list[RequestScore]:
        asked.extend(sequences)
        return score(sequences)

    lm = lm_of_folder(folder, listening)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3)
    requests = of_texts(
        ("Nobody was", " high"), ("The river ", "was high"), (f"{begin}The river", " was"), (TEXTS["sw"], " na")
    )
    assert_same(lm.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True))
    assert len(asked) == 4 and all(one[0] == token and token not in one[1:] for one in asked)
    # A text without a context begins with the first token besides, as the harness has it.
    empty = of_texts(("", TEXTS["en"]))
    assert_same(lm.loglikelihood(empty), theirs.loglikelihood(empty, disable_tqdm=True))


def lm_of_folder(folder: Path, score: Any) -> Any:
    """With the tokenizer as ``mbs evaluate --tasks`` loads it."""
    from mbs_ray.evaluation.staged_lm import StagedLM

    return StagedLM(load_tokenizer(str(folder)), AutoModelForCausalLM.from_pretrained(folder).config, score)


def test_rolling_windows_score_every_token_once_as_hflm_does(bloom: Path, harness: Any) -> None:
    lm = staged_lm(bloom, score_plainly(bloom))
    texts = of_texts((TEXTS["en"] * 5,), ("",), ("noon",), (TEXTS["hi"] * 2,))
    ours, theirs = lm.loglikelihood_rolling(texts), harness.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-4) and ours[1] == 0


def test_the_longest_context_is_the_one_hflm_finds(bloom: Path, llama: Path, harness: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    for folder, expected in ((bloom, 2048), (llama, 128)):
        assert staged_lm(folder, score_plainly(folder), None).max_length == expected
        assert HFLM(pretrained=str(folder), device="cpu").max_length == expected


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [([1], [], "its continuation 0"), ([], [1], "its context has 0"), ([1], [2] * (MAX_LENGTH + 1), "at most 40")],
)
def test_requests_that_hflm_asserts_away_are_refused_before_any_is_scored(
    bloom: Path, context: list[int], continuation: list[int], message: str
) -> None:
    lm = staged_lm(bloom, lambda _: pytest.fail("scored"))
    with pytest.raises(InputError, match=message) as refused:
        lm._loglikelihood_tokens([(("Is it?", " No"), context, continuation)])
    assert "'Is it?' + ' No'" in str(refused.value)
    with pytest.raises(InputError, match="task river_en: wants text generated"):
        lm.generate_until(of_texts(("Is it?", "{}")))


def some_sequences(plain: Any) -> list[list[int]]:
    """Many of one length and one of another; one twice; one whose token is the is_argmax; the longest of 17 tokens."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(4, 400, length).tolist() for length in (2, 9, 2, 17, 9, 9, 5)]
    sequences[2][1] = next(token for token in range(400) if plain([[sequences[2][0], token]])[0].is_argmax[0])
    return [*sequences, sequences[1]]


def assert_scored(scored: list[RequestScore], expected: list[RequestScore]) -> None:
    for one, other in zip(scored, expected, strict=True):
        np.testing.assert_allclose(one.nll, other.nll, atol=2e-5, rtol=1e-5)
        assert one.is_argmax.tolist() == other.is_argmax.tolist()
    assert scored[2].is_argmax.all() and not scored[1].is_argmax.all()


@pytest.mark.parametrize("kind", ["bloom", "gpt2"])
def test_sequences_of_all_lengths_are_scored_as_by_the_plain_model(kind: str, bloom: Path, tmp_path: Path) -> None:
    folder, blocks = bloom, 4
    if kind == "gpt2":
        # It has no position for the last of 17 tokens, which need not be read.
        folder, blocks = tmp_path / "gpt2", 2
        config = GPT2Config(vocab_size=400, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(folder)
    plain = score_plainly(folder)
    sequences = some_sequences(plain)
    requests = TokenRequests(tmp_path / "segments", sequences)
    files = requests.write("cpu", Decoder(Checkpoint(folder), torch.float32))
    assert [(file.name, len(file.languages)) for file in files] == [
        ("length-17", 1), ("length-9", 3), ("length-5", 1), ("length-2", 2),
    ]  # fmt: skip
    job = Job("plain", folder, "float32", 1, tmp_path, (range(blocks),), Score(), files)
    Worker(Layout().places()[0], ONE).take(job, ActivationStore(MemoryTier(torch.device("cpu"))), None)
    assert_scored(requests.scores(tmp_path), plain(sequences))


@pytest.mark.slow
def test_replicas_share_the_lengths(ray_cluster: Cluster, bloom: Path, tmp_path: Path) -> None:
    plain = score_plainly(bloom)
    sequences = some_sequences(plain)
    with scoring(bloom, tmp_path, 1, 2) as score:
        assert_scored(score(sequences), plain(sequences))
    assert list((tmp_path / "evaluated").iterdir()) == []
    files = TokenRequests(tmp_path / "segments", sequences).write("cpu", Decoder(Checkpoint(bloom), torch.float32))
    job = Job("shared", bloom, "float32", 1, tmp_path, (range(4),), Score(), files, replicas=2)
    shares = [[one.file.name for one in job.microbatches(replica)] for replica in range(2)]
    assert shares == [["length-9", "length-2"], ["length-17", "length-5"]]
