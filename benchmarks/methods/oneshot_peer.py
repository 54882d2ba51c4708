"""A whole process of llm-compressor's ``oneshot`` on the token ids of one of our runs, to be timed beside ours.

``time mbs compress --model MODEL … --out OUT`` in our environment, then, on the same cores, in one with llm-compressor
``time python benchmarks/methods/oneshot_peer.py MODEL OUT/segments/….parquet sparsegpt SAVED``.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("segments", type=Path, help="parquet file with the calibration text of our run")
    parser.add_argument("method", choices=("wanda", "sparsegpt", "gptq"), help="50 %%, or 4 bit")
    parser.add_argument("--group-size", type=int, default=128, help="of gptq")
    parser.add_argument("saved", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = pq.read_table(arguments.segments)["token_ids"].to_pylist()
    texts = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    linears = {"targets": ["Linear"], "ignore": ["lm_head"]}
    if arguments.method == "gptq":
        grid = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=arguments.group_size)
        scheme = QuantizationScheme(targets=["Linear"], weights=grid)
        recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    else:
        modifier = SparseGPTModifier if arguments.method == "sparsegpt" else WandaPruningModifier
        recipe = modifier(sparsity=0.5, **linears)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=texts,
        recipe=recipe,
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(arguments.saved)
    tokenizer.save_pretrained(arguments.saved)


if __name__ == "__main__":
    main()
