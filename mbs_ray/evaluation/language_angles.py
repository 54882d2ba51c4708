"""Similarity of languages inside a model: angles between second moments of the inputs of its blocks, and experts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from mbs_ray.errors import InputError
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.decoder import Decoder
from mbs_ray.model.routes import Routes

#: Elements of each moment that are turned into float64 at once.
_ELEMENTS_AT_ONCE = 2**20
#: A language's segments are split in so many parts, to be compared with each other.
_HALVES = 2
#: "diagonal": of the vectors, the diagonals of the moments; "full": of the moments, as matrices.
ANGLES = ("diagonal", "full")
#: Of the tokens by expert, in a mixture.
EXPERTS = "experts"


@dataclass(frozen=True, eq=False)
class Similarity:
    """Vectors and cosines of the inputs of a dense model's blocks in each language.

    ``vectors`` float32 [blocks, languages, hidden_size]: the mean over tokens of x², per dimension of a block's input
    x; that of block 0 is the vector of Multilingual Brain Surgeon (arXiv 2404.04748). ``cosines`` float64 [blocks,
    languages, languages] by statistic: ``diagonal`` between these vectors, ``full`` between the second moments Σ x xᵀ,
    in the Frobenius inner product, <A, B> / (‖A‖ ‖B‖). ``halves`` float64 [blocks, languages] by statistic: the same
    between two halves of a language's own segments. Their angle is what chance makes of so little text.

    A mixture of experts has ``routed``: block → mixture → int64 [languages, experts], how often each expert was chosen
    for a token. Cosines and halves of ``experts`` are those of the counts, NaN in blocks without experts.
    """

    languages: tuple[str, ...]
    tokens: tuple[int, ...]
    vectors: npt.NDArray[np.float32]
    cosines: Mapping[str, npt.NDArray[np.float64]]
    halves: Mapping[str, npt.NDArray[np.float64]]
    routed: Mapping[int, Mapping[str, npt.NDArray[np.int64]]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.vectors)

    @property
    def measured(self) -> dict[str, list[int]]:
        """Blocks that have angles, by statistic; ``experts`` only in a mixture."""
        found = {statistic: list(range(self.blocks)) for statistic in ANGLES}
        return found | {EXPERTS: sorted(self.routed)} if self.routed else found

    def degrees(self, statistic: str, block: int) -> pd.DataFrame:
        """Compute the angles between the languages, 0 to 90, in degrees."""
        values = _degrees(self.cosines[statistic][block])
        np.fill_diagonal(values, 0.0)
        return pd.DataFrame(values, index=self.languages, columns=self.languages)

    def degrees_of_halves(self, statistic: str, block: int) -> pd.Series:
        """Compute the angle between two halves of each language's segments, in degrees."""
        return pd.Series(_degrees(self.halves[statistic][block]), index=self.languages)

    def metrics(self, block: int) -> dict[str, float]:
        """Compute, in degrees, each language's mean angle to the others, that of all pairs, and that of its halves."""
        values: dict[str, float] = {}
        for statistic, blocks in self.measured.items():
            if block not in blocks:
                continue
            to_others = self.degrees(statistic, block).sum() / (len(self.languages) - 1)
            values |= {f"angle_{statistic}/{language}": float(angle) for language, angle in to_others.items()}
            values[f"angle_{statistic}/mean"] = float(to_others.mean())
            halves = self.degrees_of_halves(statistic, block)
            values |= {f"angle_{statistic}_halves/{language}": float(angle) for language, angle in halves.items()}
        return values


class HiddenStateStore(Protocol):
    """Keeps hidden states [microbatch, length, hidden_size] by number, each tagged with the block it is input of."""

    def put(self, microbatch: int, block: int, hidden: torch.Tensor) -> None: ...

    def get(self, microbatch: int, block: int, device: torch.device) -> torch.Tensor: ...


