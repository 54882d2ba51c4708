"""Train one of the small BLOOMs of the demo: ``python -m mbs_ray.mini.train CORPUS OUT``.

CORPUS is a folder of ``<language>.parquet`` files with a column ``text``. OUT receives the
finished model (bf16 safetensors, tokenizer, ``language_distribution.json``); ``OUT/training``
holds what a continued training needs: tokens, and the last checkpoint (weights, AdamW moments and
counters, safetensors and JSON). A killed training started again with the same arguments goes on
from there and draws exactly the segments it would have drawn.

The learning rate is constant after a warm-up and falls linearly to zero over the last fifth of
``--tokens``, so the aim can still be moved while training is under way.
"""

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

#: ROOTS bytes of the paper's 20 languages (BLOOM, arXiv 2211.05100, table 1).
ROOTS_BYTES = {
    "en": 484953009124,
    "zh-Hans": 261019433892,
    "fr": 208242620434,
    "es": 175098365045,
    "pt": 79277543375,
    "ar": 74854900600,
    "vi": 43709279959,
    "hi": 24622119985,
    "id": 19972325222,
    "bn": 18606823104,
    "ta": 7989206220,
    "te": 2993407159,
    "ur": 2781329959,
    "ne": 2551307393,
    "mr": 1775483122,
    "gu": 1199986460,
    "zh-Hant": 762489150,
    "sw": 236482543,
    "yo": 89695835,
    "ig": 14078521,
}
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass(frozen=True)
class Shape:
    """Size of a mini BLOOM."""

    hidden_size: int
    layers: int
    heads: int


SHAPES = {"2m": Shape(128, 6, 4), "5m": Shape(192, 8, 8)}


@dataclass
class Progress:
    """Counters of a training: ``drawn`` is the number of segments taken of each language."""

    step: int
    drawn: dict[str, int]
    seconds: float


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    work = arguments.out / "training"
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    shares = _shares(arguments.exponent)
    tokenizer = _tokenizer(arguments, shares, work)
    streams = {
        language: _tokens(arguments.corpus / f"{language}.parquet", tokenizer, work / "tokens") for language in shares
    }
    _train(arguments, shares, tokenizer, streams, work)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mbs_ray.mini.train",
        description="Train a small multilingual BLOOM on a folder of <language>.parquet files.",
        epilog="example: python -m mbs_ray.mini.train corpora/train minis/bloom-mini-5m --shape 5m",
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="5m")
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
    arguments = parser.parse_args(argv)
    for language in ROOTS_BYTES:
        if not (arguments.corpus / f"{language}.parquet").is_file():
            parser.error(f"{arguments.corpus}: no text of {language}: {language}.parquet is missing")
    return arguments


def _shares(exponent: float) -> dict[str, float]:
    tempered = {language: float(size) ** exponent for language, size in ROOTS_BYTES.items()}
    total = sum(tempered.values())
    return {language: value / total for language, value in tempered.items()}


def _texts(path: Path) -> list[str]:
    return pq.read_table(path, columns=["text"]).column("text").to_pylist()


def _tokenizer(arguments: argparse.Namespace, shares: dict[str, float], work: Path) -> Tokenizer:
    path = arguments.tokenizer or work / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample: list[str] = []
    for language, share in shares.items():
        budget = int(8e6 * share)
        for text in _texts(arguments.corpus / f"{language}.parquet"):
            if budget <= 0:
                break
            sample.append(text)
            budget -= len(text.encode())
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.save(str(path))
    return tokenizer


def _tokens(path: Path, tokenizer: Tokenizer, cache: Path) -> np.ndarray:
    """Token ids of all documents of a file, each followed by ``</s>``, as one uint16 array."""
    cache.mkdir(exist_ok=True)
    stored = cache / f"{path.stem}.npy"
    if not stored.is_file():
        end = tokenizer.token_to_id("</s>") or 0
        texts = _texts(path)
        ids: list[int] = []
        for start in range(0, len(texts), 256):
            for encoded in tokenizer.encode_batch(texts[start : start + 256]):
                ids += encoded.ids
                ids.append(end)
        partial = stored.with_suffix(".tmp.npy")
        np.save(partial, np.array(ids, dtype=np.uint16))
        partial.rename(stored)
    return np.load(stored)


