"""A run whose calibration and evaluation are conversations, through the tokenizer's own chat template."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.cluster_utils import Cluster
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mbs_ray.run.sweep_spec import SweepSpec, validated
from mbs_ray.text.segment_file import SegmentSet
from tests.support.chats import CHATML, some_chats, with_template, write_chats
from tests.support.models import write_tokenizer
from tests.support.sweeps import prepared_runs, run_sweep

LANGUAGES = ("en", "sw")
LENGTH = 96


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "plain")
    folder = with_template(tmp_path / "plain", tmp_path / "chat-model", CHATML)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chat", ["packed", "one_per_segment"])
def test_a_run_on_conversations_is_scored_on_their_contents_alone(
    chat: str, chat_model: Path, ray_cluster: Cluster, tmp_path: Path
) -> None:
    for language in LANGUAGES:
        write_chats(tmp_path / "chats" / f"{language}.jsonl", some_chats(language, 30))
        write_chats(tmp_path / "held-out" / f"{language}.parquet", some_chats(language, 12, words=25))
    run = {
        "model": str(chat_model),
        "corpus": {"folder": str(tmp_path / "chats"), "chat": chat},
        "languages": list(LANGUAGES),
        "segments": 6,
        "sequence_length": LENGTH,
        "sampling": "equal",
        "method": {"name": "wanda", "sparsity": 0.5},
        "evaluation": {"held-out": {"corpus": {"folder": str(tmp_path / "held-out"), "chat": chat}, "segments": 4}},
    }
    content = {"name": "chats", "run": run, "layout": {"stages": 1, "replicas": 1}, "threads": 1}
    spec = validated(SweepSpec, content)
    (prepared,) = prepared_runs(spec, tmp_path / "out")
    result, _ = run_sweep(spec, tmp_path / "out")
    assert result.failed == {}
    (folder,) = (tmp_path / "out" / "chats" / "runs").iterdir()
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    fingerprint = prepared.evaluation["held-out"].fingerprint
    segments = SegmentSet.open(tmp_path / "out" / "segments" / f"{fingerprint[:16]}.parquet").read()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    markup = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")}
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    losses: dict[str, list[float]] = {language: [] for language in LANGUAGES}
    seen: set[int] = set()
    for ids, document, language in zip(segments.token_ids, segments.document_index, segments.language, strict=True):
        assert len(ids) == LENGTH
        seen |= markup & set(np.asarray(ids).tolist())
        tokens = torch.tensor(np.asarray(ids), dtype=torch.int64)
        with torch.no_grad():
            scores = model(tokens[None]).logits[0].double().log_softmax(-1)
        scored = [place for place in range(1, LENGTH) if document[place] >= 0]
        assert not markup & {int(tokens[place]) for place in scored}
        losses[language] += [-float(scores[place - 1, tokens[place]]) for place in scored]
    assert seen == markup
    for language, values in losses.items():
        assert metrics[f"ppl/{language}"] == pytest.approx(float(np.exp(np.mean(values))), rel=1e-5)
