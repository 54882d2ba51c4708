#!/bin/sh
# compressed-tensors 0.17.0 and 0.20.0: weights of 3 bits (5, 6 and 7 likewise) lie differently in `weight_packed` under
# one format name, "pack-quantized". 0.17.0 puts ten values into a word of 32 bits and leaves two bits empty, 0.20.0
# lets a value reach into the next word. Nothing in a file tells which. 0.20.0 reads 3-bit weights that 0.17.0 packed as
# other values and says nothing; 0.17.0 gets too few values of a row that 0.20.0 packed. 4 bits are alike in both.
#
# Seen, of a row of 64 codes, and how many of them are those that were packed:
#   packed by 0.17.0, read by 0.20.0: 3 bits: 64 codes, 16 right
#   packed by 0.17.0, read by 0.20.0: 4 bits: 64 codes, 64 right
#   packed by 0.20.0, read by 0.17.0: 3 bits: 60 codes, 14 right
#   packed by 0.20.0, read by 0.17.0: 4 bits: 64 codes, 64 right
#
# Takes two minutes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.23.0 pydantic loguru psutil
for version in 0.17.0 0.20.0; do
    "$folder/env/bin/pip" install --quiet --no-deps --target "$folder/$version" "compressed-tensors==$version"
done
cat > "$folder/packing.py" <<'PYTHON'
import sys

import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file, save_file


def codes(bits):
    """Make a row of 64 codes, counting from the least to the largest over and over."""
    half = 2 ** (bits - 1)
    return torch.arange(-half, half, dtype=torch.int8).repeat(64 // (2 * half))


_, what, path, by = sys.argv
if what == "pack":
    save_file({str(bits): pack_to_int32(codes(bits).reshape(1, 64), bits) for bits in (3, 4)}, path)
else:
    for bits, packed in sorted(load_file(path).items()):
        read = unpack_from_int32(packed, int(bits), torch.Size([1, 64])).flatten()
        right = int((read == codes(int(bits))[: len(read)]).sum())
        print(f"packed by {by}: {bits} bits: {len(read)} codes, {right} right")
PYTHON
run() { PYTHONPATH="$folder/$1" "$folder/env/bin/python" "$folder/packing.py" "$2" "$folder/$3.safetensors" "$3"; }
run 0.17.0 pack 0.17.0
run 0.20.0 pack 0.20.0
said=$(
    run 0.20.0 read 0.17.0 | sed 's/:/, read by 0.20.0:/'
    run 0.17.0 read 0.20.0 | sed 's/:/, read by 0.17.0:/'
)
echo "$said"
grep '^#   packed by' "$0" | sed 's/^#   //' > "$folder/expected"
echo "$said" | cmp -s - "$folder/expected" || { echo "no longer as described above"; exit 1; }
