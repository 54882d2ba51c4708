"""The report of a block: what compressing it cost and what it lost."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mbs_ray.compression.layer_error import LayerError
from mbs_ray.compression.routing import MixtureReport
from mbs_ray.files import appearing, own_content, read_json


@dataclass(frozen=True)
class LinearReport:
    """Report of one linear: ``loss`` is tr(ΔW H ΔWᵀ), ``relative_loss`` the same over tr(W H Wᵀ).

    ``strength``: how much of the step towards the dense model was taken before; None where there was none. Then ΔW is
    the difference to the weight that this step gave. ``borrowed``: share that all tokens of the block have in the
    moment of a starved expert; it is among ``tokens``.
    """

    name: str
    rows: int
    columns: int
    tokens: int
    loss: float | None
    relative_loss: float | None
    sparsity: float
    damping: float
    dead_columns: int
    seconds: float
    strength: float | None = None
    borrowed: float = 0.0


@dataclass
class BlockReport:
    """Report of one block of one run; ``seconds`` by part (read, collect, solve, measure, write, propagate).

    ``layer_error`` is empty unless the run is ``per_language``, ``mixtures`` without experts, or moments.
    """

    block: int
    linears: list[LinearReport] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    layer_error: list[LayerError] = field(default_factory=list)
    mixtures: list[MixtureReport] = field(default_factory=list)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - begun

    def metrics(self) -> dict[str, float]:
        """Aggregate the linears: sums, the largest damping, sparsity weighted by size, and the mean relative loss."""
        weights = [linear.rows * linear.columns for linear in self.linears]
        total = max(sum(weights), 1)
        values = {
            "sparsity": sum(n * linear.sparsity for n, linear in zip(weights, self.linears, strict=True)) / total,
            "damping": max((linear.damping for linear in self.linears), default=0.0),
            "dead_columns": float(sum(linear.dead_columns for linear in self.linears)),
            "seconds": sum(self.seconds.values()),
        }
        losses = [linear.loss for linear in self.linears if linear.loss is not None]
        relative = [linear.relative_loss for linear in self.linears if linear.relative_loss is not None]
        if losses:
            values["loss"] = sum(losses)
        if relative:
            values["relative_loss"] = sum(relative) / len(relative)
        return values

    def expert_counts(self) -> dict[str, float]:
        """Count the experts that borrowed from all tokens of the block, and those that no token reached."""
        if not self.mixtures:
            return {}
        received = [sum(tokens) for one in self.mixtures for tokens in zip(*one.tokens, strict=True)]
        return {
            "starved_experts": float(sum(len(one.borrowed) for one in self.mixtures)),
            "unreached_experts": float(received.count(0)),
        }

    def language_errors(self) -> dict[str, float]:
        """Compute each language's relative error: Σ ‖ΔW x‖² over Σ ‖W x‖², both over the linears and the tokens."""
        languages = dict.fromkeys(one.language for one in self.layer_error)
        errors = {}
        for language in languages:
            own = [one for one in self.layer_error if one.language == language]
            energy = sum(one.energy for one in own)
            if energy:
                errors[language] = sum(one.error for one in own) / energy
        return errors

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "BlockReport":
        linears = [LinearReport(**linear) for linear in content["linears"]]
        layer_error = [LayerError(**one) for one in content.get("layer_error", [])]
        mixtures = [
            MixtureReport(**{**one, "borrowed": {int(number): share for number, share in one["borrowed"].items()}})
            for one in content.get("mixtures", [])
        ]
        return cls(content["block"], linears, dict(content["seconds"]), layer_error, mixtures)


def expert_metrics(reports: Iterable[BlockReport]) -> dict[str, float]:
    """Count over all blocks the experts that borrowed, and those that no token reached; empty without any expert."""
    counts = [one.expert_counts() for one in reports if one.mixtures]
    names = {"starved_experts": "experts/starved", "unreached_experts": "experts/unreached"}
    return {metric: sum(one[name] for one in counts) for name, metric in names.items()} if counts else {}


def block_report_file(folder: Path, block: int) -> Path:
    return folder / f"block-{block:05d}.json"


def write_block_report(folder: Path, report: BlockReport) -> None:
    with appearing(block_report_file(folder, report.block)) as unfinished:
        unfinished.write_text(json.dumps(report.to_json()))


def read_block_reports(folder: Path) -> list[BlockReport]:
    """Read the reports of all finished blocks, in the order of the blocks."""
    return [_read_block_report(path) for path in sorted(folder.glob("block-*.json"))]


def _read_block_report(path: Path) -> BlockReport:
    content = read_json(path)
    with own_content(path):
        return BlockReport.from_json(content)
