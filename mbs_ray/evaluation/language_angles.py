"""Similarity of languages inside a model: angles between second moments of the inputs of its blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from mbs_ray.errors import InputError
from mbs_ray.files import appearing
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.decoder import Decoder

#: Elements of each moment that are turned into float64 at once.
_ELEMENTS_AT_ONCE = 2**20
#: "diagonal": of the vectors, the diagonals of the moments; "full": of the moments, as matrices.
ANGLES = ("diagonal", "full")


@dataclass(frozen=True, eq=False)
class Similarity:
    """Vectors and cosines of the inputs of a dense model's blocks in each language.

    ``vectors`` float32 [blocks, languages, hidden_size]: the mean over tokens of x², per dimension of a block's input
    x; that of block 0 is the vector of Multilingual Brain Surgeon (arXiv 2404.04748). ``cosines`` float64 [blocks,
    languages, languages] by statistic: ``diagonal`` between these vectors, ``full`` between the second moments Σ x xᵀ,
    in the Frobenius inner product, <A, B> / (‖A‖ ‖B‖). ``halves`` float64 [blocks, languages] by statistic: the same
    between two halves of a language's own segments. Their angle is what chance makes of so little text.
    """

    languages: tuple[str, ...]
    tokens: tuple[int, ...]
    vectors: npt.NDArray[np.float32]
    cosines: Mapping[str, npt.NDArray[np.float64]]
    halves: Mapping[str, npt.NDArray[np.float64]]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.vectors)

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
        for statistic in ANGLES:
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
    languages = tuple(token_ids)
    # Not in turns: segments that follow each other may be of one document, and the halves are to have little in common.
    pieces = [
        (language, half, piece)
        for language, ids in token_ids.items()
        for half, own in enumerate(ids.tensor_split(2))
        for piece in own.split(microbatch)
    ]
    vectors: list[npt.NDArray[np.float32]] = []
    cosines: dict[str, list[npt.NDArray[np.float64]]] = {statistic: [] for statistic in ANGLES}
    halves: dict[str, list[list[float]]] = {statistic: [] for statistic in ANGLES}
    with torch.inference_mode():
        for index, (_, _, piece) in enumerate(pieces):
            store.put(index, 0, decoder.embed(piece))
        for block in range(decoder.blocks):
            # Nothing is asked of what the last block makes.
            following = None if block == decoder.blocks - 1 else decoder.load_block(block, decoder.read_block(block))
            moments = []
            for statistic in ANGLES:
                halves[statistic].append([])
            for language in languages:
                parts: dict[int, Moment] = {}
                for index, (own, half, _) in enumerate(pieces):
                    if own != language:
                        continue
                    hidden = store.get(index, block, decoder.device)
                    if half not in parts:
                        parts[half] = Moment.zeros(hidden.shape[-1], Statistic.FULL, decoder.device)
                    parts[half].accumulate(hidden)
                    if following is not None:
                        store.put(index, block + 1, decoder.run_block(following, block, hidden))
                    notify(block * len(pieces) + index + 1, decoder.blocks * len(pieces))
                for one in parts.values():
                    one.complete()
                moment, other = (
                    Moment(one.statistic, one.columns, one.tokens, one.sum.cpu()) for one in parts.values()
                )
                where = f"{language}: the inputs of block {block}"
                halves["diagonal"][-1].append(float(_cosines([moment.diagonal(), other.diagonal()], where)[0, 1]))
                halves["full"][-1].append(float(_cosines([moment.sum, other.sum], where)[0, 1]))
                moment.merge(other)
                moments.append(moment)
            where = f"the inputs of block {block}"
            vectors.append(torch.stack([one.diagonal() / one.tokens for one in moments]).numpy())
            cosines["diagonal"].append(_cosines([one.diagonal() for one in moments], where))
            cosines["full"].append(_cosines([one.sum for one in moments], where))
    return Similarity(
        languages,
        tuple(ids.numel() for ids in token_ids.values()),
        np.stack(vectors),
        {statistic: np.stack(matrices) for statistic, matrices in cosines.items()},
        {statistic: np.array(rows) for statistic, rows in halves.items()},
    )


def cluster(degrees: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Compute scipy's average linkage of the languages by their angles; neighbours in its order are similar."""
    links: npt.NDArray[np.float64] = linkage(squareform(degrees.to_numpy()), "average", optimal_ordering=True)
    return links


def write_vectors(path: Path, similarity: Similarity) -> None:
    """Write a row per block and language: tokens, vector (float32 list), cosines of its halves; whole or not at all."""
    blocks, languages, width = similarity.vectors.shape
    flat = pa.array(similarity.vectors.reshape(-1))
    columns = {
        "block": pa.array(np.repeat(np.arange(blocks, dtype=np.int32), languages)),
        "language": pa.array(list(similarity.languages) * blocks),
        "tokens": pa.array(list(similarity.tokens) * blocks),
        "vector": pa.FixedSizeListArray.from_arrays(flat, width),
        **{f"halves_{statistic}": pa.array(values.reshape(-1)) for statistic, values in similarity.halves.items()},
    }
    _write(path, pa.table(columns))


def write_matrices(path: Path, similarity: Similarity) -> None:
    """Write a row per block, statistic and ordered pair of languages: cosine, angle in degrees; whole or not at all."""
    rows: list[dict[str, Any]] = []
    for block in range(similarity.blocks):
        for statistic in ANGLES:
            degrees = similarity.degrees(statistic, block).to_numpy()
            for (row, column), cosine in np.ndenumerate(similarity.cosines[statistic][block]):
                pair = {"language": similarity.languages[row], "other": similarity.languages[column]}
                values = {"cosine": float(cosine), "degrees": float(degrees[row, column])}
                rows.append({"block": block, "statistic": statistic, **pair, **values})
    _write(path, pa.Table.from_pylist(rows))


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


def _write(path: Path, table: pa.Table) -> None:
    with appearing(path) as unfinished:
        pq.write_table(table, unfinished)