def measure_similarity(
    decoder: Decoder,
    token_ids: Mapping[str, torch.Tensor],
    microbatch: int,
    store: HiddenStateStore,
    notify: Callable[[int, int], None],
) -> Similarity:
    """Take the segments of every language through the dense model, one block at a time.

    ``token_ids`` are int64 [segments, length] by language, two segments or more of each; ``store`` takes the hidden
    states of all of them; ``notify(done, total)`` is called after every microbatch. The device holds a block and two
    moments, hidden_size² float32; host memory holds one for each language, of one block at a time. Raises
    :class:`InputError` naming the block, and where it is known the language, whose inputs are not finite or all zero.
    """
    # Not in turns: segments that follow each other may be of one document, and the halves are to have little in common.
    pieces = [
        _Piece(language, half, piece)
        for language, ids in token_ids.items()
        for half, own in enumerate(ids.tensor_split(_HALVES))
        for piece in own.split(microbatch)
    ]
    with torch.inference_mode():
        for index, piece in enumerate(pieces):
            store.put(index, 0, decoder.embed(piece.token_ids))
        found = [
            _measure_block(decoder, block, tuple(token_ids), pieces, store, notify) for block in range(decoder.blocks)
        ]
    statistics = [*ANGLES, *([EXPERTS] if any(one.routed for one in found) else [])]
    languages = len(token_ids)
    unknown = _Angles(np.full((languages, languages), np.nan), [np.nan] * languages)
    angles = {statistic: [one.angles.get(statistic, unknown) for one in found] for statistic in statistics}
    return Similarity(
        tuple(token_ids),
        tuple(ids.numel() for ids in token_ids.values()),
        np.stack([one.vectors for one in found]),
        {statistic: np.stack([one.cosines for one in of_blocks]) for statistic, of_blocks in angles.items()},
        {statistic: np.array([one.halves for one in of_blocks]) for statistic, of_blocks in angles.items()},
        {block: one.routed for block, one in enumerate(found) if one.routed},
    )


@dataclass(frozen=True, eq=False)
class _Piece:
    """A microbatch of one language: token ids [segments, length] of the first or the second half of its segments."""

    language: str
    half: int
    token_ids: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Angles:
    """Cosines of one statistic in one block: [languages, languages], and those of each language's halves."""

    cosines: npt.NDArray[np.float64]
    halves: list[float]


@dataclass(frozen=True, eq=False)
class _MeasuredBlock:
    """What is measured of one block: vectors [languages, hidden_size], angles by statistic, counts by mixture."""

    vectors: npt.NDArray[np.float32]
    angles: dict[str, _Angles]
    routed: dict[str, npt.NDArray[np.int64]]


def _measure_block(
    decoder: Decoder,
    block: int,
    languages: Sequence[str],
    pieces: Sequence[_Piece],
    store: HiddenStateStore,
    notify: Callable[[int, int], None],
) -> _MeasuredBlock:
    """Measure the inputs of a block and which experts they are sent to; store the inputs of the next one."""
    forward = _BlockForward(decoder, block, languages, store)
    halves: dict[str, list[float]] = {statistic: [] for statistic in ANGLES}
    moments = []
    for language in languages:
        parts: dict[int, Moment] = {}
        for index, piece in enumerate(pieces):
            if piece.language != language:
                continue
            hidden = store.get(index, block, decoder.device)
            if piece.half not in parts:
                parts[piece.half] = Moment.zeros(hidden.shape[-1], Statistic.FULL, decoder.device)
            parts[piece.half].accumulate(hidden)
            forward.run(index, piece, hidden)
            notify(block * len(pieces) + index + 1, decoder.blocks * len(pieces))
        for one in parts.values():
            one.complete()
        moment, other = (Moment(one.statistic, one.columns, one.tokens, one.sum.cpu()) for one in parts.values())
        where = f"{language}: the inputs of block {block}"
        halves["diagonal"].append(float(_cosines([moment.diagonal(), other.diagonal()], where)[0, 1]))
        halves["full"].append(float(_cosines([moment.sum, other.sum], where)[0, 1]))
        moment.merge(other)
        moments.append(moment)
    where = f"the inputs of block {block}"
    angles = {
        "diagonal": _Angles(_cosines([one.diagonal() for one in moments], where), halves["diagonal"]),
        "full": _Angles(_cosines([one.sum for one in moments], where), halves["full"]),
    }
    vectors = torch.stack([one.diagonal() / one.tokens for one in moments]).numpy()
    routed = forward.routed()
    if routed:
        angles[EXPERTS] = _expert_angles(routed, f"the tokens by expert of block {block}")
    return _MeasuredBlock(vectors, angles, {mixture: counts.sum(0).numpy() for mixture, counts in routed.items()})


