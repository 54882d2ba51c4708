"""The head's share of an evaluation: our scoring, in chunks of the vocabulary, beside a plain loop over segments.

``python -m benchmarks.engine.head``: a random BLOOM of the 560m's width and vocabulary with one block, on CPUs or the
first GPU. The plain loop keeps the head on the device and computes the logits of a segment at a time.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import BloomConfig, BloomForCausalLM

from mbs_ray.evaluation.scoring import score
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.decoder import Decoder

_VOCABULARY, _WIDTH = 250_880, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--microbatch", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.segments, arguments.length)
    ids = torch.randint(_VOCABULARY, shape, generator=generator)
    hidden = torch.randn(*shape, _WIDTH, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        config = BloomConfig(vocab_size=_VOCABULARY, hidden_size=_WIDTH, n_layer=1, n_head=16)
        BloomForCausalLM(config).save_pretrained(folder)
        decoder = Decoder(Checkpoint(Path(folder)), torch.float32, device)
        pairs = list(zip(hidden.split(arguments.microbatch), ids.split(arguments.microbatch), strict=True))
        weight, _ = decoder.head_rows(0, _VOCABULARY)

        def ours() -> torch.Tensor:
            return torch.cat([one.nll for one in score(decoder, pairs)])

        def plain() -> torch.Tensor:
            rows = []
            for states, tokens in zip(hidden, ids, strict=True):
                logits = states[:-1].to(device) @ weight.t()
                rows.append(torch.nn.functional.cross_entropy(logits, tokens[1:].to(device), reduction="none").cpu())
            return torch.stack(rows)

        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(arguments.times):
            for name, way in (("ours", ours), ("plain", plain)):
                begun = time.monotonic()
                result = way()
                seconds[name].append(time.monotonic() - begun)
        difference = float((ours() - result).abs().max())
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    print(f"{arguments.segments} × {arguments.length} tokens, {device}, {torch.get_num_threads()} threads")
    print("; ".join(f"{name} {value:.2f} s" for name, value in medians.items()))
    print(f"ours ÷ plain {medians['ours'] / medians['plain']:.2f}; largest difference of an nll {difference:.1e}")


if __name__ == "__main__":
    main()
