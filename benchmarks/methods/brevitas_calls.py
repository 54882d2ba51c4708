"""What ``against_brevitas.py`` asks of brevitas 0.13.4, in an environment with torch and brevitas alone.

``python brevitas_calls.py FILE BITS OUT``: FILE has ``weight``, ``hessian`` (Σ x̃ x̃ᵀ) and ``cross`` (Σ x x̃ᵀ); OUT gets
the weights of Qronos and GPTQ.
"""

import sys

import brevitas.nn as qnn
import torch
from brevitas.graph.gptq import GPTQ
from brevitas.graph.qronos import Qronos
from brevitas.quant.scaled_int import Int8WeightPerChannelFloat
from safetensors.torch import load_file, save_file


def main() -> None:
    file, bits, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    given = load_file(file)
    rows, columns = given["weight"].shape
    found = {}
    for name, kind in (("qronos", Qronos), ("gptq", GPTQ)):
        layer = qnn.QuantLinear(
            columns, rows, bias=False, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits
        )
        layer.weight.data = given["weight"].clone()
        layer.eval()
        layer(torch.zeros(1, columns))
        solver = kind(
            layer=layer, name=name, act_order=False, len_parallel_layers=1, create_weight_orig=True, num_blocks=100
        )
        solver.H = given["hessian"][None].clone()
        solver.G = given["cross"][None].clone()
        solver.nsamples = 1
        with torch.no_grad():
            solver.single_layer_update()
            found[name] = layer.weight_quant(layer.weight).value.detach().clone()
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, out)


if __name__ == "__main__":
    main()
