"""The run directory: the truth about a run, and the signature that guards it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mbs_ray.errors import InputError
from mbs_ray.files import UNFINISHED, own_content, read_json_if_there, write_json
from mbs_ray.methods import Amounts
from mbs_ray.model.block_files import BLOCK_SUFFIX, DIGEST_SUFFIX
from mbs_ray.model.manifest import checkpoint_digest
from mbs_ray.run.card import CardFacts
from mbs_ray.run.older_directory import OlderRun, older_run
from mbs_ray.run.run_facts import RunFacts


def scores_file(directory: Path, name: str) -> Path:
    """Return the file to which a run, or a dense evaluation, writes the token scores of an evaluation set."""
    return directory / "evaluation" / f"{name}.parquet"


def finished_files(directory: Path) -> int:
    """Count the finished files under the directory of a job: a run, a dense evaluation or stored moments."""
    return sum(path.suffix in _FINISHED for path in directory.rglob("*"))


#: Files that appear whole, as blocks, token scores and reports do.
_FINISHED = (".safetensors", ".parquet", ".json")

#: Folder of a sweep that holds its run directories.
RUNS = "runs"

SIGNATURE = "signature.json"
FACTS = "run.json"
RESULT = "result.json"
TRACKING = "tracking.json"
CARD = "card.json"
ALLOCATION = "allocation.json"
WEIGHTS = "weights.json"
SEARCH = "search.json"
BUDGET = "budget.json"
TOP_UP = "top_up.json"
SPEC = "spec.json"
EXPERTS = "experts.parquet"

#: What to do about a file that only a command writes that has work left to do in the run.
_WITH_RESULT = f"remove it, and {RESULT} beside it, and give the mbs command of the run again"

#: Fields of a signature that nobody asked for: versions, GPUs and compilers of the day.
SURROUNDINGS = ("gpu", "torch", "transformers", "arithmetic", "kernel")

#: Value of the field ``keep`` of a run that removes its weights.
METRICS = "metrics"


class RunDirectory:
    """Files of one run: signature, facts, blocks, packed blocks, evaluation, checkpoint, card, journal, result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures = path / "figures"
        self.blocks = path / "blocks"
        self.packed = path / "packed"
        self.checkpoint = path / "checkpoint"
        self.exports = path / "export"
        self.journal = path / "journal.jsonl"

    @classmethod
    def all_of(cls, sweep: Path) -> "list[RunDirectory]":
        """List the directories of the runs in the folder of a sweep, by label; none where it is no such folder."""
        return [cls(path) for path in sorted((sweep / RUNS).glob("*")) if path.is_dir()]

    @property
    def sweep(self) -> Path:
        """Folder of the sweep that the run belongs to."""
        return self.path.parents[1]

    def scores(self, name: str) -> Path:
        """Return the file of the run's token scores on an evaluation set."""
        return scores_file(self.path, name)

    def stored_signature(self) -> dict[str, Any] | None:
        """Read the signature the run was begun with; None where no run was begun."""
        return read_json_if_there(self.path / SIGNATURE)

    def refuse_changed(self, signature: Mapping[str, Any], finished: bool = False) -> None:
        """Raise :class:`InputError` naming a field in which the run that was begun here differs.

        The signature covers all that can change bits of the run's weights. Of a ``finished`` one none will be computed
        any more: it is shown after an update, and on other GPUs.
        """
        stored = self.stored_signature()
        if stored is None:
            return
        before, now = _flat(stored), _flat(json.loads(json.dumps(signature)))
        for field in sorted(before.keys() | now.keys()):
            # Earlier versions did not sign all of the surroundings.
            told = field not in SURROUNDINGS or (field in before and not finished)
            if told and before.get(field) != now.get(field):
                raise InputError(
                    f"{self.path}: was begun with {field} {before.get(field)!r}, now it is {now.get(field)!r}; "
                    "give the same as then, give the sweep another name, or remove this folder"
                )

    def refuse_other_first_set(self, name: str) -> None:
        """Raise :class:`InputError` where the run was begun with another evaluation set as its first.

        The first set has metrics without its name (``ppl/sw``): they would be taken for those of the other.
        """
        facts = self.facts()
        first = next(iter(facts.evaluation), "") if facts is not None else ""
        if first and name and name != first:
            raise InputError(
                f"{self.path}: was begun with evaluation set {first!r} first, now {name!r} is; keep the first one "
                "(its metrics are named without it), give the sweep another name, or remove this folder"
            )

    def claim(self, signature: Mapping[str, Any], facts: RunFacts, finished: bool = False) -> None:
        """Claim the directory for a run with this signature, if it is new, and write the facts of the run.

        ``finished``: nothing is left to do in it, and the facts of the command that finished it stay.
        """
        self.blocks.mkdir(parents=True, exist_ok=True)
        if self.stored_signature() is None:
            write_json(self.path / SIGNATURE, signature)
        if not finished or self.facts() is None:
            write_json(self.path / FACTS, facts.to_json())

    def facts(self) -> RunFacts | None:
        """Read the facts of the run; None where no run was begun."""
        path = self.path / FACTS
        if (content := read_json_if_there(path)) is not None:
            with own_content(path):
                return RunFacts.from_json(content)
        older = self._older()
        return None if older is None else older.facts

    def facts_written(self) -> int:
        """Return the time of the last command that worked on the run, in nanoseconds since 1970; 0 where none did."""
        paths = (self.path / name for name in (FACTS, TRACKING))
        return next((path.stat().st_mtime_ns for path in paths if path.is_file()), 0)

    def _older(self) -> OlderRun | None:
        told = self.tracking_identity()
        if told is None:
            return None
        with own_content(self.path / TRACKING, _WITH_RESULT):
            return older_run(self.path.name, told, self.card(), self.allocation(), weighed=bool(self.weights()))

    def result(self) -> dict[str, Any] | None:
        """Read the result of a finished run; None while it is not finished.

        ``metrics`` by name, ``evaluation``: set → fingerprint of its text, ``dense``: set → language → perplexity of
        the dense model, ``keep``, and whether MLflow has taken everything (``tracked``).
        """
        path = self.path / RESULT
        result: dict[str, Any] | None = read_json_if_there(path)
        if result is None:
            return None
        with own_content(path):
            _ = result["metrics"]
        if "dense" not in result:
            older = self._older()
            result["dense"] = {} if older is None else older.dense
        return result if self.checkpoint.is_dir() or result.get("keep") == METRICS else None

    def scored_sets(self) -> dict[str, str]:
        """Return the fingerprints of the texts a finished run was scored on, by evaluation set, the first one first."""
        result, facts = self.result(), self.facts()
        if result is None or facts is None:
            return {}
        texts = result.get("evaluation", {})
        return {name: texts[name] for name in facts.evaluation if name in texts}

    def drop_weights(self) -> None:
        """Remove the blocks of a finished run: dense, packed and unfinished ones; the reports of blocks stay."""
        for pattern in (f"*{BLOCK_SUFFIX}", f"*{DIGEST_SUFFIX}", f"*{UNFINISHED}"):
            for block in self.blocks.glob(pattern):
                block.unlink()
        shutil.rmtree(self.packed, ignore_errors=True)

    def keep_card(self, facts: CardFacts) -> None:
        """Write the content of the model card."""
        write_json(self.path / CARD, asdict(facts))

    def card(self) -> CardFacts | None:
        """Read the content of a finished run's model card; None where no run was finished."""
        path = self.path / CARD
        content = read_json_if_there(path, _WITH_RESULT)
        with own_content(path, _WITH_RESULT):
            return None if content is None else CardFacts.from_json(content)

    def finished(self) -> CardFacts:
        """Read the card of a run that is finished and kept its weights. Raises :class:`InputError` for any other."""
        if self.stored_signature() is None:
            raise InputError(
                f"{self.path}: no run directory; give <out>/<sweep>/runs/<run> of mbs compress or mbs sweep"
            )
        card = self.card()
        if self.result() is None or card is None:
            raise InputError(f"{self.path}: the run is not finished; give its mbs command again, which resumes it")
        if not self.checkpoint.is_dir():
            raise InputError(
                f"{self.path}: the run kept its metrics alone; give its mbs command again with keep: checkpoint, which "
                "computes it anew"
            )
        return card

    def keep_tracking_identity(self, told: Mapping[str, Any]) -> None:
        """Write what :meth:`tracking_identity` reads."""
        write_json(self.path / TRACKING, told)

    def tracking_identity(self) -> dict[str, Any] | None:
        """Read the keys and names under which MLflow knows the run and its sweep; None where it was never tracked."""
        return read_json_if_there(self.path / TRACKING, _WITH_RESULT)

    def allocation(self) -> dict[str, int]:
        """Read the calibration segments by language; empty where the command was killed before it wrote them."""
        return read_json_if_there(self.path / ALLOCATION, _WITH_RESULT) or {}

    def weights(self) -> dict[str, float]:
        """Read the weights of the languages, with dense statistics; empty where the run has none."""
        return read_json_if_there(self.path / WEIGHTS, _WITH_RESULT) or {}

    def amounts(self) -> Amounts | None:
        """Read what each linear was given of the method's amount; None where all were given the same."""
        path = self.path / BUDGET
        dealt = read_json_if_there(path, _WITH_RESULT)
        if dealt is None:
            return None
        with own_content(path, _WITH_RESULT):
            return Amounts.from_plain(dealt["amounts"])

    def top_up(self) -> dict[str, Any] | None:
        """Read which further segments were drawn for starved experts; None where the run has none, or was not begun."""
        path = self.path / TOP_UP
        top_up: dict[str, Any] | None = read_json_if_there(path, _WITH_RESULT)
        if top_up is not None:
            with own_content(path, _WITH_RESULT):
                _ = top_up["asked"], top_up["segments"], top_up["starved"]
        return top_up

    def checkpoint_digest(self) -> str | None:
        """Return what :func:`~mbs_ray.model.manifest.checkpoint_digest` says of the checkpoint."""
        return checkpoint_digest(self.checkpoint)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, which makes the run a finished one."""
        write_json(self.path / RESULT, result)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
