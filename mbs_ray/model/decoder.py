"""A decoder-only Hugging Face model taken apart into embedding, blocks and head.

No per-architecture code: the real model is built without weights, its own forward is run with
every block replaced by a recorder, and each block is later called alone with what was recorded for
it (masks, position biases, rotary embeddings).
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mbs_ray.errors import InputError
from mbs_ray.model.checkpoint import Checkpoint
from mbs_ray.model.configuration import empty_model
from mbs_ray.model.experts import Origin, chosen_of, expert_of, experts_of, list_experts
from mbs_ray.model.gelu import hasten_gelu
from mbs_ray.model.head import head_alone
from mbs_ray.model.linears import lies_transposed, linears_of, shape_of, turned
from mbs_ray.model.recorder import Recorder, hidden_states
from mbs_ray.model.slots import Slot, from_stored, read_slots, to_stored
from mbs_ray.model.stored_names import StoredNames, find_ends
from mbs_ray.model.support import (
    check_arguments,
    check_chain,
    failed_forward,
    find_blocks,
    refuse_block_count,
    refuse_config,
    refuse_stacked,
    scaled_head,
)
from mbs_ray.model.wrapper import find_wrapper, linears_beside

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
        folder, config = checkpoint.folder, checkpoint.config.get_text_config()
        refuse_config(folder, checkpoint.config)
        refuse_block_count(folder, config, len(checkpoint.tensors))
        self._model = model = empty_model(folder, config, compute_dtype)
        self._wrapper = find_wrapper(folder, checkpoint.config, model, compute_dtype)
        self._names = StoredNames(checkpoint, model, self._wrapper)
        self._path, block_list = find_blocks(folder, model)
        self._templates = list(block_list)
        origins = [list_experts(template) for template in self._templates]
        for index, template in enumerate(self._templates):
            refuse_stacked(folder, f"{self._path}.{index}", template)
            hasten_gelu(template)
        self._linears = [
            {name: shape_of(linear) for name, linear in linears_of(template).items()} for template in self._templates
        ]
        self._mixtures = [
            {name: one.count for name, one in experts_of(template).items()} for template in self._templates
        ]
        self._recorders = [Recorder(template) for template in self._templates]
        for index, recorder in enumerate(self._recorders):
            block_list[index] = recorder
        self._embedding = model.get_input_embeddings()
        # Some wrappers leave it to their text model to say.
        tied = bool(getattr(checkpoint.config, "tie_word_embeddings", config.tie_word_embeddings))
        self._stored_embedding, self._stored_head, self._stored_bias = find_ends(self._names, model, tied)
        self._head_model = head_alone(model, self._path)
        self._load_outside()
        self._arguments: dict[tuple[int, int], list[tuple[tuple, dict]]] = {}
        self._slots = [self._find_block(index, origins[index]) for index in range(self.blocks)]
        self._check_forward()

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._templates)

    @property
    def holds_scores(self) -> bool:
        """Whether attention writes its scores into memory, instead of going through them in parts."""
        return bool(self._model.config._attn_implementation == "eager")

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type the checkpoint's weights are stored in (that of the token embedding)."""
        return self.checkpoint.tensors[self._stored_embedding].dtype

    def block_tensors(self, index: int) -> list[str]:
        """List the stored names of all tensors of a block."""
        return list(dict.fromkeys(slot.stored for slot in self._slots[index].values()))

    def stored_weight(self, index: int, linear: str) -> str | None:
        """Return the stored name of a linear's weight; None where a tensor holds those of several experts."""
        slot = self._slots[index][f"{linear}.weight"]
        return slot.stored if slot.expert is None else None

    def linears(self, index: int) -> dict[str, tuple[int, int]]:
        """Map name inside the block → (rows, columns) of the weight, for every linear of whatever class."""
        return self._linears[index]

    def linears_outside(self) -> list[str]:
        """List the names, in the whole model, of the linears that are left alone: the head, routers, other towers."""
        return linears_beside(self._model, self._path, self._templates, self._slots, self._wrapper)

    def linear_names(self, index: int) -> dict[str, str]:
        """Map name inside the block → name in the whole model, for every linear."""
        outward = str if self._wrapper is None else self._wrapper.outward
        return {name: outward(f"{self._path}.{index}.{name}") for name in self._linears[index]}

    def mixtures(self, index: int) -> dict[str, int]:
        """Map name inside the block → number of experts, for every mixture of experts."""
        return self._mixtures[index]

    def routed(self, index: int, linear: str) -> float:
        """Return the share of all tokens that reaches a linear: of an expert, were they spread evenly; else 1."""
        own = expert_of(linear, self.mixtures(index))
        chosen = chosen_of(self._model.config)
        return 1.0 if own is None or chosen is None else min(1.0, chosen / self.mixtures(index)[own[0]])

    def transposed(self, index: int) -> list[str]:
        """List the names inside the block of the linears whose weight is stored as [columns, rows]."""
        return [name for name, linear in linears_of(self._templates[index]).items() if lies_transposed(linear)]

    def read_block(self, index: int) -> dict[str, torch.Tensor]:
        """Read all tensors of a block by name inside it: weights of linears [rows, columns], the rest as stored."""
        return read_slots(self._slots[index], self.checkpoint)

    def from_stored(self, index: int, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the tensors of a block, given by stored name, to the form of :meth:`read_block`."""
        return from_stored(self._slots[index], stored)

    def to_stored(self, index: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the tensors of :meth:`read_block` back: by stored name, and as the checkpoint holds them."""
        return to_stored(self._slots[index], tensors, self.checkpoint.tensors)

    def load_block(self, index: int, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Build the block as a module on the device, in ``compute_dtype``, from the tensors of :meth:`read_block`."""
        block = copy.deepcopy(self._templates[index])
        wanted, weights = block.state_dict().keys(), {f"{name}.weight" for name in self.transposed(index)}
        held = {name: turned(one) if name in weights else one for name, one in tensors.items() if name in wanted}
        state = {name: self._placed(name, tensor) for name, tensor in held.items()}
        block.load_state_dict(state, assign=True, strict=False)
        return block.requires_grad_(False).to(self.device)

    def run_block(self, block: nn.Module, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Apply one block to hidden states [microbatch, length, hidden_size]."""
        args, kwargs = self._recorded(hidden.shape[0], hidden.shape[1])[index]
        return hidden_states(block(hidden, *args, **kwargs))

    def recorded_bytes(self, microbatch: int, length: int) -> int:
        """Count the bytes kept for microbatches of one shape, of all blocks: masks, position biases and the like."""
        tensors = (leaf for leaf in pytree.tree_leaves(self._recorded(microbatch, length)) if torch.is_tensor(leaf))
        storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        return sum(storage.nbytes() for storage in storages.values())

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Compute the input of block 0 for int64 token ids [microbatch, length]; only their rows are read."""
        rows, position = torch.unique(token_ids, return_inverse=True)
        self._forward_outside(self.checkpoint.gather_rows(self._stored_embedding, rows), position)
        hidden = self._recorders[0].hidden
        self._clear()
        assert hidden is not None
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply what follows the last block and precedes the head (the final norm)."""
        self._recorders[-1].result = hidden
        output = self._forward_outside(*self._placeholder(hidden.shape[0], hidden.shape[1]))
        self._clear()
        return output[0]

    @property
    def vocabulary(self) -> int:
        """Rows of the head, one for each token of the vocabulary."""
        return int(self.checkpoint.tensors[self._stored_head].shape[0])

    @property
    def width(self) -> int:
        """Columns of the head."""
        return int(self.checkpoint.tensors[self._stored_head].shape[1])

    def head_rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows of the head's weight and bias for a range of the vocabulary, on the device."""
        name, bias = self._stored_head, self._stored_bias
        weight = self.checkpoint.read_rows(name, start, stop).to(self.device, self.compute_dtype)
        own = None if bias is None else self.checkpoint.read_rows(bias, start, stop).to(self.device, self.compute_dtype)
        return weight, own

    def logits(self, finished: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute logits [..., rows of weight] by the model's own head (with its scaling or capping, if any)."""
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        head.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            head.bias = nn.Parameter(bias, requires_grad=False)
        self._head_model.set_output_embeddings(head)
        return self._head_model(inputs_embeds=finished, use_cache=False).logits

    def outside_tensors(self) -> list[str]:
        """List the stored names of all tensors that belong to no block."""
        inside = {stored for index in range(self.blocks) for stored in self.block_tensors(index)}
        return [name for name in self.checkpoint.tensors if name not in inside]

    def parameter_tensors(self) -> set[str]:
        """Stored names of the model's parameters; masks and other buffers that some checkpoints keep are none."""
        return set(self._names.parameters)

    def _placed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device, in the type in which the model computes with it."""
        kept = not set(name.split(".")).isdisjoint(self._model._keep_in_fp32_modules_strict or ())
        return tensor.to(self.device, torch.float32 if kept else self.compute_dtype, copy=True)

    def _recorded(self, microbatch: int, length: int) -> list[tuple[tuple, dict]]:
        shape = (microbatch, length)
        if shape not in self._arguments:
            while len(self._arguments) >= _KEPT_SHAPES:
                self._arguments.pop(next(iter(self._arguments)))
            # What an architecture gives its blocks besides hidden states (masks, position biases, rotary embeddings)
            # depends on the shape alone, not on the tokens, as __init__ has checked: one run of the model's own forward
            # over placeholders, with recorders for blocks, yields it for every microbatch of this shape.
            self._forward_outside(*self._placeholder(microbatch, length))
            self._arguments[shape] = [(recorder.args, recorder.kwargs) for recorder in self._recorders]
            self._clear()
        return self._arguments[shape]

    def _placeholder(self, microbatch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, self._embedding_width), torch.zeros(microbatch, length, dtype=torch.int64)

    @property
    def _embedding_width(self) -> int:
        return int(self.checkpoint.tensors[self._stored_embedding].shape[1])

    def _check_forward(self) -> None:
        """Forwards over two tokens, in both orders: is the model a chain of its blocks, and then a head?"""
        rows = torch.linspace(-1, 1, 2 * self._embedding_width).view(2, -1)
        seen = []
        try:
            for token_ids in ([[0, 1]], [[1, 0]]):
                self._forward_outside(rows, torch.tensor(token_ids))
                check_chain(self.checkpoint.folder, self._recorders)
                seen.append([(recorder.args, recorder.kwargs) for recorder in self._recorders])
                self._clear()
            states = torch.ones(1, 2, self.width, dtype=self.compute_dtype, device=self.device)
            logits = self.logits(states, *(head := self.head_rows(0, 1)))
            if self._wrapper is not None and not torch.equal(logits, nn.functional.linear(states, *head)):
                raise scaled_head(self.checkpoint.folder, self._model)
        except InputError:
            raise
        except Exception as error:
            raise failed_forward(self.checkpoint.folder, self._model, error) from error
        check_arguments(self.checkpoint.folder, *seen)

    def _forward_outside(self, rows: torch.Tensor, position: torch.Tensor) -> Any:
        """Run the base model's own forward with recorders for blocks; ``position`` indexes the embedding's ``rows``."""
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
            for name, parameter in module.named_parameters(recurse=False):
                stored = self._names.find(f"{path}.{name}" if path else name, parameter.shape)
                tensor = self.checkpoint.read(stored).to(self.device, self.compute_dtype)
                setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _find_block(self, index: int, origins: Mapping[str, Origin]) -> dict[str, Slot]:
        prefix, template = f"{self._path}.{index}.", self._templates[index]
        weights = {f"{name}.weight" for name in self.transposed(index)}
        slots = {
            name: self._names.slot(prefix, name, tensor, origins.get(name), name in weights)
            for name, tensor in template.state_dict().items()
        }
        # Masks and the like, which a checkpoint may hold and the model does not.
        stored = {slot.stored for slot in slots.values()}
        beside = next(slot.stored.removesuffix(name) for name, slot in slots.items() if slot.stored.endswith(name))
        others = (name for name in self.checkpoint.tensors if name.startswith(beside) and name not in stored)
        return slots | {name.removeprefix(beside): Slot(name) for name in others}