def _segment(stream: np.ndarray, drawn: int, length: int, seed: list[int]) -> np.ndarray:
    """The ``drawn``-th segment of a language: a new random order and offset in every epoch."""
    count = len(stream) // length - 1
    epoch, position = divmod(drawn, count)
    generator = np.random.default_rng([*seed, epoch])
    offset = int(generator.integers(length))
    start = int(generator.permutation(count)[position]) * length + offset
    return stream[start : start + length]


def _batch(
    streams: dict[str, np.ndarray],
    shares: dict[str, float],
    drawn: dict[str, int],
    arguments: argparse.Namespace,
    step: int,
) -> torch.Tensor:
    languages = list(shares)
    generator = np.random.default_rng([arguments.seed, step])
    rows = []
    for index in generator.choice(len(languages), arguments.batch, p=list(shares.values())):
        language = languages[index]
        seed = [arguments.seed, 1, int(index)]
        rows.append(_segment(streams[language], drawn[language], arguments.sequence_length, seed))
        drawn[language] += 1
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    return peak * min((step + 1) / warmup, 1.0, (steps - step) / (0.2 * steps))


def _train(
    arguments: argparse.Namespace,
    shares: dict[str, float],
    tokenizer: Tokenizer,
    streams: dict[str, np.ndarray],
    work: Path,
) -> None:
    shape = SHAPES[arguments.shape]
    config = BloomConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden_size,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = BloomForCausalLM(config).to(arguments.device).train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = int(arguments.tokens // (arguments.batch * arguments.sequence_length))
    progress = Progress(0, dict.fromkeys(shares, 0), 0.0)
    if (work / "checkpoint").is_dir():
        progress = _restore(work / "checkpoint", parameters, optimizer)
        print(f"goes on from step {progress.step}", flush=True)
    step_loss = torch.compile(lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss)
    begun, first = time.monotonic(), progress.step
    spent = progress.seconds
    recent: list[float] = []
    while progress.step < steps:
        ids = _batch(streams, shares, progress.drawn, arguments, progress.step).to(arguments.device)
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
            _store(work / "checkpoint", parameters, optimizer, progress)
    _publish(arguments, model, tokenizer, progress)


def _store(
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    partial = folder.with_name("checkpoint.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        tensors[name] = parameter.detach().cpu()
        tensors[f"{name}/exp_avg"] = state["exp_avg"].cpu()
        tensors[f"{name}/exp_avg_sq"] = state["exp_avg_sq"].cpu()
    save_file(tensors, partial / "state.safetensors")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)))
    previous = folder.with_name("checkpoint.old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)


def _restore(folder: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Progress:
    progress = Progress(**json.loads((folder / "progress.json").read_text()))
    with safe_open(folder / "state.safetensors", framework="pt") as stored, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(name))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(progress.step), device=parameter.device),
                "exp_avg": stored.get_tensor(f"{name}/exp_avg").to(parameter.device).clone(),
                "exp_avg_sq": stored.get_tensor(f"{name}/exp_avg_sq").to(parameter.device).clone(),
            }
    return progress


def _publish(arguments: argparse.Namespace, model: BloomForCausalLM, tokenizer: Tokenizer, progress: Progress) -> None:
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    ).save_pretrained(arguments.out)
    tokens = {language: count * arguments.sequence_length for language, count in progress.drawn.items()}
    facts = {"source": "tokens drawn in training", "unit": "tokens", "languages": tokens}
    (arguments.out / "language_distribution.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{arguments.out}: trained on {sum(tokens.values()):,} tokens", flush=True)


if __name__ == "__main__":
    main()
