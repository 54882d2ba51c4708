"""What every method promises, whatever it does."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from method_cases import collected, draw, full_moment, hessian64
from torch import Tensor

from mbs_ray.errors import InputError
from mbs_ray.methods import (
    GPTQ,
    METHODS,
    OBC,
    OBQ,
    RTN,
    Magnitude,
    Method,
    Moment,
    SparseGPT,
    SparseGPTQ,
    Statistic,
    Wanda,
    output_error,
)

METHOD_CASES: list[Any] = [
    Magnitude(),
    Magnitude(pattern="2:4"),
    RTN(bits=3),
    RTN(group_size=8, symmetric=True),
    Wanda(),
    Wanda(pattern="2:4"),
    Wanda(scope="share"),
    SparseGPT(block_size=8),
    SparseGPT(block_size=8, scope="row"),
    SparseGPT(pattern="2:4"),
    GPTQ(bits=3),
    GPTQ(group_size=8, symmetric=True),
    GPTQ(group_size=8, activation_order=True, clip_search=True),
    SparseGPTQ(bits=4, group_size=8, block_size=8),
    SparseGPTQ(bits=4, pattern="2:4"),
    OBC(),
    OBC(pattern="2:4"),
    OBQ(bits=3, group_size=8),
]
every_method = pytest.mark.parametrize("method", METHOD_CASES, ids=lambda method: method.label)
NEEDY = [method for method in METHOD_CASES if method.statistic is not Statistic.NONE]


def parts(method: Method, weight: Tensor, moment: Moment) -> list[Any]:
    result = method.compress(weight, moment)
    tensors = [result.weight, result.codes, result.scales, result.zeros]
    return [None if t is None else t.cpu() for t in tensors] + [result.loss, result.damping]


def same(first: list[Any], second: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(first, second, strict=True))


def test_every_method_is_covered_here() -> None:
    assert {method.name for method in METHOD_CASES} == set(METHODS)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_that_of_the_weight_as_returned(method: Method, dtype: torch.dtype) -> None:
    weight, inputs = draw(12, 24, dtype=dtype)
    result = method.compress(weight, full_moment(inputs))
    assert result.weight.dtype == dtype
    assert result.weight.shape == weight.shape
    assert result.weight.is_contiguous()
    change, hessian = result.weight.double() - weight.double(), hessian64(inputs)
    expected = float((change @ hessian * change).sum())
    assert result.loss == pytest.approx(expected, rel=1e-4)
    energy = float((weight.double() @ hessian * weight.double()).sum())
    assert output_error(weight, result.weight, full_moment(inputs)) == pytest.approx(
        (expected, expected / energy), rel=1e-4
    )
    assert result.sparsity == pytest.approx(float((result.weight == 0).double().mean()))
    assert (result.codes is None) == (result.group_size is None) != hasattr(method, "bits")


@every_method
@pytest.mark.parametrize("shape", [(6, 16), (1, 16), (6, 8), (1, 8)])
def test_weight_and_moment_are_left_as_they_are(method: Method, shape: tuple[int, int]) -> None:
    weight, inputs = draw(*shape)
    weight = torch.nn.Parameter(weight)
    moment = full_moment(inputs)
    copies = weight.detach().clone(), moment.sum.clone()
    result = method.compress(weight, moment)
    assert torch.equal(weight, copies[0])
    assert torch.equal(moment.sum, copies[1])
    assert result.weight.data_ptr() != weight.data_ptr()
    assert not result.weight.requires_grad


@pytest.mark.parametrize("method", [Magnitude(), RTN(), Wanda(), SparseGPT(), GPTQ()], ids=lambda m: m.name)
def test_a_single_column_is_left_as_it_is(method: Method) -> None:
    weight, inputs = draw(6, 1)
    before = weight.clone()
    method.compress(weight, full_moment(inputs))
    assert torch.equal(weight, before)


@every_method
def test_the_same_call_gives_the_same_bits(method: Method) -> None:
    weight, inputs = draw(12, 24)
    first = parts(method, weight, full_moment(inputs))
    other, other_inputs = draw(5, 8, seed=9)
    method.compress(other, full_moment(other_inputs))
    assert same(first, parts(method, weight, full_moment(inputs)))


@every_method
def test_a_weight_may_be_any_view(method: Method) -> None:
    weight, inputs = draw(12, 24)
    moment = full_moment(inputs)
    view = torch.stack([weight.t().contiguous()] * 2, dim=2)[..., 0].t()
    assert not view.is_contiguous()
    assert same(parts(method, view, moment), parts(method, weight, moment))


@every_method
def test_one_token_is_enough_for_a_finite_result(method: Method) -> None:
    weight, inputs = draw(6, 16, tokens=1)
    assert method.compress(weight, full_moment(inputs)).weight.isfinite().all()


@every_method
def test_columns_that_are_all_dead_are_counted(method: Method) -> None:
    weight, _ = draw(6, 16)
    result = method.compress(weight, full_moment(torch.zeros(5, 16)))
    assert result.dead_columns == 16
    assert result.loss == 0.0
    assert result.sparsity < 0.6


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_name_the_linear(method: Method, bad: float) -> None:
    weight, inputs = draw(6, 16)
    moment = full_moment(inputs)
    broken = weight.clone()
    broken[2, 3] = bad
    with pytest.raises(InputError, match=r"h\.1\.mlp: the weight holds NaN or Inf"):
        method.compress(broken, moment, "h.1.mlp")
    moment.sum[4, 4] = bad
    with pytest.raises(InputError, match=r"h\.1\.mlp: the second moment holds NaN or Inf"):
        method.compress(weight, moment, "h.1.mlp")


@pytest.mark.parametrize("method", NEEDY, ids=lambda method: method.label)
def test_a_missing_or_empty_moment_names_the_linear(method: Method) -> None:
    weight, _ = draw(6, 16)
    needs = rf"h\.1\.mlp: {re.escape(method.name)} needs the {method.statistic.value} moment, got none"
    with pytest.raises(InputError, match=needs):
        method.compress(weight, None, "h.1.mlp")
    with pytest.raises(InputError, match=r"h\.1\.mlp: the moment holds no token"):
        method.compress(weight, Moment.zeros(16, Statistic.FULL), "h.1.mlp")


@every_method
def test_the_statistic_asked_for_is_enough(method: Method) -> None:
    weight, inputs = draw(6, 16)
    moment = None if method.statistic is Statistic.NONE else collected(inputs, method.statistic)
    result = method.compress(weight, moment)
    assert torch.equal(result.weight, method.compress(weight, full_moment(inputs)).weight)
    assert (result.loss is None) == (method.statistic is not Statistic.FULL)


@pytest.mark.parametrize("method", [SparseGPT(), GPTQ(), SparseGPTQ()], ids=lambda method: method.name)
def test_a_diagonal_is_not_enough_where_the_full_moment_is_needed(method: Method) -> None:
    weight, inputs = draw(6, 16)
    with pytest.raises(InputError, match="needs the full moment, got the diagonal one"):
        method.compress(weight, collected(inputs, Statistic.DIAGONAL))


@every_method
def test_shapes_and_dtypes_that_do_not_fit_name_the_linear(method: Method) -> None:
    _, inputs = draw(1, 16)
    moment = full_moment(inputs)
    with pytest.raises(InputError, match=r"mlp: the moment has 16 columns, the weight 8"):
        method.compress(torch.ones(2, 8), moment, "mlp")
    for weight in (torch.ones(16), torch.ones(0, 16), torch.ones(2, 16, dtype=torch.float64)):
        with pytest.raises(InputError, match=r"mlp: a weight must be \[rows, columns\]"):
            method.compress(weight, moment, "mlp")


def test_a_result_that_overflows_the_dtype_is_an_error() -> None:
    # The first weight's removal doubles the second, beyond float16.
    weight = torch.tensor([[60000.0, 60000.0]], dtype=torch.float16)
    moment = full_moment(torch.tensor([[1.0, 1.0]]))
    with pytest.raises(InputError, match=r"mlp: the compressed weight does not fit torch\.float16"):
        SparseGPT(damping=1e-4).compress(weight, moment, "mlp")


def test_settings_of_the_solver_are_checked() -> None:
    for cls in (SparseGPT, SparseGPTQ):
        with pytest.raises(InputError, match=f"{re.escape(cls.name)}: block_size must be .* at least 1, got 0"):
            cls(block_size=0)
    for cls in (SparseGPT, GPTQ, SparseGPTQ):
        with pytest.raises(InputError, match=f"{re.escape(cls.name)}: damping must be a number from 0 to 1, got 1.5"):
            cls(damping=1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_method
def test_cuda_gives_what_the_cpu_gives(method: Method) -> None:
    weight, inputs = draw(12, 24)
    moment = full_moment(inputs)
    there = Moment(moment.statistic, moment.columns, moment.tokens, moment.sum.cuda())
    cpu, cuda = parts(method, weight, moment), parts(method, weight.cuda(), there)
    torch.testing.assert_close(cuda[0], cpu[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(cuda[0] == 0, cpu[0] == 0)


def test_the_library_needs_torch_alone() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import mbs_ray.methods\n"
        "roots = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(roots - set(sys.stdlib_module_names) - {'torch', 'mbs_ray'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("", "")
