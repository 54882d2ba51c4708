"""Small random models, tokenizers and texts that tests make for themselves."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = {
    "en": "The river was high that spring, and nobody crossed it before noon. ",
    "fr": "La rivière était haute ce printemps-là, et personne ne la passait avant midi. ",
    "sw": "Mto ulikuwa umejaa msimu huo, na hakuna aliyeuvuka kabla ya saa sita mchana. ",
    "hi": "उस वसंत में नदी चढ़ी हुई थी और दोपहर से पहले कोई उसे पार नहीं करता था। ",
}


HELD_OUT = 1000


def documents(language: str, count: int, first: int = 0) -> list[str]:
    """Documents of different lengths; each has a number of its own, from ``first``."""
    return [f"{number} " + TEXTS[language] * (1 + number % 5) for number in range(first, first + count)]


def write_corpus(folder: Path, count: int = 60, languages: tuple[str, ...] = tuple(TEXTS), first: int = 0) -> Path:
    """``first=HELD_OUT`` gives documents that no corpus without it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in languages:
        (folder / f"{language}.txt").write_text("\n\n".join(documents(language, count, first)) + "\n", encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, vocabulary: int = 400) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(TEXTS.values()), trainer)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_bloom(
    folder: Path, layers: int = 4, hidden: int = 32, heads: int = 4, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A random BLOOM as ``save_pretrained`` leaves it, with weights large enough to matter."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=400, hidden_size=hidden, n_layer=layers, n_head=heads, initializer_range=0.3)
    config.seq_length = 128
    BloomForCausalLM(config).to(dtype).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_llama(folder: Path, layers: int = 3) -> Path:
    """A random Llama with grouped queries and a head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def to_hub_layout(source: Path, target: Path) -> Path:
    """The same BLOOM as the hub has it: bare names, several shards and an index."""
    import json
    import shutil

    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    names = sorted(bare)
    third = -(-len(names) // 3)
    shards = [names[start : start + third] for start in range(0, len(names), third)]
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: bare[name] for name in shard}, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target
