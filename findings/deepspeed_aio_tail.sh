#!/bin/sh
# deepspeed 0.19.8, async_io on a CPU: a tensor whose bytes are no multiple of 512 is not written whole. The call returns
# 0 and wait() counts the write as done; the file is shorter than the tensor, or empty. Activations, moments or
# parameters that are kept on a disk must be padded by whoever writes them.
#
# Seen, bytes of the tensor and of the file:
#   1000 -> 0 (returned 0, done 1)
#   4096 -> 4096 (returned 0, done 1)
#   4100 -> 0 (returned 0, done 1)
#   1048578 -> 1048576 (returned 0, done 1)
#
# Needs a C++ compiler and libaio with its header (Debian: g++ libaio-dev). Takes six minutes, five of them compiling.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 setuptools
"$folder/env/bin/pip" install --quiet deepspeed==0.19.8 ninja
said=$(PATH="$folder/env/bin:$PATH" TORCH_EXTENSIONS_DIR="$folder/build" python - "$folder" 2> "$folder/errors" <<'PYTHON'
import os
import sys

import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

handle = AsyncIOBuilder().load(verbose=False).aio_handle()
for size in (1000, 4096, 4100, 1048578):
    path = f"{sys.argv[1]}/{size}"
    returned = handle.async_pwrite(torch.ones(size, dtype=torch.uint8), path, 0)
    done = handle.wait()
    print(f"seen: {size} -> {os.path.getsize(path)} (returned {returned}, done {done})")
PYTHON
) || { tail -n 5 "$folder/errors"; exit 1; }
said=$(echo "$said" | sed -n 's/^seen: //p')
echo "$said"
grep '^#   [0-9]* ->' "$0" | sed 's/^#   //' > "$folder/expected"
echo "$said" | cmp -s - "$folder/expected" || { echo "no longer as described above"; exit 1; }
