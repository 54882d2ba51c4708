"""The tokenizer that lies in a checkpoint's folder: that one, whole, or one line that says what is missing."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError

log = logging.getLogger(__name__)
#: What tokenizers differ in: numbers, capitals, marks, spaces, line ends, scripts with and without spaces.
PROBES = (
    "In 2026 the river wasn't 1,234 m wide.  It had RISEN\n\nsince noon",
    "La rivière était haute, l'été; năm 2026 nước sông dâng cao. O\u2018zbek, č, ß, ñ",
    "mwaka 2026 mto ulikuwa umejaa",
    "उस वसंत में नदी चढ़ी हुई थी। ২০২৬ সালে নদী; ஆறு; నది; ನದಿ; നദി; નદી; ਨਦੀ; دریا، نہر ٢٠٢٦",
    "那年春天河水很高，中午以前没有人过河。川は2026年に 강이 แม่น้ำ",
    "Река была высокой; ወንዙ ሞልቶ ነበር; ποταμός",
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor")
# Below this share of the embedding's rows a vocabulary is not that of the model, however its rows are padded.
_LEAST_SHARE = 0.5
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
_OTHER_FILES = ("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "*.model")


def load_tokenizer(name: str, **options: Any) -> Any:
    """Return the fast tokenizer of a folder or hub id, as transformers gives it, with the tokens of its tokenizer.json.

    ``options`` are those of ``AutoTokenizer.from_pretrained``. For some kinds of models transformers makes normalizer,
    pre-tokenizer and more anew instead of reading them; where that differs from the file, the file counts. Raises
    :class:`InputError`, one line, where it cannot be loaded, or its vocabulary is not the model's.
    """
    from transformers import AutoTokenizer  # slow to import, and only needed where text is tokenized

    _check_merges(Path(name) / "tokenizer.json")
    with as_input_error(f"tokenizer {name}: cannot be loaded", lambda: _hint(Path(name), loads=False)):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if hasattr(tokenizer, "backend_tokenizer"):
            tokenizer = _as_in_file(tokenizer, Path(name), options)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"tokenizer {name}: has no tokenizer.json, whose offsets are needed to count bytes")
    _check_vocabulary(tokenizer, Path(name))
    return tokenizer


@contextmanager
def as_input_error(said: str, hint: Callable[[], str] = str) -> Iterator[None]:
    """Raise :class:`InputError` in the place of what the libraries raise, with their reason where there is no hint.

    transformers, tokenizers and json each raise their own, some a plain Exception; a panic of tokenizers is none.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = str(error).strip().partition("\n")[0].strip() or type(error).__name__
        # What a library says of a missing file is more of its own search than of the file.
        raise InputError(f"{said}{hint() or f' ({reason})'}") from error


def _as_in_file(tokenizer: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Return the same, or one made of the folder's tokenizer.json where that tokenizes in another way."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    # The base class reads the file as it is; a class of its own for a kind of models may not.
    if type(tokenizer) is PreTrainedTokenizerFast or not file.is_file():
        return tokenizer
    backend, told = Tokenizer.from_file(str(file)), tokenizer.init_kwargs
    vocabulary = backend.get_vocab()
    # Not those that a class names by default and this vocabulary does not have.
    given = {name: token for name in _SPECIAL if (token := getattr(tokenizer, name)) in vocabulary}
    # These, where the configuration names them, are its last word on what is added to a text.
    given |= {name: told[name] for name in ("add_bos_token", "add_eos_token") if told.get(name) is not None}
    own = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=tokenizer.name_or_path, **given, **options)
    if options.get("model_max_length") is None:
        own.model_max_length = tokenizer.model_max_length
    own.chat_template = tokenizer.chat_template
    differing = [part for part in _PARTS if _state(tokenizer, part) != _state(own, part)]
    if not differing:
        return tokenizer
    for probe in PROBES:
        here, there = (one(probe)["input_ids"] for one in (own, tokenizer))
        if here != there:
            _warn_once(
                f"tokenizer {folder}: transformers {version('transformers')} makes another {', '.join(differing)} of "
                f"its tokenizer.json, with which {probe[:40]!r} has {len(there)} tokens instead of {len(here)}; "
                "the file's own is used"
            )
            break
    return own


@cache
def _warn_once(message: str) -> None:
    """Remembered by what it says: every text of a sweep loads the tokenizer anew."""
    log.warning(message)


def _state(tokenizer: Any, part: str) -> bytes | None:
    one = getattr(tokenizer.backend_tokenizer, part)
    state: bytes | None = None if one is None else one.__getstate__()
    return state


def _check_merges(file: Path) -> None:
    """Refuse merges without the prefix that the file names for them; tokenizers 0.23 takes them for granted."""
    try:
        content = file.read_bytes()
        if not _PREFIX.search(content):
            return
        model = json.loads(content)["model"]
        prefix, merges = model["continuing_subword_prefix"], model["merges"]
        second = [one.partition(" ")[2] if isinstance(one, str) else one[1] for one in merges]
        wrong = next((one for one in second if not one.startswith(prefix)), None)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # whatever else is wrong with it, the library says
    if wrong is not None:
        raise InputError(
            f"tokenizer {file.parent}: tokenizer.json: model.merges: {wrong!r} does not begin with "
            f"continuing_subword_prefix {prefix!r}; fetch the file again"
        )


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Refuse a vocabulary that is empty, or far below the embedding's rows."""
    size, rows = len(tokenizer), embedding_rows(folder)
    if not tokenizer.get_vocab().keys() - {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}:
        reason = "its vocabulary is empty"
    elif rows is not None and size < _LEAST_SHARE * rows:
        reason = f"knows {size:,} tokens, and the model's embedding has {rows:,} rows"
    else:
        return
    raise InputError(
        f"tokenizer {folder}: {reason}{_hint(folder, loads=True) or '; its files are of another model, or cut'}"
    )


def embedding_rows(folder: Path) -> int | None:
    """As the configuration says; None where it says nothing, which others will refuse where it matters."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    return rows if isinstance(rows, int) else None


def _hint(folder: Path, loads: bool) -> str:
    """What of the folder's files is missing, and what to do; nothing where tokenizer.json is there, or no folder.

    Where what is there ``loads``, no library is missing that would read it.
    """
    if not folder.is_dir() or (folder / "tokenizer.json").is_file():
        return ""
    found = sorted({path.name for pattern in _OTHER_FILES for path in folder.glob(pattern)})
    if not found:
        return "; the folder has no tokenizer.json: fetch the tokenizer's files of this model too"
    models = [name for name in found if name.endswith(".model")]
    library = _library(folder / models[0]) if models else ""
    install = f"pip install {library}, or " if library and not loads and not _installed(library) else ""
    return (
        f"; the folder has no tokenizer.json, only {', '.join(found)}{f' (of {library})' if library else ''}: "
        f"{install}make a tokenizer.json of it and put it there"
    )


def _library(model: Path) -> str:
    """What reads a vocabulary of this name: sentencepiece's begins with the first field of a protocol buffer."""
    with model.open("rb") as file:
        return "sentencepiece" if file.read(1) == b"\n" else "tiktoken"


def _installed(library: str) -> bool:
    from importlib.util import find_spec

    return find_spec(library) is not None