class _BlockForward:
    """One block on the device, called with every piece of the text; counts the tokens that it sends to each expert."""

    def __init__(self, decoder: Decoder, block: int, languages: Sequence[str], store: HiddenStateStore) -> None:
        self._decoder, self._block, self._store = decoder, block, store
        self._last = block == decoder.blocks - 1
        # Nothing is asked of what the last block makes, but which experts it chooses.
        needed = not self._last or bool(decoder.mixtures(block))
        self._module = decoder.load_block(block, decoder.read_block(block)) if needed else None
        self._routes = [] if self._module is None else [Routes(self._module, languages) for _ in range(_HALVES)]

    def run(self, index: int, piece: _Piece, hidden: torch.Tensor) -> None:
        """Compute and store the input of the next block for a piece's hidden states [segments, length, hidden_size]."""
        if self._module is None:
            return
        routes = self._routes[piece.half]
        routes.begin([piece.language] * len(hidden))
        with routes.counting(self._module):
            following = self._decoder.run_block(self._module, self._block, hidden)
        if not self._last:
            self._store.put(index, self._block + 1, following)

    def routed(self) -> dict[str, torch.Tensor]:
        """Return by mixture how often each expert was chosen, int64 [halves, languages, experts]."""
        if not self._routes:
            return {}
        return {
            mixture: torch.stack([one.tokens[mixture].cpu() for one in self._routes])
            for mixture in self._routes[0].experts
        }


def _expert_angles(routed: Mapping[str, torch.Tensor], where: str) -> _Angles:
    """Compare the counts [halves, languages, experts] of the languages, over all mixtures of a block."""
    # Cosines do not see lengths: the counts have those of the shares.
    by_half = torch.cat(list(routed.values()), dim=-1)
    halves = [float(_cosines(list(of_language), where)[0, 1]) for of_language in by_half.transpose(0, 1)]
    return _Angles(_cosines(list(by_half.sum(0)), where), halves)


def cluster(degrees: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Compute scipy's average linkage of the languages by their angles; neighbours in its order are similar."""
    links: npt.NDArray[np.float64] = linkage(squareform(degrees.to_numpy()), "average", optimal_ordering=True)
    return links


def _degrees(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    angles: npt.NDArray[np.float64] = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    return angles


def _cosines(sums: Sequence[torch.Tensor], where: str) -> npt.NDArray[np.float64]:
    """Compute <A, B> / (‖A‖ ‖B‖) for all pairs, in float64: in float32 small angles would be lost."""
    flat = [one.reshape(-1) for one in sums]
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, len(flat[0]), _ELEMENTS_AT_ONCE):
        part = torch.stack([one[start : start + _ELEMENTS_AT_ONCE] for one in flat]).double()
        products += part @ part.T
    norms = products.diagonal().sqrt()
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise InputError(f"{where} are all zero or not finite; take another --compute-dtype")
    cosines = (products / torch.outer(norms, norms)).numpy()
    np.fill_diagonal(cosines, 1.0)
    # A product of matrices need not be symmetric to the last bit.
    return (cosines + cosines.T) / 2
