"""Second moments of a dense model on disk, by block and language, and weighted sums of them. Knows no Ray."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mbs_ray.compression.collect import Collected
from mbs_ray.errors import InputError
from mbs_ray.files import own_content
from mbs_ray.methods import Moment, Statistic, moment_bytes
from mbs_ray.methods.precision import exact_float32
from mbs_ray.model.block_files import block_file, write_tensors

#: Elements of a moment that are weighted, read or multiplied at once.
_ELEMENTS_AT_ONCE = 2**24
_METADATA = "moments"


@dataclass(frozen=True, eq=False)
class Target:
    """Folder of moments that is to be filled, a file per block: Σ coefficient × moments over ``coefficients``."""

    folder: Path
    statistic: Statistic
    coefficients: Mapping[str, float]

    def holds(self, index: int) -> bool:
        return (self.folder / block_file(index)).is_file()


@dataclass(frozen=True)
class Source:
    """Folder of moments that a run uses ``coefficient`` times; ``language`` if they are of a single one."""

    folder: Path
    coefficient: float = 1.0
    language: str = ""


class MomentSum:
    """Weighted sum, Σ coefficient × moments at the inputs of a block's linears, accumulated on a device.

    Float32, with one rounding of every product and one of every sum, element by element: the bits depend only on the
    order of the additions, not on the device, nor on which sums were written and read again in between. Token counts
    and energies are weighted in the same way, in float64.
    """

    # Moments are plain sums over tokens, so the moments of any mix of languages are a weighted sum of the moments of
    # each: collected once from the dense model, they serve every allocation without another forward. A sum is keyed by
    # the linears that share its input, and grows by pieces: the device never holds a stored moment whole.

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._tokens: dict[tuple[str, ...], float] = {}
        self._energies: dict[str, float] = {}

    def add(self, collected: Collected, coefficient: float) -> None:
        for group in collected.inputs():
            moment = collected.moments[group[0]]
            energies = {name: float(collected.energies[name]) for name in group}
            self._add(tuple(group), moment.tokens, energies, coefficient)
            self._add_sum(tuple(group), moment.sum.shape, _pieces(moment.sum), coefficient)

    def add_stored(self, stored: "StoredMoments", names: Collection[str], coefficient: float) -> None:
        """Add the moments of some linears, piece by piece from their file."""
        for group, tokens in stored.inputs.items():
            if group[0] in names:
                self._add(group, tokens, stored.energies, coefficient)
                self._add_sum(group, stored.shape(group), stored.pieces(group), coefficient)

    def collected(self) -> Collected:
        """Return the sums as if one forward had collected them."""
        whole = Collected()
        for group, total in self._sums.items():
            statistic = Statistic.FULL if total.dim() == 2 else Statistic.DIAGONAL
            moment = Moment(statistic, total.shape[0], round(self._tokens[group]), total)
            whole.moments |= dict.fromkeys(group, moment)
            energies = {name: torch.tensor(self._energies[name], dtype=torch.float64) for name in group}
            whole.energies |= energies
        return whole

    def write(self, path: Path) -> None:
        """Write the sums to a file, which appears whole or not at all."""
        facts = {
            "inputs": [[list(group), tokens] for group, tokens in self._tokens.items()],
            "energies": self._energies,
        }
        write_tensors(path, {group[0]: one for group, one in self._sums.items()}, (_METADATA, json.dumps(facts)))

    def _add(self, group: tuple[str, ...], tokens: float, energies: Mapping[str, float], coefficient: float) -> None:
        self._tokens[group] = self._tokens.get(group, 0.0) + tokens * coefficient
        for name in group:
            self._energies[name] = self._energies.get(name, 0.0) + energies[name] * coefficient

    def _add_sum(
        self,
        group: tuple[str, ...],
        shape: torch.Size,
        pieces: Iterable[tuple[slice, torch.Tensor]],
        coefficient: float,
    ) -> None:
        if group not in self._sums:
            self._sums[group] = torch.zeros(shape, dtype=torch.float32, device=self._device)
        # Not one fused multiply-add, which rounds once where the device has it: the bits would depend on the device.
        for rows, piece in pieces:
            self._sums[group][rows] += piece.to(self._device) * coefficient


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


class StoredMoments:
    """Moments of one block in a file. Raises :class:`InputError` where there is none.

    ``inputs``: linears that share an input → tokens; ``energies``: Σ ‖W x‖² of each linear, W x without its bias.
    """

    def __init__(self, folder: Path, index: int) -> None:
        self._path = folder / block_file(index)
        if not self._path.is_file():
            raise InputError(f"{self._path}: not there; the second moments of this block could not be collected")
        with own_content(self._path):
            facts = json.loads(_metadata(self._path)[_METADATA])
            self.inputs: dict[tuple[str, ...], float] = {tuple(group): tokens for group, tokens in facts["inputs"]}
            self.energies: dict[str, float] = facts["energies"]

    def shape(self, group: tuple[str, ...]) -> torch.Size:
        with safe_open(self._path, framework="pt") as file:
            return torch.Size(file.get_slice(group[0]).get_shape())

    def pieces(self, group: tuple[str, ...]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield rows of the sum, in fresh memory."""
        with safe_open(self._path, framework="pt") as file:
            stored = file.get_slice(group[0])
            for rows in _rows(stored.get_shape()):
                yield rows, stored[rows].clone()


