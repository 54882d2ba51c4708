"""Models that cannot be taken apart are refused by name, before their weights are read and before any actor starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.recorder import Recorder
from mbs_ray.model.support import check_chain
from tests.support.architectures import COMMON, GROUPED
from tests.support.models import write_tokenizer


def mt5() -> PreTrainedModel:
    config = transformers.MT5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return transformers.MT5ForConditionalGeneration(config)


def llama4() -> PreTrainedModel:
    config = transformers.Llama4TextConfig(**COMMON, **GROUPED, num_local_experts=4, intermediate_size_mlp=48)
    return transformers.Llama4ForCausalLM(config)


def zamba() -> PreTrainedModel:
    return transformers.ZambaForCausalLM(
        transformers.ZambaConfig(
            vocab_size=400,
            hidden_size=32,
            attention_hidden_size=64,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            use_mamba_kernels=False,
        )
    )


def gemma3n() -> PreTrainedModel:
    grouped = {**GROUPED, "num_hidden_layers": 5}
    return transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **COMMON,
            **grouped,
            vocab_size_per_layer_input=400,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
            laurel_rank=4,
            layer_types=["sliding_attention"] * 4 + ["full_attention"],
            activation_sparsity_pattern=[0.0] * 5,
        )
    )


def bart_decoder() -> PreTrainedModel:
    config = transformers.BartConfig(
        **COMMON, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64
    )
    return transformers.BartForCausalLM(config)


def mamba() -> PreTrainedModel:
    return transformers.MambaForCausalLM(transformers.MambaConfig(**COMMON, hidden_size=32, num_hidden_layers=2))


def albert() -> PreTrainedModel:
    config = transformers.AlbertConfig(
        vocab_size=400, embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64
    )
    return transformers.AlbertForMaskedLM(config)


REFUSED = {
    mt5: r"config\.json: mt5 is an encoder-decoder, which is not supported: two stacks of blocks, and cross-attention",
    llama4: r"layers\.0\.feed_forward\.experts \(Llama4TextExperts\) holds several experts.* in a form of its own",
    zamba: r"layers\.3\.shared_transf\.\S+ is model\.layers\.1\.shared_transf\.\S+ blocks that have weights in common",
    gemma3n: r"block 0 is given more of a text than its hidden states",
    bart_decoder: r"block 0 never calls encoder_attn\.k_proj",
    mamba: r"block 0 never calls mixer\.",
    albert: r"config\.json: model_type 'albert' has no causal language model",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_model_that_is_no_chain_of_blocks_is_refused(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=REFUSED[make]) as caught:
        Decoder(Checkpoint(tmp_path / "model"), torch.float32)
    assert str(tmp_path / "model") in str(caught.value)
    assert "docs/architectures.md" in str(caught.value)


def test_a_sweep_refuses_it_before_it_reads_a_weight(corpus: Path, tmp_path: Path) -> None:
    mt5().save_pretrained(tmp_path / "mt5")
    write_tokenizer(tmp_path / "mt5")
    run = ["compress", "--model", str(tmp_path / "mt5"), "--corpus", str(corpus), "--method", "magnitude:sparsity=0.5"]
    run += ["--sampling", "equal", "--languages", "en,sw", "--segments", "4", "--sequence-length", "16"]
    result = CliRunner().invoke(app, [*run, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "mt5 is an encoder-decoder" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


class _Add(torch.nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + 1


def test_hidden_states_that_are_changed_between_blocks_and_blocks_called_twice_are_seen(tmp_path: Path) -> None:
    first, second = Recorder(_Add()), Recorder(_Add())
    hidden = torch.ones(1, 2, 3)
    second(first(hidden))
    check_chain(tmp_path, [first, second])
    first(hidden)
    with pytest.raises(InputError, match="calls block 0 2 times, not once"):
        check_chain(tmp_path, [first, second])
    for recorder in (first, second):
        recorder.clear()
    second(2 * first(hidden))
    with pytest.raises(InputError, match="changes the hidden states between blocks before 1"):
        check_chain(tmp_path, [first, second])
