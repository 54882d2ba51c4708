"""Conversations: what a row of a chat corpus holds, checked, and carried as a document's text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

#: How conversations become segments: one after the other as text is, or one in each segment.
Chat = Literal["packed", "one_per_segment"]
CHATS: tuple[Chat, ...] = ("packed", "one_per_segment")
#: The column of a chat corpus, where none is named.
MESSAGES = "messages"
#: Field of the speaker and field of the words, of the two ways in which messages are written.
FIELDS = (("role", "content"), ("from", "value"))
#: Speakers of the ShareGPT way, by the roles that templates know.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class MalformedConversationError(ValueError):
    """What is wrong with a conversation, to be read after the place of its row."""


class Message(NamedTuple):
    """Who speaks, and what."""

    role: str
    content: str


def conversation_text(value: Any, column: str) -> tuple[str, int] | None:
    """Return the messages in `column` as a text that carries them, and the UTF-8 bytes of their contents.

    None where there are no messages. MalformedConversationError for what is not a conversation.
    """
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise MalformedConversationError(f"has no list of messages in field {column!r}")
    messages = [_message(one, f"{column}[{number}]") for number, one in enumerate(value)]
    if not messages:
        return None
    return json.dumps(messages, ensure_ascii=False), sum(len(message.content.encode()) for message in messages)


def messages_in(text: str) -> list[Message]:
    """Read the messages that :func:`conversation_text` put into a text."""
    return [Message(*one) for one in json.loads(text)]


def content_bytes(text: str) -> int:
    """Count the UTF-8 bytes of the contents that such a text carries."""
    return sum(len(message.content.encode()) for message in messages_in(text))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise MalformedConversationError(f"has no message in field '{where}'")
    speaker, words = FIELDS[1] if value.get("role") is None and "from" in value else FIELDS[0]
    role = value.get(speaker)
    if not isinstance(role, str) or not role:
        raise MalformedConversationError(f"has no text in field '{where}.{speaker}'")
    if speaker == "from":
        if role not in ROLES:
            raise MalformedConversationError(
                f"has the unknown speaker {role!r} in field '{where}.from'; there are {', '.join(ROLES)}"
            )
        role = ROLES[role]
    if value.get("tool_calls"):
        raise MalformedConversationError(f"calls a tool in field '{where}.tool_calls', which is not rendered")
    return Message(role, _content(value.get(words), f"{where}.{words}"))


def _content(value: Any, where: str) -> str:
    """Return the words of a message; parts of text are joined with nothing between."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise MalformedConversationError(f"has no text in field '{where}'")
    texts = []
    for number, part in enumerate(value):
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind != "text":
            raise MalformedConversationError(
                f"has a part of type {kind!r} in field '{where}[{number}]'; only parts of text are taken"
            )
        if not isinstance(text, str):
            raise MalformedConversationError(f"has no text in field '{where}[{number}].text'")
        texts.append(text)
    return "".join(texts)
