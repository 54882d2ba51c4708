"""A folder's config.json: what transformers makes of it, and a model of it without weights; or one line naming a field.

What a library raises over a value of a configuration is any exception at all: every one is caught here, and only here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    __version__,
)

from mbs_ray.errors import InputError, one_line
from mbs_ray.model.checkpoint_files import CONFIG

#: Attention kernels that need nothing installed. Any other is left to transformers' choice among these.
_KERNELS = ("eager", "sdpa")
_ROUTER_SWITCH = "output_router_logits"
_SWITCHES = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}


def read_config(folder: Path) -> PretrainedConfig:
    """Read a folder's configuration; which attention kernel computes and what a forward returns is chosen here.

    Raises :class:`InputError` naming the file, and the field where one value is to blame.
    """
    file = folder / CONFIG
    content = _content(file)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for one in {id(one): one for one in (config, config.get_text_config())}.values():
            if one._attn_implementation not in _KERNELS:
                one._attn_implementation = None
            for switch, wanted in _SWITCHES.items():
                setattr(one, switch, wanted)
            if hasattr(one, _ROUTER_SWITCH):
                setattr(one, _ROUTER_SWITCH, False)
    except Exception as error:
        raise InputError(f"{file}: {_reason(content, error, _parse)}") from error
    return config


def empty_model(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, made: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Build the model that a configuration describes; its parameters have shapes, and no memory.

    ``made``: its class, or an automatic one of transformers.

    Raises :class:`InputError` naming the folder's configuration, and the field where one value is to blame.
    """
    file = folder / CONFIG
    padding, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
        raise InputError(
            f"{file}: pad_token_id: token {padding} lies beyond the vocabulary, whose vocab_size is {rows}"
        )
    try:
        return _build(config, dtype, made)
    except Exception as error:
        content = _content(file) if file.is_file() else {}
        raise InputError(f"{file}: {_reason(content, error, lambda one: _build(_parse(one), dtype, made))}") from error


def _build(config: PretrainedConfig, dtype: torch.dtype, made: Any) -> PreTrainedModel:
    with init_empty_weights(include_buffers=False):
        if made is AutoModelForCausalLM:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        model: PreTrainedModel = made._from_config(config, dtype=dtype).eval()
        return model


def _content(file: Path) -> dict[str, Any]:
    """Return the file's JSON object; what transformers would fail at in riddles is refused by field."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    if not isinstance(architecture := content.get("model_type", ""), str):
        raise InputError(f"{file}: model_type: expected the name of an architecture, not {architecture!r}")
    if "model_type" in content and architecture not in CONFIG_MAPPING:
        own = "; code of its own (auto_map) is never run" if "auto_map" in content else ""
        raise InputError(f"{file}: model_type: {architecture!r} is unknown to transformers {__version__}{own}")
    for field in ("dtype", "torch_dtype"):
        value = content.get(field)
        if value is not None and not isinstance(getattr(torch, str(value), None), torch.dtype):
            raise InputError(f"{file}: {field}: {value!r} is no type of torch; write float32, bfloat16 or float16")
    return content


def _parse(content: Mapping[str, Any]) -> PretrainedConfig:
    return CONFIG_MAPPING[content["model_type"]].from_dict(dict(content))


def _reason(content: Mapping[str, Any], error: Exception, attempt: Any) -> str:
    """What a library says in one line, led by the field to blame.

    That is one which the words name; else the first without which the same ``attempt`` succeeds, or fails otherwise.
    """
    said = one_line(error)
    words = set(re.findall(r"\w+", said))
    if any(field in words for field in content):
        return said
    blamed = ""
    # A key that was looked up in vain is a value of the field that is to blame.
    missed = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    for field in sorted(content.keys() - {"model_type"}, key=lambda field: missed not in json.dumps(content[field])):
        try:
            attempt({name: value for name, value in content.items() if name != field})
        except Exception as other:
            if not blamed and one_line(other) != said:
                blamed = f"{field}: "
        else:
            blamed = f"{field}: "
            break
    return blamed + said
