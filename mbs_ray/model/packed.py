"""Quantized linears in the ``pack-quantized`` form of compressed-tensors, which transformers and vLLM read.

The packing and the configuration are made by that library; this module only gives it its arguments.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mbs_ray.errors import InputError

#: Rows packed at once: the library needs about 16 bytes of memory per weight while it packs.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class IntegerScheme:
    """How all linears of a run are quantized: ``group_size`` columns share a scale, None: the whole row."""

    bits: int
    group_size: int | None
    symmetric: bool

    @classmethod
    def of(cls, method: Mapping[str, Any]) -> "IntegerScheme | None":
        """Return the scheme of a method, given as the mapping that builds it; None for a method without ``bits``."""
        if method.get("bits") is None:
            return None
        return cls(method["bits"], method["group_size"], method["symmetric"])

    def stored_names(self, weight: str) -> set[str]:
        """Return the names of the tensors that replace the stored tensor ``….weight`` of a linear."""
        parts = {"weight_packed", "weight_scale", "weight_shape"}
        if not self.symmetric:
            parts.add("weight_zero_point")
        return {weight.removesuffix("weight") + part for part in parts}


@dataclass(frozen=True)
class Schemes:
    """How the linears of a run are quantized, by block and linear: all alike, or in ``widths`` of their own."""

    common: IntegerScheme
    widths: Mapping[int, Mapping[str, int]] | None = None

    def of(self, block: int, linear: str) -> IntegerScheme:
        if self.widths is None:
            return self.common
        return replace(self.common, bits=self.widths[block][linear])

    @property
    def all(self) -> list[IntegerScheme]:
        """The distinct schemes, by their bits."""
        if self.widths is None:
            return [self.common]
        bits = sorted({one for block in self.widths.values() for one in block.values()})
        return [replace(self.common, bits=one) for one in bits]


def pack_linear(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, scheme: IntegerScheme
) -> dict[str, torch.Tensor]:
    """Pack the ``weight`` [rows, columns] of a linear into the tensors that are stored instead, on the host.

    ``weight_packed`` int32 [rows, ⌈columns · bits / 32⌉], ``weight_scale`` [rows, groups] in the weight's dtype,
    ``weight_shape`` int64 [2] and, unless symmetric, ``weight_zero_point`` int32 [⌈rows · bits / 32⌉, groups].
    """
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    packed = [pack_to_int32(_signed(rows, scheme.bits), scheme.bits).cpu() for rows in codes.split(_ROWS_AT_ONCE)]
    tensors = {
        "weight_packed": torch.cat(packed),
        "weight_scale": scales.cpu(),
        "weight_shape": torch.tensor(codes.shape),
    }
    if scheme.symmetric:
        # The form has no place for another zero point than this one.
        assert bool((zeros == _middle(scheme.bits)).all())
    else:
        tensors["weight_zero_point"] = pack_to_int32(_signed(zeros, scheme.bits), scheme.bits, 0).cpu()
    return tensors


def check_loadable(rows: int, columns: int, scheme: IntegerScheme, linear: str) -> None:
    """Raise :class:`InputError` if the library packs a linear of this shape but cannot unpack it again."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32

    if scheme.symmetric:
        return
    zeros = torch.zeros(rows, columns // (scheme.group_size or columns), dtype=torch.int8)
    try:
        unpack_from_int32(pack_to_int32(zeros, scheme.bits, 0), scheme.bits, zeros.shape, 0)
    except RuntimeError as error:
        raise InputError(
            f"{linear}: compressed-tensors cannot unpack the zero points of {rows} rows in groups of "
            f"{scheme.group_size}; run with symmetric: true or without group_size, or export plain safetensors"
        ) from error


def packed_block(
    dense: Mapping[str, torch.Tensor], packed: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Replace weights in a block, by stored name, by the tensors that :func:`pack_linear` returned for them."""
    block = {name: tensor for name, tensor in dense.items() if name not in packed}
    for weight, parts in packed.items():
        block |= {weight.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    return block


def write_quantization(
    folder: Path, targets: Sequence[tuple[IntegerScheme, Sequence[str]]], ignored: Iterable[str]
) -> None:
    """Add a ``quantization_config`` to the folder's config.json; ``ignored`` linears (module names) are not packed.

    ``targets``: linears by scheme, as classes or module names.
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        QuantizationStrategy,
    )

    groups = {}
    for number, (scheme, names) in enumerate(targets):
        weights = QuantizationArgs(
            num_bits=scheme.bits,
            symmetric=scheme.symmetric,
            group_size=scheme.group_size,
            strategy=QuantizationStrategy.CHANNEL if scheme.group_size is None else QuantizationStrategy.GROUP,
        )
        groups[f"group_{number}"] = QuantizationScheme(targets=list(names), weights=weights)
    config = QuantizationConfig(
        config_groups=groups,
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignored),
    )
    ModelCompressor(quantization_config=config).update_config(str(folder))
    # Unless told to unpack while it loads, transformers 5.23 makes place for the tensors by packing a model without
    # memory, where compressed-tensors 0.20 leaves zero points unpacked: no asymmetric checkpoint would load. Told so,
    # it unpacks all linears by the first group's scheme, whatever their own.
    if len(groups) > 1:
        return
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["quantization_config"]["dequantize"] = True
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _middle(bits: int) -> int:
    return 2 ** (bits - 1)


def _signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift our codes, which count from 0, to the library's, which count from -2^(bits-1), as int8."""
    return (codes.to(torch.int16) - _middle(bits)).to(torch.int8)
