"""The run directory: the truth about a run, and the signature that guards it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.files import UNFINISHED, write_json
from mbs_ray.model.block_files import BLOCK_SUFFIX
from mbs_ray.run.card import CardFacts


def scores_file(directory: Path, name: str) -> Path:
    """Where a run, or a dense evaluation, leaves the token scores of an evaluation set."""
    return directory / "evaluation" / f"{name}.parquet"


SIGNATURE = "signature.json"
RESULT = "result.json"
TRACKING = "tracking.json"
CARD = "card.json"
ALLOCATION = "allocation.json"
WEIGHTS = "weights.json"
SEARCH = "search.json"
SPEC = "spec.json"

#: What a run keeps that removes its weights.
METRICS = "metrics"


class RunDirectory:
    """Files of one run: signature, blocks, packed blocks, evaluation, checkpoint, card, journal, result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = path / "blocks"
        self.packed = path / "packed"
        self.checkpoint = path / "checkpoint"
        self.exports = path / "export"
        self.journal = path / "journal.jsonl"

    def stored_signature(self) -> dict[str, Any] | None:
        path = self.path / SIGNATURE
        return json.loads(path.read_text()) if path.is_file() else None

    def refuse_changed(self, signature: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` naming a field in which the run that was begun here differs.

        The signature covers all that can change bits of the run's weights.
        """
        stored = self.stored_signature()
        if stored is None:
            return
        before, now = _flat(stored), _flat(json.loads(json.dumps(signature)))
        for field in sorted(before.keys() | now.keys()):
            if before.get(field) != now.get(field):
                raise InputError(
                    f"{self.path}: was begun with {field} {before.get(field)!r}, now it is {now.get(field)!r}; "
                    "give the same as then, give the sweep another name, or remove this folder"
                )

    def refuse_other_first_set(self, name: str) -> None:
        """Raise :class:`InputError` where the run was begun with another evaluation set in the first place.

        The first set has metrics without its name (``ppl/sw``): they would be taken for those of the other.
        """
        told = self.tracking_identity()
        first = "" if told is None else told["run"]["params"]["evaluation"].partition(",")[0]
        if first and name and name != first:
            raise InputError(
                f"{self.path}: was begun with evaluation set {first!r} first, now {name!r} is; keep the first one "
                "(its metrics are named without it), give the sweep another name, or remove this folder"
            )

    def claim(self, signature: Mapping[str, Any]) -> None:
        """Make the directory that of a run with this signature, if it is new."""
        self.blocks.mkdir(parents=True, exist_ok=True)
        if self.stored_signature() is None:
            write_json(self.path / SIGNATURE, signature)

    def result(self) -> dict[str, Any] | None:
        """What a finished run left; None while it is not finished."""
        path = self.path / RESULT
        if not path.is_file():
            return None
        result = json.loads(path.read_text())
        return result if self.checkpoint.is_dir() or result.get("keep") == METRICS else None

    def drop_weights(self) -> None:
        """Remove the blocks of a finished run, dense, packed and left unfinished; the reports of blocks stay."""
        for pattern in (f"*{BLOCK_SUFFIX}", f"*{UNFINISHED}"):
            for block in self.blocks.glob(pattern):
                block.unlink()
        shutil.rmtree(self.packed, ignore_errors=True)

    def keep_card(self, facts: CardFacts) -> None:
        write_json(self.path / CARD, asdict(facts))

    def card(self) -> CardFacts | None:
        """What the model card of a finished run says; None where no run was finished."""
        path = self.path / CARD
        return CardFacts.from_json(json.loads(path.read_text())) if path.is_file() else None

    def finished(self) -> CardFacts:
        """The facts of a finished run. Raises :class:`InputError` where there is none, or it is not finished."""
        if self.stored_signature() is None:
            raise InputError(
                f"{self.path}: no run directory; give <out>/<sweep>/runs/<run> of mbs compress or mbs sweep"
            )
        card = self.card()
        if self.result() is None or card is None:
            raise InputError(f"{self.path}: the run is not finished; give its mbs command again, which goes on with it")
        if not self.checkpoint.is_dir():
            raise InputError(
                f"{self.path}: the run kept its metrics alone; give its mbs command again with keep: checkpoint, which "
                "computes it anew"
            )
        return card

    def keep_tracking_identity(self, told: Mapping[str, Any]) -> None:
        write_json(self.path / TRACKING, told)

    def tracking_identity(self) -> dict[str, Any] | None:
        """Under which keys and names MLflow knows the run and its sweep; None where it was never told of them."""
        path = self.path / TRACKING
        return json.loads(path.read_text()) if path.is_file() else None

    def allocation(self) -> dict[str, int]:
        """Calibration segments by language; empty where the command was killed before it wrote them."""
        path = self.path / ALLOCATION
        return json.loads(path.read_text()) if path.is_file() else {}

    def weights(self) -> dict[str, float]:
        """Of the languages, with dense statistics; empty where the run has none."""
        path = self.path / WEIGHTS
        return json.loads(path.read_text()) if path.is_file() else {}

    def finish(self, result: Mapping[str, Any]) -> None:
        write_json(self.path / RESULT, result)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
