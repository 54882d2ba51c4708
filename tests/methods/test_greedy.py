"""What OBC and OBQ share: rows in chunks, the damping that was needed, and what they refuse."""

import pytest
import torch
from method_cases import draw, full_moment

from mbs_ray.errors import InputError
from mbs_ray.methods import greedy
from mbs_ray.methods.obc import OBC, OBQ

EVERY = [OBC(), OBC(pattern="2:4"), OBQ(), OBQ(bits=3, group_size=4, symmetric=True)]


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.label)
def test_rows_are_independent_of_how_many_go_at_once(method: OBC | OBQ, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = draw(11, 24)
    whole = method.compress(weight, full_moment(inputs))
    for rows in (1, 4):
        monkeypatch.setattr(greedy, "BUFFER_BYTES", rows * 8 * 24 * 24)
        assert greedy.rows_at_once(24) == rows
        parts = method.compress(weight, full_moment(inputs))
        torch.testing.assert_close(parts.weight, whole.weight)
        assert torch.equal(parts.weight == 0, whole.weight == 0)
        if whole.codes is not None:
            assert torch.equal(parts.codes, whole.codes)
            assert torch.equal(parts.scales, whole.scales)
            assert torch.equal(parts.zeros, whole.zeros)


@pytest.mark.parametrize("cls", [OBC, OBQ])
def test_damping_is_what_it_says_and_raised_where_one_token_leaves_no_inverse(cls: type) -> None:
    weight, inputs = draw(4, 12)
    for damping in (0.0, 0.01, 1.0):
        assert cls(damping=damping).compress(weight, full_moment(inputs)).damping == damping
    one = full_moment(inputs[:1])
    result = cls(damping=0.0).compress(weight, one)
    assert result.damping == 1e-4
    assert result.weight.isfinite().all()
    assert torch.equal(result.weight, cls(damping=1e-4).compress(weight, one).weight)


def test_twin_columns_have_no_inverse_even_where_rounding_makes_one() -> None:
    for seed in range(12):
        weight, inputs = draw(4, 12, seed=seed)
        inputs[:, 7] = inputs[:, 2]
        moment = full_moment(inputs)
        moment.sum[7], moment.sum[:, 7] = moment.sum[2], moment.sum[:, 2]
        moment.sum[7, 7] = torch.nextafter(moment.sum[7, 7], torch.tensor(torch.inf))
        assert int(torch.linalg.cholesky_ex(moment.sum.double()).info) == 0
        assert OBC(damping=0.0).compress(weight, moment).damping == 1e-4


@pytest.mark.parametrize("cls", [OBC, OBQ])
def test_a_hessian_that_is_none_is_an_error_that_names_the_linear(cls: type) -> None:
    weight, inputs = draw(4, 12)
    moment = full_moment(inputs)
    moment.sum[0, 1] = moment.sum[1, 0] = 100 * moment.sum.diagonal().sum()
    with pytest.raises(InputError, match=r"h\.0\.dense: the Hessian cannot be inverted, even with damping 1 \(48 tok"):
        cls().compress(weight, moment, "h.0.dense")


@pytest.mark.parametrize(("cls", "instead"), [(OBC, "sparsegpt"), (OBQ, "gptq")])
def test_a_wide_linear_is_sent_to_the_faster_method(cls: type, instead: str) -> None:
    cls().check(1, 1024, "h.0.dense")
    message = rf"h\.0\.dense: {cls.name} takes linears of at most 1024 columns, this one has 1025; use {instead}"
    with pytest.raises(InputError, match=message):
        cls().check(1, 1025, "h.0.dense")
    with pytest.raises(InputError, match=message):
        cls().compress(torch.ones(1, 1025), None, "h.0.dense")


def test_bad_fields_are_named() -> None:
    for cls in (OBC, OBQ):
        with pytest.raises(InputError, match=f"{cls.name}: damping must be a number from 0 to 1, got 1.5"):
            cls(damping=1.5)
    with pytest.raises(InputError, match="obc: sparsity must be a number from 0 to below 1"):
        OBC(sparsity=50)
    with pytest.raises(InputError, match="obq: bits must be a whole number from 2 to 8, got 9"):
        OBQ(bits=9)
    with pytest.raises(InputError, match=r"mlp: pattern 2:4 needs columns in multiples of 4, this linear has 6"):
        OBC(pattern="2:4").compress(torch.ones(2, 6), None, "mlp")
    with pytest.raises(InputError, match=r"mlp: group_size 4 does not divide the 6 columns"):
        OBQ(group_size=4).compress(torch.ones(2, 6), None, "mlp")
