"""A decoder-only Hugging Face model taken apart into embedding, blocks and head.

No per-architecture code: the real model is built without weights, its own forward is run with
every block replaced by a recorder, and each block is later called alone with what was recorded for
it (masks, position biases, rotary embeddings).
"""

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint

_KEPT_SHAPES = 4


class Decoder:
    """Blocks of a checkpoint, one at a time on ``device``, computed in ``compute_dtype``.

    ``blocks`` is their number. Nothing of a block is held here: :meth:`load_block` gives a module
    that is the caller's. Outside the blocks only small tensors (norms, learnt positions) are held;
    rows of the token embedding and of the head are read as they are needed.
    """

    def __init__(self, checkpoint: Checkpoint, compute_dtype: torch.dtype, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.compute_dtype = compute_dtype
        self.device = torch.device(device)
        config = checkpoint.config
        if getattr(config, "slow_but_exact", False):
            raise InputError(
                f"{checkpoint.folder / 'config.json'}: slow_but_exact must be false; its forward goes round "
                "the linears, so that their inputs cannot be seen"
            )
        if getattr(config, "quantization_config", None):
            raise InputError(
                f"{checkpoint.folder / 'config.json'}: quantization_config says that the linears are packed; "
                "give the dense checkpoint (that of a run, or mbs export --format safetensors)"
            )
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=compute_dtype, trust_remote_code=False)
        model.eval()
        self._model = model
        self._path, block_list = _largest_module_list(model, checkpoint)
        self._templates = list(block_list)
        self._recorders = [_Recorder(template) for template in self._templates]
        for index, recorder in enumerate(self._recorders):
            block_list[index] = recorder
        self._embedding = model.get_input_embeddings()
        self._embedding_name = self._name_of(self._embedding) + ".weight"
        self._head_model = _head_alone(model, self._path)
        self._load_outside()
        self._arguments: dict[tuple[int, int], list[tuple[tuple, dict]]] = {}

    @property
    def blocks(self) -> int:
        return len(self._templates)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type the checkpoint's weights are stored in (that of the token embedding)."""
        return self.checkpoint.tensors[self._stored_embedding].dtype

    def block_tensors(self, index: int) -> dict[str, str]:
        """Name inside the block → stored name, for all tensors stored of a block."""
        prefix = f"{self._path}.{index}."
        stored_prefix = None
        for name, _ in self._templates[index].named_parameters():
            stored = self.checkpoint.stored_name(prefix + name)
            if stored is None:
                raise InputError(f"{self.checkpoint.folder}: the checkpoint lacks {prefix + name}")
            stored_prefix = stored.removesuffix(name)
        assert stored_prefix is not None
        return {
            name.removeprefix(stored_prefix): name for name in self.checkpoint.tensors if name.startswith(stored_prefix)
        }

    def linears(self, index: int) -> dict[str, tuple[int, int]]:
        """Name inside the block → (rows, columns) of the weight, for every ``nn.Linear``."""
        return {
            name: (module.out_features, module.in_features)
            for name, module in self._templates[index].named_modules()
            if isinstance(module, nn.Linear)
        }

    def linears_outside(self) -> list[str]:
        """Names, in the model, of every ``nn.Linear`` that belongs to no block (the head, for one)."""
        return [name for name, module in self._model.named_modules() if isinstance(module, nn.Linear)]

    def read_block(self, index: int) -> dict[str, torch.Tensor]:
        """All tensors of a block as stored, by their name inside the block."""
        return {name: self.checkpoint.read(stored) for name, stored in self.block_tensors(index).items()}

    def load_block(self, index: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
        """The block as a module on the device, in ``compute_dtype``."""
        block = copy.deepcopy(self._templates[index])
        own = {name for name, _ in block.named_parameters()}
        state = {
            name: tensor.to(self.device, self.compute_dtype, copy=True)
            for name, tensor in tensors.items()
            if name in own
        }
        block.load_state_dict(state, assign=True, strict=False)
        return block.requires_grad_(False).to(self.device)

    def run_block(self, block: nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """One block applied to hidden states [microbatch, length, hidden_size]."""
        args, kwargs = self._recorded(hidden.shape[0], hidden.shape[1])[index]
        output = block(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def recorded_bytes(self, microbatch: int, length: int) -> int:
        """What is kept for microbatches of one shape, of all blocks together: masks, position biases and the like."""
        tensors = (leaf for leaf in pytree.tree_leaves(self._recorded(microbatch, length)) if torch.is_tensor(leaf))
        storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        return sum(storage.nbytes() for storage in storages.values())

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Input of block 0 for int64 token ids [microbatch, length]; only their rows are read."""
        rows, position = torch.unique(token_ids, return_inverse=True)
        self._forward_outside(self.checkpoint.gather_rows(self._stored_embedding, rows), position)
        hidden = self._recorders[0].hidden
        self._clear()
        assert hidden is not None
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """What follows the last block and precedes the head (the final norm)."""
        self._recorders[-1].result = hidden
        output = self._forward_outside(*self._placeholder(hidden.shape[0], hidden.shape[1]))
        self._clear()
        return output[0]

    @property
    def vocabulary(self) -> int:
        return int(self._head_info().shape[0])

    @property
    def width(self) -> int:
        """Columns of the head."""
        return int(self._head_info().shape[1])

    def head_rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows of the head's weight and bias for a range of the vocabulary, on the device."""
        name, bias = self._head_names()
        weight = self.checkpoint.read_rows(name, start, stop).to(self.device, self.compute_dtype)
        if bias is None:
            return weight, None
        return weight, self.checkpoint.read_rows(bias, start, stop).to(self.device, self.compute_dtype)

    def logits(self, finished: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Logits [..., rows of weight] by the model's own head (with its scaling or capping, if any)."""
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            head.bias = nn.Parameter(bias, requires_grad=False)
        self._head_model.set_output_embeddings(head)
        return self._head_model(inputs_embeds=finished, use_cache=False).logits

    def outside_tensors(self) -> list[str]:
        """Stored names of all tensors that belong to no block."""
        inside = {stored for index in range(self.blocks) for stored in self.block_tensors(index).values()}
        return [name for name in self.checkpoint.tensors if name not in inside]

    def _recorded(self, microbatch: int, length: int) -> list[tuple[tuple, dict]]:
        shape = (microbatch, length)
        if shape not in self._arguments:
            while len(self._arguments) >= _KEPT_SHAPES:
                self._arguments.pop(next(iter(self._arguments)))
            self._forward_outside(*self._placeholder(microbatch, length))
            self._arguments[shape] = [(recorder.args, recorder.kwargs) for recorder in self._recorders]
            self._clear()
        return self._arguments[shape]

    def _placeholder(self, microbatch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = self.checkpoint.tensors[self._stored_embedding].shape[1]
        return torch.zeros(1, width), torch.zeros(microbatch, length, dtype=torch.int64)

    def _forward_outside(self, rows: torch.Tensor, position: torch.Tensor) -> Any:
        """The base model's own forward with the recorders for blocks, over an embedding of ``rows``."""
        weight = rows.to(self.device, self.compute_dtype)
        self._embedding.weight = nn.Parameter(weight, requires_grad=False)
        self._embedding.num_embeddings = len(rows)
        self._embedding.padding_idx = None
        return self._model.base_model(input_ids=position.to(self.device), use_cache=False)

    def _clear(self) -> None:
        for recorder in self._recorders:
            recorder.clear()

    def _load_outside(self) -> None:
        head = self._model.get_output_embeddings()
        skipped = {id(self._embedding), id(head)}
        for path, module in self._model.named_modules():
            if id(module) in skipped or path.startswith(self._path + "."):
                continue
            for name, _ in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                stored = self.checkpoint.stored_name(full)
                if stored is None:
                    raise InputError(f"{self.checkpoint.folder}: the checkpoint lacks {full}")
                tensor = self.checkpoint.read(stored).to(self.device, self.compute_dtype)
                setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _name_of(self, wanted: nn.Module) -> str:
        return next(name for name, module in self._model.named_modules() if module is wanted)

    @property
    def _stored_embedding(self) -> str:
        stored = self.checkpoint.stored_name(self._embedding_name)
        if stored is None:
            raise InputError(f"{self.checkpoint.folder}: the checkpoint lacks {self._embedding_name}")
        return stored

    def _head_names(self) -> tuple[str, str | None]:
        """Stored names of the head's weight and bias; a tied head is the token embedding."""
        head = self._name_of(self._model.get_output_embeddings())
        bias = self.checkpoint.stored_name(head + ".bias")
        if self.checkpoint.config.tie_word_embeddings:
            return self._stored_embedding, bias
        weight = self.checkpoint.stored_name(head + ".weight")
        if weight is None:
            raise InputError(f"{self.checkpoint.folder}: the checkpoint lacks {head}.weight")
        return weight, bias

    def _head_info(self) -> Any:
        return self.checkpoint.tensors[self._head_names()[0]]


class _Recorder(nn.Module):
    """Stands in for a block: keeps the arguments of its call and returns its input."""

    def __init__(self, template: nn.Module) -> None:
        super().__init__()
        # In a list, so that the weightless block does not count as a part of the model.
        self.template = [template]
        self.returns_tuple: bool | None = None
        self.clear()

    def clear(self) -> None:
        self.hidden: torch.Tensor | None = None
        self.result: torch.Tensor | None = None
        self.args: tuple = ()
        self.kwargs: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        self.hidden, self.args, self.kwargs = args[0], args[1:], kwargs
        result = self.hidden if self.result is None else self.result
        if self.returns_tuple is None:
            self.returns_tuple = self._template_returns_tuple(args, kwargs)
        return (result,) if self.returns_tuple else result

    def _template_returns_tuple(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        template = copy.deepcopy(self.template[0]).to("meta")
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return isinstance(template(*args, **kwargs), tuple)

    def __getattr__(self, name: str) -> Any:
        # A model's forward may ask a block for its kind (sliding or full attention, for example).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["template"][0], name)


class _PassThrough(nn.Module):
    """Stands in for the base model, so that a model's forward applies nothing but its head."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _head_alone(model: PreTrainedModel, blocks_path: str) -> Any:
    """A copy of the model in which the module that holds the blocks passes its input through."""
    alone = parent = _shallow_copy(model)
    *path, owner = blocks_path.split(".")[:-1]
    for name in path:
        parent._modules[name] = _shallow_copy(parent._modules[name])
        parent = parent._modules[name]
    parent._modules[owner] = _PassThrough()
    return alone


def _shallow_copy(module: Any) -> Any:
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def _largest_module_list(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, nn.ModuleList]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"{checkpoint.folder}: no list of blocks in {type(model).__name__}")
    return max(lists, key=lambda item: len(item[1]))
