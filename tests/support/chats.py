"""Conversations in every format, and tokenizers with the three public styles of chat templates, in our own wording."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support.texts import some_texts

#: Turns between <|im_start|> and <|im_end|>, contents as they are, a system turn of its own where none is given.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nAnswer briefly.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Headers, the begin token first, contents trimmed, the day named.
HEADERS = (
    "{{ bos_token }}{% if strftime_now is defined %}Day: {{ strftime_now('%d %b %Y') }}\n{% endif %}"
    "{% for message in messages %}<|head|>{{ message['role'] }}<|/head|>\n\n{{ message['content'] | trim }}<|eot|>"
    "{% endfor %}"
)
#: Turns of user and model alone, in turn; what the system says stands before the first user's words.
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ (first if loop.first else '') + message['content'] | trim }}</turn>\n{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "turns": TURNS}
_MARKUP = ("<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<turn>", "</turn>")


def with_template(plain: Path, folder: Path, template: str) -> Path:
    """A tokenizer like another one, with a chat template and the tokens it writes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plain)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _MARKUP])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def some_chats(language: str, count: int, words: int = 20) -> list[list[dict[str, str]]]:
    """Conversations of two or four messages, every third begun by the system, some with white space around."""
    texts = iter(some_texts(language, 5 * count, words))
    chats = []
    for number in range(count):
        system = [{"role": "system", "content": next(texts)}] if number % 3 == 0 else []
        turns = [
            {"role": role, "content": next(texts) + (" \n" if number % 5 == 0 else "")}
            for role in ("user", "assistant") * (1 + number % 2)
        ]
        chats.append([*system, *turns])
    return chats


def as_sharegpt(chat: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": speakers[message["role"]], "value": message["content"]} for message in chat]


def write_chats(path: Path, chats: Sequence[Any], column: str = "messages", group: int = 4) -> None:
    """To parquet, or to JSON lines of any compression, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(chats)), column: chats}), path, row_group_size=group)
        return
    content = "".join(json.dumps({column: chat}, ensure_ascii=False) + "\n" for chat in chats).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
