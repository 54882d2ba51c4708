"""The head's share of an evaluation: our scoring, in chunks of the vocabulary, beside a plain loop over segments.

``python -m benchmarks.engine.head``: a random BLOOM of the 560m's width and vocabulary with one block, on CPUs or the
first GPU, and what the plan says. The plain loop keeps the head on the device and computes the logits of a segment at
a time.
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
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.planned_work import PlannedScore, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.stage_time import head_seconds

_VOCABULARY, _WIDTH = 250_880, 1024


def _config() -> BloomConfig:
    return BloomConfig(vocab_size=_VOCABULARY, hidden_size=_WIDTH, n_layer=1, n_head=16)


def _planned(batches: TokenBatches, device: str) -> float:
    """Plan the head of these tokens as ``mbs plan --measure`` does, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        _config().save_pretrained(folder)
        work = PlannedScore("head", MetaDecoder(meta_checkpoint(folder), torch.float32), (batches,))
        cuda, threads = device == "cuda", torch.get_num_threads()
        rates = measure_rates([work], assumed_rates("", cuda, threads, torch.float32), Path(folder))
        return head_seconds(work, rates, cuda)


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
        BloomForCausalLM(_config()).save_pretrained(folder)
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
    planned = _planned(TokenBatches(arguments.segments, arguments.length, arguments.microbatch), device)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    print(f"{arguments.segments} × {arguments.length} tokens, {device}, {torch.get_num_threads()} threads")
    print("; ".join(f"{name} {value:.2f} s" for name, value in medians.items()))
    print(f"planned, by the measured rates: {planned:.2f} s; ours ÷ planned {medians['ours'] / planned:.2f}")
    print(f"ours ÷ plain {medians['ours'] / medians['plain']:.2f}; largest difference of an nll {difference:.1e}")


if __name__ == "__main__":
    main()
