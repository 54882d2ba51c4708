"""A whole process of llm-compressor's ``oneshot`` on the token ids of one of our runs, to be timed beside ours.

``time mbs compress --model MODEL … --out OUT`` in our environment, then, on the same cores, in one with llm-compressor
``time python benchmarks/methods/oneshot_peer.py MODEL OUT/segments/….parquet sparsegpt SAVED``.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("segments", type=Path, help="parquet file with the calibration text of our run")
    parser.add_argument("method", choices=("sparsegpt", "gptq"), help="50 %%, or 4 bit in groups of 128")
    parser.add_argument("saved", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = pq.read_table(arguments.segments)["token_ids"].to_pylist()
    texts = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    linears = {"targets": ["Linear"], "ignore": ["lm_head"]}
    recipe = (
        SparseGPTModifier(sparsity=0.5, **linears)
        if arguments.method == "sparsegpt"
        else GPTQModifier(scheme="W4A16", **linears)
    )
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