class RunMoments:
    """Moments of a block as a run uses them: the weighted sum of its sources, in their order."""

    def __init__(self, sources: Sequence[Source], index: int) -> None:
        self._parts = [(StoredMoments(source.folder, index), source.coefficient) for source in sources]

    def inputs(self) -> list[list[str]]:
        """Group the names of the linears that share an input."""
        return [list(group) for group in dict.fromkeys(group for stored, _ in self._parts for group in stored.inputs)]

    def read(self, linears: Collection[str], device: torch.device) -> Collected:
        """Read the moments of some linears, which share no input with any of the others."""
        total = MomentSum(device)
        for stored, coefficient in self._parts:
            total.add_stored(stored, linears, coefficient)
        return total.collected()


@exact_float32()
def stored_language_sums(
    sources: Sequence[Source], index: int, changes: Mapping[str, torch.Tensor], linears: Sequence[str]
) -> torch.Tensor:
    """Compute Σ ‖ΔW x‖² = tr(ΔW S ΔWᵀ) and Σ ‖W x‖² of each language, from its full second moments S = Σ x xᵀ.

    Float64 [sources, linears, 2] in host memory; zeros for linears without a change, or never called. ``changes`` are
    float32 [rows, columns] on the device. Raises :class:`InputError` where a source has no file.
    """
    sums = torch.zeros(len(sources), len(linears), 2, dtype=torch.float64)
    for row, source in enumerate(sources):
        stored = StoredMoments(source.folder, index)
        for group in stored.inputs:
            changed = [name for name in group if name in changes]
            if not changed:
                continue
            moment = RunMoments([source], index).read(group, changes[changed[0]].device).moments[group[0]]
            for name in changed:
                error = sum(((part @ moment.sum) * part).sum(dtype=torch.float64) for _, part in _pieces(changes[name]))
                sums[row, linears.index(name)] = torch.tensor(
                    [float(error), stored.energies[name]], dtype=torch.float64
                )
    return sums


def block_moment_bytes(shapes: Iterable[tuple[int, int]], statistic: Statistic) -> int:
    """Bound the bytes of the moments of linears of these (rows, columns): as if none of them shared an input."""
    return sum(moment_bytes(statistic, columns) for _, columns in shapes)


def _pieces(matrix: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    return ((rows, matrix[rows]) for rows in _rows(list(matrix.shape)))


def _rows(shape: Sequence[int]) -> Iterator[slice]:
    step = max(1, _ELEMENTS_AT_ONCE // (shape[1] if len(shape) == 2 else 1))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
