"""Gradients at the outputs of linears, block by block, against autograd over the whole of a plain model."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mbs_ray.cluster import sensitivity_task as gradients
from mbs_ray.cluster.activations.host_memory import HostMemory
from mbs_ray.compression.layer_error import LayerError
from mbs_ray.compression.sensitivity import Sensitivity, measure_sensitivity, predicted_increase
from mbs_ray.errors import InputError, StageDiedError
from mbs_ray.model import head
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.linears import linears_of
from mbs_ray.text.segment_request import SegmentRequest
from tests.support.architectures import write_architecture
from tests.support.engine import draw_here
from tests.support.models import write_bloom
from tests.support.stages import ONE

TEXTS = {
    language: torch.randint(0, 400, (segments, 16), generator=torch.Generator().manual_seed(segments))
    for language, segments in {"en": 3, "sw": 5}.items()
}


def measured(folder: Path, microbatch: int = 2) -> tuple[Sensitivity, list[tuple[int, int]]]:
    steps, told = measure_sensitivity(Decoder(Checkpoint(folder), torch.float32), TEXTS, microbatch), []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            return end.value, told


def plain(folder: Path, path: str) -> dict[tuple[int, str, str], float]:
    """Mean squared gradients of Σ nll in float64, by (block, linear, language), the whole model at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).requires_grad_(False)
    found = {}
    for language, ids in TEXTS.items():
        outputs = {}

        def keep(key: tuple[int, str], output: torch.Tensor, outputs: dict = outputs) -> None:
            output.requires_grad_(True) if output.is_leaf else output.retain_grad()
            outputs[key] = output

        hooks = [
            linear.register_forward_hook(lambda _, __, output, key=(index, name): keep(key, output))
            for index, block in enumerate(model.get_submodule(path))
            for name, linear in linears_of(block).items()
        ]
        logits = model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        ).backward()
        for hook in hooks:
            hook.remove()
        for (index, name), output in outputs.items():
            found[index, name, language] = float(output.grad.square().mean())
    return found


@pytest.mark.parametrize(
    ("name", "path"), [("bloom", "transformer.h"), ("gpt2", "transformer.h"), ("gemma3-untied", "model.layers")]
)
def test_sensitivity_is_the_mean_squared_gradient_of_the_plain_model(
    name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GPT-2's linears lie transposed; this Gemma caps its logits, so that the head is more than a product.
    folder = write_bloom(tmp_path) if name == "bloom" else write_architecture(tmp_path, name)
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 150)
    found, told = measured(folder)
    flat = {
        (block, linear, language): value
        for block, linears in found.items()
        for linear, own in linears.items()
        for language, value in own.items()
    }
    expected = plain(folder, path)
    assert flat.keys() == expected.keys()
    assert flat == pytest.approx(expected, rel=2e-4)
    total = (2 * len(found) + 1) * 5  # two and three microbatches
    assert told == [(done, total) for done in range(1, total + 1)]


def test_the_size_of_microbatches_changes_no_more_than_rounding(bloom: Path) -> None:
    one, other = measured(bloom, 1)[0], measured(bloom, 8)[0]
    for block, linears in one.items():
        for linear, own in linears.items():
            assert own == pytest.approx(other[block][linear], rel=1e-4)


def test_a_small_change_of_a_weight_raises_the_nll_as_predicted_where_the_second_order_is_all(bloom: Path) -> None:
    """With gradients drawn as the prediction takes them, independent of x and alike in all outputs: by hand."""
    generator = torch.Generator().manual_seed(0)
    change, inputs = torch.randn(6, 4, generator=generator).double(), torch.randn(1000, 4, generator=generator).double()
    gradients = 0.1 * torch.randn(200_000, 6, generator=generator).double()
    s = float(gradients.square().mean())
    products = inputs @ change.T
    brute = sum(0.5 * (gradients @ product).square().mean() for product in products) / len(inputs)
    error = LayerError("sw", "linear", float(products.square().sum()), 1.0)
    predicted = predicted_increase({3: {"linear": {"sw": s}}}, [(3, error)], len(inputs))
    assert predicted["sw"] == pytest.approx(float(brute), rel=0.01)


def test_what_is_predicted_adds_up_over_blocks_and_linears_and_an_uncalled_linear_counts_as_nothing() -> None:
    known: Sensitivity = {0: {"a": {"en": 2.0, "sw": 4.0}}, 1: {"b": {"en": 1.0, "sw": 0.5}}}
    errors = [
        *((0, LayerError(code, "a", 10.0, 1.0)) for code in ("en", "sw")),
        *((1, LayerError(code, "b", 8.0, 1.0)) for code in ("en", "sw")),
        (1, LayerError("en", "never", 1e9, 1.0)),
    ]
    assert predicted_increase(known, errors, 4) == {"en": 0.5 * (20 + 8) / 4, "sw": 0.5 * (40 + 4) / 4}


def test_gradients_that_are_not_finite_name_the_language(tmp_path: Path) -> None:
    folder = write_bloom(tmp_path, dtype=torch.float32)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("h.1.mlp.dense_h_to_4h.weight"))
    tensors[name] = tensors[name] * 1e38
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"en: gradients at block \d .* are not finite"):
        measured(folder)


def test_without_room_for_the_inputs_of_all_blocks_it_does_not_begin(
    bloom: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SegmentRequest(corpus, str(bloom), ("en",), {"en": 3}, 16)
    texts = {"en": draw_here(request, tmp_path).path}
    # Four blocks, two segments of 16 tokens, 32 columns of float32.
    needed, whole = 4 * 2 * 16 * 32 * 4, HostMemory(10**6)
    monkeypatch.setattr(gradients, "host_memory", lambda: HostMemory(10**6, whole.budget - needed + 1))
    with pytest.raises(InputError, match="take fewer sensitivity_segments"):
        next(gradients.measure_files(bloom, "float32", 1, texts, 2, ONE))
    monkeypatch.setattr(gradients, "host_memory", lambda: HostMemory(10**6, whole.budget - needed))
    *steps, found = gradients.measure_files(bloom, "float32", 1, texts, 2, ONE)
    assert steps[-1] == (18, 18) and list(found) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_in_one_line(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path: Path
) -> None:
    def kill(done: int, total: int) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cmdline").read_bytes().startswith(b"ray::measure_files"):
                    os.kill(int(process.name), signal.SIGKILL)

    request = SegmentRequest(corpus, str(bloom), ("en",), {"en": 300}, 32, allow_repeat=True)
    texts = {"en": draw_here(request, tmp_path).path}
    with pytest.raises(StageDiedError, match="the process that measures sensitivities died") as error:
        gradients.sensitivity_on_cluster(bloom, "float32", 1, texts, 300, ONE, kill)
    assert "\n" not in str(error.value)
