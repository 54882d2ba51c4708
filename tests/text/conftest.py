"""A tiny byte-level tokenizer as BLOOM's (no token added), and one that begins documents as Llama's does."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.texts import WORDS, some_texts


def save_tokenizer(folder: Path, template: str = "$A", end: bool = True, words: bool = True) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    after = "" if words else ".\n\nthe"
    tokenizer.train_from_iterator((text + after for language in WORDS for text in some_texts(language, 40)), trainer)
    added = [("<s>", 0), ("</s>", 1)]
    if template != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=added)
    special = {"bos_token": "<s>", "eos_token": "</s>"} if end else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def beginning_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("beginning-tokenizer"), "<s> $A")


@pytest.fixture(scope="session")
def endless_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("endless-tokenizer"), end=False)


@pytest.fixture(scope="session")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokens know no words: one may reach from a document over a blank line into the next."""
    return save_tokenizer(tmp_path_factory.mktemp("merging-tokenizer"), words=False)
