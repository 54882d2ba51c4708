"""vLLM reads what we write: its greedy tokens and their probabilities are those of transformers on the same weights."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3TextConfig, LlamaConfig, Qwen3Config

from mbs_ray.methods import build_method, method_spec
from mbs_ray.model.assemble import assemble_packed
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.packed import IntegerScheme, Schemes
from mbs_ray.model.readers import VLLM
from tests.support.engine import assemble_run, draw, make_job, run_here
from tests.support.models import write_tokenizer

#: vLLM's attention on CPUs knows heads of 32 and more columns.
SHAPE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128, "initializer_range": 0.06,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "bloom": BloomConfig(
        vocab_size=400, hidden_size=128, n_layer=2, n_head=4, initializer_range=0.12,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    ),
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE),
}  # fmt: skip
SPARSE = {"name": "wanda", "pattern": "2:4"}
FOUR_BITS = {"name": "gptq", "bits": 4, "group_size": 32, "symmetric": True}
WHOLE_ROWS = {"name": "gptq", "bits": 4, "symmetric": True}
ASYMMETRIC = {"name": "gptq", "bits": 4, "group_size": 32}
PROMPTS = [[1, 50, 60, 70, 80], [1, 200, 45, 99, 300, 12], [7, 88]]
#: Of log-probabilities: both compute in bfloat16, in another order. With these weights that makes a few hundredths, on
#: CPUs with and without matrix units; linears whose rows are in the wrong order make several tenths to whole units.
APART = 0.2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder / name)
        write_tokenizer(folder / name)
    return {name: folder / name for name in CONFIGS}


def both_forms(model: Path, method: dict[str, Any], corpus: Path, folder: Path) -> tuple[Path, Path]:
    """The checkpoint of a run in the dense form, and in that which vLLM is given."""
    segments = draw(corpus, model, folder, 2)
    job = make_job("run", model, folder / "run", 1, segments, segments, method, blocks=2)
    run_here(1, [job])
    dense = assemble_run(model, job.directory, folder / "dense").folder
    scheme = IntegerScheme.of(method_spec(build_method(method)))
    if scheme is None:
        return dense, dense
    decoder = Decoder(Checkpoint(dense), torch.float32)
    return dense, assemble_packed(decoder, job.directory / "packed", Schemes(scheme), folder / "packed", "card", VLLM)


def answers_of_vllm(python: Path, folder: Path) -> list[tuple[list[int], list[float]]]:
    script = Path(__file__).with_name("generate.py")
    # In its own environment, and from a folder where nothing of ours lies on its path.
    done = subprocess.run(
        [python, script, folder, json.dumps(PROMPTS)],
        capture_output=True, text=True, timeout=300, check=False, cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_reads(python: Path, dense: Path, served: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    for prompt, (tokens, scores) in zip(PROMPTS, answers_of_vllm(python, served), strict=True):
        assert len(tokens) == 12
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
        expected = logits.log_softmax(-1)
        own = expected.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
        assert (torch.tensor(scores) - own).abs().max() < APART
        # The likeliest token, or one that ties with it.
        assert (expected.max(1).values - own).max() < APART


@pytest.mark.parametrize("method", [SPARSE, FOUR_BITS, WHOLE_ROWS], ids=["2:4", "4bit-g32", "4bit-rows"])
@pytest.mark.parametrize("name", CONFIGS)
def test_vllm_reads_what_a_run_leaves(
    name: str, method: dict[str, Any], vllm: Path, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    assert_reads(vllm, *both_forms(models[name], method, corpus, tmp_path))


def test_vllm_reads_zero_points_where_it_keeps_linears_whole(
    vllm: Path, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    assert_reads(vllm, *both_forms(models["llama"], ASYMMETRIC, corpus, tmp_path))


def test_a_dense_model_answers_alike(vllm: Path, models: dict[str, Path]) -> None:
    assert_reads(vllm, models["bloom"], models["bloom"])
