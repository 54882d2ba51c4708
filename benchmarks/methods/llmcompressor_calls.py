"""llm-compressor's own functions, called as its modifiers call them: ready inputs in, compressed weight out."""

from collections.abc import Callable

import torch
from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs, QuantizationStrategy
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight as sparsegpt_sparsify
from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight as wanda_sparsify
from llmcompressor.observers import Observer
from torch import Tensor
from torch.nn import Linear

from mbs_ray.methods import GPTQ, Method, Moment, SparseGPT, Wanda

Call = Callable[[], Tensor]

GPTQ_BLOCK = 128
"""Its own default; a matter of speed alone, since its grids do not depend on it."""


def peer_call(method: Method, weight: Tensor, moment: Moment, segments: int) -> Call:
    """What llm-compressor does where mbs_ray does `method.compress(weight, moment)`; to be called once.

    Its functions overwrite what they are given: they get copies, made here and not in the call. Its statistics
    are means over segments: 2/segments Σ x xᵀ, and 1/segments Σ x² for Wanda.
    """
    match method:
        case Wanda():
            return _wanda(method, weight, moment.diagonal() / segments)
        case SparseGPT():
            return _sparsegpt(method, weight, moment.sum * (2 / segments))
        case GPTQ():
            return _gptq(method, weight, moment.sum * (2 / segments))
    raise TypeError(f"no function of llm-compressor for {method}")


def _linear(weight: Tensor) -> Linear:
    rows, columns = weight.shape
    module = Linear(columns, rows, bias=False, device="meta")
    module.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return module


def _pruned_of_group(method: Wanda | SparseGPT) -> tuple[int, int]:
    """Its n of "n:m" counts what is pruned, ours what is kept; (0, 0) is unstructured."""
    kept = method.kept_of_group
    return (0, 0) if kept is None else (kept[1] - kept[0], kept[1])


def _wanda(method: Wanda, weight: Tensor, squares: Tensor) -> Call:
    module = _linear(weight)
    return lambda: wanda_sparsify(module, {module: squares}, method.sparsity, *_pruned_of_group(method))


def _sparsegpt(method: SparseGPT, weight: Tensor, hessian: Tensor) -> Call:
    module = _linear(weight)

    def call() -> Tensor:
        _, pruned = sparsegpt_sparsify(
            module,
            {module: hessian},
            method.sparsity,
            *_pruned_of_group(method),
            block_size=method.block_size,
            dampening_frac=method.damping,
            preserve_sparsity_mask=False,
        )
        return pruned

    return call


def _gptq(method: GPTQ, weight: Tensor, hessian: Tensor) -> Call:
    arguments = QuantizationArgs(
        num_bits=method.bits,
        symmetric=method.symmetric,
        strategy=QuantizationStrategy.CHANNEL if method.group_size is None else QuantizationStrategy.GROUP,
        group_size=method.group_size,
        actorder=ActivationOrdering.STATIC if method.activation_order else None,
    )
    kind = "memoryless_mse" if method.clip_search else "memoryless_minmax"
    observer = Observer.load_from_registry(kind, base_name="weight", args=arguments)
    weights, hessians = weight.clone()[None], hessian[None]

    def call() -> Tensor:
        grid = observer(weight).get_qparams()
        quantized, _, gave_up = quantize_weight(
            weights=weights,
            hessians=hessians,
            scale=grid["scale"][None],
            zero_point=grid["zero_point"][None],
            global_scale=None,
            quant_args=arguments,
            blocksize=GPTQ_BLOCK,
            percdamp=method.damping,
        )
        if gave_up.any():
            raise RuntimeError("llm-compressor could not factorize the Hessian and rounded to nearest")
        return quantized[0]

    return call
