"""The training script: what it leaves, that a killed training goes on to the same end, and clear errors."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mbs_ray.languages.distribution import model_distribution
from mbs_ray.languages.facts import LANGUAGES as FACTS
from minis.train import main
from tests.support.training import BATCH, LANGUAGES, LENGTH, STEPS, start_training, write_training_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "mini"
    training = start_training(corpus, out, "--no-compile")
    printed, errors = training.communicate(timeout=300)
    assert training.returncode == 0, errors
    assert f"step {STEPS}/{STEPS}" in printed
    return out


def drawn_tokens() -> dict[str, int]:
    """Tokens of each language by the documented draw: shares ∝ bytes^0.3, one generator per (seed, step)."""
    weights = np.array([FACTS[language].roots_bytes ** 0.3 for language in LANGUAGES])
    counts: Counter[str] = Counter()
    for step in range(STEPS):
        for index in np.random.default_rng([0, step]).choice(20, BATCH, p=weights / weights.sum()):
            counts[LANGUAGES[index]] += LENGTH
    return dict(counts)


@pytest.mark.slow
def test_the_model_loads_in_bfloat16_with_tokenizer_and_the_length_it_was_trained_on(trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.dtype == torch.bfloat16
    assert (model.config.hidden_size, model.config.n_layer, model.config.n_head) == (128, 6, 4)
    assert json.loads((trained / "config.json").read_text())["seq_length"] == LENGTH
    text = "αβγ abc ক 中"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    assert model(ids).logits.shape == (1, ids.shape[1], 320)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)


@pytest.mark.slow
def test_the_distribution_counts_exactly_the_segments_drawn(trained: Path) -> None:
    facts = json.loads((trained / "language_distribution.json").read_text())
    assert facts["unit"] == "tokens"
    assert facts["languages"] == drawn_tokens()
    assert sum(facts["languages"].values()) == STEPS * BATCH * LENGTH
    assert model_distribution(str(trained)).amounts == drawn_tokens()


@pytest.mark.slow
def test_it_learns(corpus: Path, trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    text = pq.read_table(corpus / "en.parquet").column("text")[0].as_py()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :LENGTH]
    assert model(ids, labels=ids).loss.item() < np.log(320) - 0.3


@pytest.mark.slow
def test_a_training_killed_after_a_checkpoint_goes_on_to_the_same_counts_and_weights(
    corpus: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mini"
    killed = start_training(corpus, out, "--no-compile")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("step 10/"):
            killed.kill()
            break
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert not (out / "model.safetensors").exists()

    again = start_training(corpus, out, "--no-compile")
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "goes on from step" in printed
    assert "step 5/" not in printed
    for file in ("language_distribution.json", "tokenizer.json", "config.json"):
        assert (out / file).read_bytes() == (trained / file).read_bytes()
    expected, weights = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_training_killed_between_two_renames_goes_on_from_the_checkpoint_before(
    corpus: Path, trained: Path, tmp_path: Path
) -> None:
    from minis.training_checkpoint import restore

    (tmp_path / "checkpoint.old").symlink_to(trained / "training" / "checkpoint.old")
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    progress = restore(tmp_path / "checkpoint", dict(model.named_parameters()), optimizer)
    assert progress is not None
    assert progress.step == STEPS - 5
    assert sum(progress.drawn.values()) == (STEPS - 5) * BATCH


def broken(folder: Path, language: str, table: pa.Table | None) -> Path:
    path = write_training_corpus(folder / "corpus")
    (path / f"{language}.parquet").unlink()
    if table is not None:
        pq.write_table(table, path / f"{language}.parquet")
    return path


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "ta.parquet: no such file"),
        (pa.table({"words": ["a"]}), "ta.parquet: not a parquet file with a column 'text'"),
        (pa.table({"text": [1, 2]}), "ta.parquet: column 'text' must hold strings, not int64"),
        (pa.table({"text": ["a", None]}), "ta.parquet: 2 rows, 1 of them without text"),
        (pa.table({"text": pa.array([], pa.string())}), "ta.parquet: 0 rows"),
        (pa.table({"text": ["a b c"]}), "language 'ta': its text gives"),
    ],
)
def test_a_bad_corpus_is_refused_in_one_line_that_names_the_file(
    table: pa.Table | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = broken(tmp_path, "ta", table)
    with pytest.raises(SystemExit) as stopped:
        main([str(corpus), str(tmp_path / "out"), "--vocabulary", "320", "--sequence-length", "16", "--threads", "1"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_training_corpus(tmp_path / "corpus")
    (corpus / "sw.parquet").write_text("a tale\n")
    with pytest.raises(SystemExit):
        main([str(corpus), str(tmp_path / "out"), "--vocabulary", "320", "--threads", "1"])
    assert "sw.parquet: not a parquet file" in capsys.readouterr().err.splitlines()[-1]
