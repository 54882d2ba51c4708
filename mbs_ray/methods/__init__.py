"""Compress one linear: (weight, second moment of its inputs) -> compressed linear. Needs torch alone.

Imports: ``errors`` and ``files`` alone, so that it can be used as a library.
Begin with ``sparsegpt.py``: a method is a frozen dataclass that is its own configuration.
"""

from mbs_ray.methods.amounts import Amounts, amount_field, with_amount
from mbs_ray.methods.dense_fit import HELD_OUT, Drift, HeldOut, fitted, strengths
from mbs_ray.methods.factor import HessianFactor
from mbs_ray.methods.factored import Factored
from mbs_ray.methods.gptq import GPTQ
from mbs_ray.methods.magnitude import Magnitude
from mbs_ray.methods.moments import Moment, Statistic, moment_bytes
from mbs_ray.methods.obc import OBC, OBQ
from mbs_ray.methods.registry import METHODS, Method, build_method, method_spec
from mbs_ray.methods.result import Compressed, output_error, squared_outputs
from mbs_ray.methods.rtn import RTN
from mbs_ray.methods.sparsegpt import SparseGPT
from mbs_ray.methods.sparsegpt_gptq import SparseGPTQ
from mbs_ray.methods.wanda import Wanda

#: Raise it with any change by which a method gives other bits for the same weight, moment and fields.
ARITHMETIC = 7

__all__ = [
    "ARITHMETIC",
    "GPTQ",
    "HELD_OUT",
    "METHODS",
    "OBC",
    "OBQ",
    "RTN",
    "Amounts",
    "Compressed",
    "Drift",
    "Factored",
    "HeldOut",
    "HessianFactor",
    "Magnitude",
    "Method",
    "Moment",
    "SparseGPT",
    "SparseGPTQ",
    "Statistic",
    "Wanda",
    "amount_field",
    "build_method",
    "fitted",
    "method_spec",
    "moment_bytes",
    "output_error",
    "squared_outputs",
    "strengths",
    "with_amount",
]
