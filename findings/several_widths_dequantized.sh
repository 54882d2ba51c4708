#!/bin/sh
# transformers 5.23.0 with compressed-tensors 0.20.0: of a pack-quantized checkpoint whose linears have several widths,
# each named as the target of its config group, `dequantize: true` (unpack while loading) unpacks all linears by the
# first group's width. Nothing is said; the weights of the others are wrong. Without that field every weight is right.
#
# Seen, largest difference of a weight to (code) * scale in a Llama with linears of 4 and 8 bits:
#   as it is           4 bits: 0       8 bits: 0
#   dequantize: true   4 bits: 0       8 bits: 0.0778, where the largest weight is 0.0776
#
# Takes two minutes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 compressed-tensors==0.20.0
cat > "$folder/load.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
torch.set_grad_enabled(False)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, tie_word_embeddings=True,
)
tensors, expected, targets = {}, {}, {4: [], 8: []}
for name, tensor in LlamaForCausalLM(config).state_dict().items():
    if tensor.dim() < 2 or ".layers." not in name:
        if name != "lm_head.weight":
            tensors[name] = tensor.clone()
        continue
    bits, linear = 8 if ".mlp." in name else 4, name.removesuffix(".weight")
    scales = tensor.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (tensor / scales).round().to(torch.int8)
    tensors[f"{linear}.weight_packed"] = pack_to_int32(codes, bits)
    tensors[f"{linear}.weight_scale"] = scales
    tensors[f"{linear}.weight_shape"] = torch.tensor(tensor.shape)
    expected[linear], _ = (codes * scales, targets[bits].append(linear))
groups = {
    f"group_{number}": {
        "targets": linears,
        "weights": {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None},
    }
    for number, (bits, linears) in enumerate(targets.items())
}
config.architectures = ["LlamaForCausalLM"]
for more in ({}, {"dequantize": True}):
    config.quantization_config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": groups, **more,
    }
    folder = Path(sys.argv[1], "-".join(["model", *more]))
    config.save_pretrained(folder)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model(torch.arange(8)[None])  # what lies packed is unpacked by the first forward
    wrong = {
        bits: max(float((model.get_submodule(one).weight - expected[one]).abs().max()) for one in linears)
        for bits, linears in targets.items()
    }
    print(" ".join(more) or "as it is", wrong)
    largest = max(float(one.abs().max()) for one in expected.values())
    print("largest weight", largest)
    assert wrong[4] == 0 and (wrong[8] > largest if more else wrong[8] == 0), (more, wrong, largest)
PYTHON
"$folder/env/bin/python" "$folder/load.py" "$folder"
