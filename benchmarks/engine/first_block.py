"""Seconds from a command to its first compressed block on the disk, for a random BLOOM of 7b1's width.

``python -m benchmarks.engine.first_block OUT``: writes OUT/model once (34 blocks in bfloat16, 13.8 GB), then gives the
command, waits for the block, and interrupts it. The second time the model is in the cache of the disk.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BloomConfig

from mbs_ray.plan.meta_checkpoint import meta_checkpoint

MINI = Path(str(files("mbs_ray") / "mini"))
HIDDEN, HEADS, BLOCKS_OF_SHARD = 4096, 32, 4


def write_model(folder: Path, blocks: int) -> None:
    """A random BLOOM with the tokenizer of a mini; tensors of one shape have the same values."""
    tokenizer = MINI / "models" / "bloom-mini-5m"
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = BloomConfig(vocab_size=vocabulary, hidden_size=HIDDEN, n_layer=blocks, n_head=HEADS, dtype="bfloat16")
    config.architectures = ["BloomForCausalLM"]
    config.save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    shards = defaultdict(list)
    for name in (tensors := meta_checkpoint(str(folder)).tensors):
        number = next((int(part) for part in name.split(".") if part.isdecimal()), -BLOCKS_OF_SHARD)
        shards[number // BLOCKS_OF_SHARD].append(name)
    random = {tuple(one.shape): (torch.randn(one.shape) * 0.02).bfloat16() for one in tensors.values()}
    index = {}
    for number, names in enumerate(shards.values(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        values = {name: random[tuple(tensors[name].shape)].clone() for name in names}
        save_file(values, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def seconds_to_first_block(model: Path, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    options = ("--method", "wanda", "--sampling", "equal", "--languages", "en,fr,sw,hi", "--segments", "4")
    command = [sys.executable, "-m", "mbs_ray.cli", "compress", "--model", model, "--out", out, *options]
    command += ["--sequence-length", "128", "--corpus", MINI / "text" / "calibration"]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "200"})
    while not any(out.glob("compress/runs/*/blocks/*.safetensors")):
        if process.poll() is not None:
            raise SystemExit(f"the command ended with {process.returncode} before its first block")
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    process.send_signal(signal.SIGINT)
    process.wait(120)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=34)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    model = arguments.out.resolve() / "model"
    if not model.is_dir():
        write_model(model, arguments.blocks)
    for _ in range(arguments.repeats):
        print(f"{seconds_to_first_block(model, arguments.out.resolve() / 'run'):.1f} s", flush=True)


if __name__ == "__main__":
    main()
