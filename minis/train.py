"""Train a small multilingual model, such as the BLOOMs of the demo: ``python -m minis.train CORPUS OUT``.

CORPUS is a folder of ``<language>.parquet`` files with a column ``text``. OUT receives the
finished model (bf16 safetensors, tokenizer, ``language_distribution.json``); ``OUT/training``
holds what a resumed training needs: tokens, and the last checkpoint (weights, AdamW moments and
counters, safetensors and JSON). A killed training restarted with the same arguments resumes
there and draws exactly the segments it would have drawn.

The learning rate is constant after a warm-up and falls linearly to zero over the last fifth of
``--tokens``, so the target can still be changed while training is under way.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mbs_ray.errors import InputError
from mbs_ray.languages.distribution import DISTRIBUTION_FILE
from minis.shapes import SHAPES, shape_config
from minis.training_checkpoint import TrainingCounters, restore, store
from minis.training_text import SegmentDraw, make_tokenizer, shares, token_stream

LARGEST_VOCABULARY = 2**16  # token ids are kept as uint16


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says; exits with status 2 for wrong input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _run(arguments)
    except InputError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minis.train",
        description="Train a small multilingual model on a folder of <language>.parquet files.",
        epilog="example: python -m minis.train corpora/train minis/bloom-mini-5m --shape 5m",
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="5m")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument("--tokens", type=float, default=15e6, help="tokens to train on")
    parser.add_argument("--exponent", type=float, default=0.3, help="share ∝ (ROOTS bytes)^exponent")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=24, help="segments in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="torch.compile: a minute at the start, faster steps; it changes the last bits",
    )
    return parser


def _run(arguments: argparse.Namespace) -> None:
    if arguments.vocabulary > LARGEST_VOCABULARY:
        raise InputError(f"--vocabulary {arguments.vocabulary}: at most {LARGEST_VOCABULARY}")
    if arguments.tokenizer is not None and not arguments.tokenizer.is_file():
        raise InputError(f"--tokenizer {arguments.tokenizer}: no such file")
    work = arguments.out / "training"
    work.mkdir(parents=True, exist_ok=True)
    by_language = shares(arguments.exponent)
    tokenizer = make_tokenizer(
        arguments.corpus, by_language, arguments.vocabulary, arguments.tokenizer or work / "tokenizer.json"
    )
    streams = {
        language: token_stream(arguments.corpus, language, tokenizer, work / "tokens") for language in by_language
    }
    segments = SegmentDraw(streams, by_language, arguments.batch, arguments.sequence_length, arguments.seed)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model = _build(arguments, tokenizer.get_vocab_size())
    progress = _train(arguments, model, segments, list(by_language), work / "checkpoint")
    _publish(arguments, model, tokenizer, progress)


def _build(arguments: argparse.Namespace, vocabulary: int) -> PreTrainedModel:
    config = shape_config(arguments.shape, vocabulary, arguments.sequence_length)
    return AutoModelForCausalLM.from_config(config).to(arguments.device).train()


def _rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    return peak * min((step + 1) / warmup, 1.0, (steps - step) / (0.2 * steps))


def _train(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    segments: SegmentDraw,
    languages: Sequence[str],
    checkpoint: Path,
) -> TrainingCounters:
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = int(arguments.tokens // (arguments.batch * arguments.sequence_length))
    progress = restore(checkpoint, parameters, optimizer)
    if progress is None:
        progress = TrainingCounters(0, dict.fromkeys(languages, 0), 0.0)
    else:
        print(f"goes on from step {progress.step}", flush=True)

    def step_loss(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    if arguments.compile:
        step_loss = torch.compile(step_loss)
    begun, first = time.monotonic(), progress.step
    spent = progress.seconds
    recent: list[float] = []
    while progress.step < steps:
        ids = segments.batch(progress.step, progress.drawn).to(arguments.device)
        for group in optimizer.param_groups:
            group["lr"] = _rate(progress.step, steps, arguments.learning_rate)
        with torch.autocast(arguments.device, dtype=torch.bfloat16):
            loss = step_loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(float(loss.detach()))
        progress.step += 1
        progress.seconds = spent + time.monotonic() - begun
        if progress.step % arguments.checkpoint_every == 0 or progress.step == steps:
            rate = (progress.step - first) * ids.numel() / (time.monotonic() - begun)
            print(
                f"step {progress.step}/{steps}  loss {np.mean(recent):.4f}  {rate:,.0f} tokens/s  "
                f"{(steps - progress.step) * ids.numel() / rate / 60:.0f} min left",
                flush=True,
            )
            recent.clear()
            store(checkpoint, parameters, optimizer, progress)
    return progress


def _publish(
    arguments: argparse.Namespace, model: PreTrainedModel, tokenizer: Tokenizer, progress: TrainingCounters
) -> None:
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False  # wanted of the router by the training's loss only
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    ).save_pretrained(arguments.out)
    tokens = {language: count * arguments.sequence_length for language, count in progress.drawn.items() if count}
    facts = {"source": "tokens drawn in training", "unit": "tokens", "languages": tokens}
    (arguments.out / DISTRIBUTION_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{arguments.out}: trained on {sum(tokens.values()):,} tokens", flush=True)


if __name__ == "__main__":
    main()
