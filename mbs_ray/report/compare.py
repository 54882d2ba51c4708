"""``mbs compare``: two finished runs, or a run and its dense model, language by language."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mbs_ray.errors import InputError
from mbs_ray.evaluation.comparison import Difference, compare_scores
from mbs_ray.files import own_content, read_json_if_there, short_name
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.difference_forest import difference_forest
from mbs_ray.run.directory import SPEC, RunDirectory, scores_file
from mbs_ray.run.sweep_folders import SweepFolders

#: Folder of a run with the figures of comparisons in which it was B.
FIGURES = "comparisons"
#: Bytes of a figure's name: beside it stands, while it is written, one with a few more.
_LONGEST = 200


@dataclass(frozen=True)
class Side:
    """What is compared: its name, and for each evaluation set the fingerprint of the text and the token scores.

    ``parallel``: what the sets say of their documents; ``groups``: those of its languages.
    """

    name: str
    sets: Mapping[str, tuple[str, Path]]
    parallel: Mapping[str, bool | None] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two sides compared on one evaluation set; ``differences`` are B minus A by language, then by summary."""

    evaluation: str
    a: str
    b: str
    differences: Mapping[str, Difference]
    figure: Path


def compare_runs(a: Path, b: Path, out: Path | None = None) -> list[Comparison]:
    """Compare two run directories on every evaluation set they share, and draw a figure for each.

    Figures go to ``out``, or ``comparisons`` in B's directory. Raises :class:`InputError` where one is no finished
    run, they share no evaluation set, were not scored on the same tokens of one, or ``out`` cannot be written.
    """
    runs = RunDirectory(a.resolve()), RunDirectory(b.resolve())
    first, second = (_run(run) for run in runs)
    if first.name == second.name:
        first, second = (
            replace(side, name=f"{run.sweep.name}/{side.name}") for run, side in zip(runs, (first, second), strict=True)
        )
    return _compare(first, second, out or runs[1].path / FIGURES)


def compare_with_dense(run: Path, out: Path | None = None) -> list[Comparison]:
    """Compare the dense model as A with the run as B, as :func:`compare_runs` does."""
    directory = RunDirectory(run.resolve())
    side = _run(directory)
    return _compare(_dense(directory), side, out or directory.path / FIGURES)


def _run(run: RunDirectory) -> Side:
    run.finished()  # or say what is missing
    if (facts := run.facts()) is None:
        raise InputError(f"{run.path}: says nowhere what the run is; give its mbs command again, which writes run.json")
    sets = {name: (text, run.scores(name)) for name, text in run.scored_sets().items()}
    spec = run.path / SPEC
    content = read_json_if_there(spec, "remove it: only whether its texts are parallel is read there")
    with own_content(spec):
        asked = {} if content is None else content["evaluation"]
        parallel = {name: asked.get(name, {}).get("parallel") for name in sets}
    return Side(run.path.name, sets, parallel, facts.groups)


def _dense(run: RunDirectory) -> Side:
    folders, facts = SweepFolders.of(run.sweep), run.facts()
    assert facts is not None
    sets = {}
    for name, text in run.scored_sets().items():
        sets[name] = text, scores_file(folders.dense(facts.fingerprints["model"], text, facts.resolved), name)
    return Side(f"{facts.model} (dense)", sets, groups=facts.groups)


def _compare(a: Side, b: Side, out: Path) -> list[Comparison]:
    shared = [name for name in a.sets if name in b.sets]
    if not shared:
        raise InputError(
            f"no evaluation set in common: {a.name} has {_listed(a)}, {b.name} has {_listed(b)}; "
            "evaluate both on one set of the same name"
        )
    compared = []
    for name in shared:
        (here, ones), (there, others) = a.sets[name], b.sets[name]
        for side, path in ((a, ones), (b, others)):
            if not path.is_file():
                raise InputError(f"{path}: the token scores of {side.name} on {name} are not there")
        # Of two models with other shares, or of an earlier version, only the groups that both have alike.
        groups = {group: own for group, own in b.groups.items() if a.groups.get(group) == own}
        found = compare_scores(name, ones, others, b.parallel.get(name), groups)
        if here != there:
            raise InputError(
                f"evaluation set {name}: the tokens of {a.name} and {b.name} are as many, but of other text or of "
                f"another tokenizer (fingerprints {here[:16]} and {there[:16]}); evaluate both on the same text"
            )
        path = out / short_name(f"{a.name.replace('/', '-')}-{name}", ".png", _LONGEST)
        compared.append(Comparison(name, a.name, b.name, found, path))
    for one in compared:
        figure = difference_forest(one.differences, f"{one.b} (B) against {one.a} (A), {one.evaluation}")
        try:
            save_figure(figure, one.figure)
        except OSError as error:
            raise InputError(f"{one.figure}: cannot be written ({error.strerror})") from error
    return compared


def _listed(side: Side) -> str:
    return ", ".join(side.sets) or "none"
