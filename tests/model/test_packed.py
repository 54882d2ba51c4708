"""Packed linears: the library's own unpacking gives our codes and, bit for bit, our weights."""

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.methods import METHODS, RTN, Compressed, Magnitude, Method, Moment, Statistic, build_method, method_spec
from mbs_ray.model.packed import IntegerScheme, check_loadable, pack_linear, packed_block
from tests.support.examples import examples


def compress(method: RTN, rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Compressed:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return method.compress(weight, None)


def scheme_of(method: Method) -> IntegerScheme:
    scheme = IntegerScheme.of(method_spec(method))
    assert scheme is not None
    return scheme


def unpacked_by_the_library(parts: dict[str, torch.Tensor], scheme: IntegerScheme) -> torch.Tensor:
    arguments = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        group_size=scheme.group_size,
        strategy="channel" if scheme.group_size is None else "group",
    )
    compressor = PackedQuantizationCompressor
    return compressor.decompress(parts, QuantizationScheme(targets=["Linear"], weights=arguments))["weight"]


@examples(60)
@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    groups=st.none() | st.integers(1, 5),
    group_size=st.sampled_from([1, 3, 4, 16, 32]),
    rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_the_library_unpacks_exactly_the_weight_that_was_written(
    bits: int, symmetric: bool, groups: int | None, group_size: int, rows: int, dtype: torch.dtype, seed: int
) -> None:
    columns = group_size * (groups or 3)
    method = RTN(bits=bits, symmetric=symmetric, group_size=None if groups is None else group_size)
    result = compress(method, rows, columns, dtype, seed)
    parts = pack_linear(result.codes, result.scales, result.zeros, scheme_of(method))
    try:
        check_loadable(rows, columns, scheme_of(method), "up")
    except InputError:
        assert bits == 4 and not symmetric and rows <= 8
        return
    weight = unpacked_by_the_library(parts, scheme_of(method))
    assert weight.dtype == dtype and torch.equal(weight, result.weight)


def test_what_the_library_cannot_unpack_is_named_with_the_fields_that_help() -> None:
    scheme = IntegerScheme(bits=4, group_size=16, symmetric=False)
    with pytest.raises(InputError, match=r"block 0 router: .*8 rows in groups of 16; run with symmetric: true"):
        check_loadable(8, 32, scheme, "block 0 router")
    check_loadable(9, 32, scheme, "block 0 router")
    check_loadable(8, 32, replace(scheme, symmetric=True), "block 0 router")
    check_loadable(8, 32, replace(scheme, group_size=None), "block 0 router")


def test_packed_tensors_have_the_shapes_and_types_that_loaders_expect() -> None:
    method = RTN(bits=3, group_size=8)
    result = compress(method, 96, 40, torch.bfloat16)
    parts = pack_linear(result.codes, result.scales, result.zeros, scheme_of(method))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in parts.items()} == {
        "weight_packed": ((96, 4), torch.int32),
        "weight_scale": ((96, 5), torch.bfloat16),
        "weight_shape": ((2,), torch.int64),
        "weight_zero_point": ((9, 5), torch.int32),
    }
    symmetric = RTN(bits=3, symmetric=True)
    result = compress(symmetric, 96, 40, torch.bfloat16)
    parts = pack_linear(result.codes, result.scales, result.zeros, scheme_of(symmetric))
    assert parts.keys() == {"weight_packed", "weight_scale", "weight_shape"}
    assert parts["weight_scale"].shape == (96, 1)


def test_more_rows_than_are_packed_at_once_keep_their_order() -> None:
    method = RTN(bits=4)
    result = compress(method, 2050, 8, torch.float32)
    parts = pack_linear(result.codes, result.scales, result.zeros, scheme_of(method))
    assert result.codes is not None
    assert torch.equal(unpack_from_int32(parts["weight_packed"], 4, (2050, 8)) + 8, result.codes.to(torch.int8))
    assert torch.equal(unpacked_by_the_library(parts, scheme_of(method)), result.weight)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if hasattr(method, "bits")])
def test_every_method_that_quantizes_packs_as_exactly(name: str, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 32, generator=generator).bfloat16()
    moment = Moment.zeros(32, Statistic.FULL)
    moment.add(torch.randn(200, 32, generator=generator))
    method = build_method({"name": name, "bits": 3, "group_size": 8, "symmetric": symmetric})
    result, scheme = method.compress(weight, moment), scheme_of(method)
    assert torch.equal(
        unpacked_by_the_library(pack_linear(result.codes, result.scales, result.zeros, scheme), scheme), result.weight
    )


def test_a_zero_point_that_a_symmetric_form_cannot_say_is_an_error() -> None:
    result = compress(RTN(bits=4), 8, 16, torch.float32)
    with pytest.raises(AssertionError):
        pack_linear(result.codes, result.scales, result.zeros, IntegerScheme(bits=4, group_size=None, symmetric=True))


def test_a_pruning_method_has_no_scheme() -> None:
    assert IntegerScheme.of(method_spec(Magnitude(sparsity=0.5))) is None


def test_a_packed_block_holds_all_but_the_weights_that_were_packed() -> None:
    dense = {"h.0.norm.weight": torch.ones(2), "h.0.up.weight": torch.ones(2, 2), "h.0.up.bias": torch.ones(2)}
    packed = packed_block(dense, {"h.0.up.weight": {"weight_packed": torch.zeros(2, 1)}})
    assert packed.keys() == {"h.0.norm.weight", "h.0.up.bias", "h.0.up.weight_packed"}
    assert packed["h.0.norm.weight"] is dense["h.0.norm.weight"]
