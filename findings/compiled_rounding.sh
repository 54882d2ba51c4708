#!/bin/sh
# torch 2.13.0, torch.compile on a CPU: a value that is rounded to bfloat16 and widened again inside one compiled
# function is not rounded. For a solver that compensates the rounding of a weight (GPTQ, SparseGPT) the error becomes
# zero, and what is written is another value than the one it compensated for. The option emulate_precision_casts keeps
# the rounding. Nothing is said in either case.
#
# Seen:
#   plain:    written 1.0, error 0.001000046730041504
#   compiled: written 1.0, error 0.0
#   with emulate_precision_casts: written 1.0, error 0.001000046730041504
#
# Needs a C++ compiler. Takes a minute.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/rounding.py" <<'PYTHON'
import torch


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    written = weight.to(torch.bfloat16)
    return written, weight - written.to(torch.float32)


def told(function) -> str:
    written, error = function(torch.full((64,), 1.001))
    return f"written {written[0].item()}, error {error[0].item()}"


kept = torch.compile(rounded, options={"emulate_precision_casts": True})
lines = [f"plain:    {told(rounded)}", f"compiled: {told(torch.compile(rounded))}"]
lines.append(f"with emulate_precision_casts: {told(kept)}")
print("\n".join(lines))
assert lines == [
    "plain:    written 1.0, error 0.001000046730041504",
    "compiled: written 1.0, error 0.0",
    "with emulate_precision_casts: written 1.0, error 0.001000046730041504",
], "this has changed"
PYTHON
TORCHINDUCTOR_CACHE_DIR="$folder/cache" "$folder/env/bin/python" "$folder/rounding.py"
