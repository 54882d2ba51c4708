"""Names of runs and sweeps: distinct, short enough for a file system, and never those of folders of `--out`."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.files import LONGEST_NAME, short_name
from mbs_ray.run.sweep_folders import FOLDERS_OF_OUT, SweepFolders
from mbs_ray.run.sweep_spec import SweepSpec, load_sweep, validated

BASE = {"model": "someone/model", "corpus": "corpus", "languages": "en,sw", "method": "wanda", "sampling": "equal"}


def sweep(grid: dict[str, list[Any]], **fields: Any) -> SweepSpec:
    run = {field: value for field, value in {**BASE, **fields}.items() if field not in grid}
    return validated(SweepSpec, {"name": "grid", "run": run, "grid": grid})


def labels_of(grid: dict[str, list[Any]], **fields: Any) -> list[str]:
    spec = sweep(grid, **fields)
    return spec.labels(spec.runs())


def test_a_grid_over_damping_is_two_runs_and_two_columns() -> None:
    methods = [{"name": "sparsegpt", "damping": damping} for damping in (0.01, 0.1)]
    assert labels_of({"method": methods}) == ["sparsegpt-50-equal", "sparsegpt-50-damping0.1-equal"]


@pytest.mark.parametrize(
    "grid",
    [
        {"method": [{"name": "wanda", "sparsity": one} for one in (0.3333333, 0.33333331)]},
        {"sampling": [{"name": "temperature", "alpha": one} for one in (0.3, 0.30000001)]},
        {"model": ["/a/model", "/b/model"]},
        {"sampling": [{"name": "adaptive", "sensitivity_segments": one} for one in (4, 13)]},
        {"statistics": [{"mode": "dense", "stored": one} for one in ("languages", "samplings")]},
        {"corpus": ["/texts/a b", "/texts/a-b"]},
    ],
)
def test_what_one_label_would_stand_for_twice_is_told_apart_by_a_digest(grid: dict[str, list[Any]]) -> None:
    spec = sweep(grid)
    runs = spec.runs()
    assert len(set(spec.labels(runs))) == 2
    assert spec.labels(runs[::-1]) == spec.labels(runs)[::-1]
    if "model" not in grid:  # which are apart by table
        assert len(set(spec.columns(runs))) == 2
    with pytest.raises(InputError, match=r"two runs would both be named .* a value stands there twice"):
        sweep({field: [*values, values[0]] for field, values in grid.items()}).runs()


def test_seeds_stay_in_one_column_and_a_single_value_says_nothing() -> None:
    spec = sweep({"seed": [0, 1], "segments": [8]})
    runs = spec.runs()
    assert spec.columns(runs) == [("wanda-50", "equal")] * 2
    assert spec.labels(runs) == ["wanda-50-equal-seed0", "wanda-50-equal-seed1"]


def test_a_label_too_long_for_a_file_system_is_shortened_with_a_digest(tmp_path: Path) -> None:
    labels = labels_of({"corpus": [f"/{'texts/' * 50}{end}" for end in "ab"]})
    assert len(set(labels)) == 2
    for label in labels:
        assert label.startswith("wanda-50-equal-corpus-texts-texts") and len(label) == LONGEST_NAME
        (tmp_path / label).mkdir()


def test_fields_that_came_later_change_a_label_only_where_they_are_given() -> None:
    alike = {"corpus": ["/texts/a b", "/texts/a-b"]}  # told apart by a digest of the whole run
    plain = labels_of(alike)
    assert labels_of(alike, expert_tokens=4.0, expert_segments=0) == plain
    assert set(labels_of(alike, expert_segments=4)).isdisjoint(plain)
    several = labels_of({"expert_segments": [0, 4]})
    assert several == ["wanda-50-equal-expert-segments0", "wanda-50-equal-expert-segments4"]


def test_evaluation_sets_in_a_grid_are_told_apart_by_a_digest() -> None:
    one, other = labels_of({"evaluation": [{"held-out": {"corpus": f"/texts/{end}"}} for end in "ab"]})
    assert re.fullmatch(r"wanda-50-equal-evaluation-[0-9a-f]{8}", one)
    assert one[:-8] == other[:-8] and one != other


@given(st.text(min_size=1, max_size=400), st.sampled_from(["", ".csv", ".png"]))
def test_a_short_name_is_itself_and_a_long_one_fits(name: str, ending: str) -> None:
    short = short_name(name, ending)
    assert len(short.encode()) <= LONGEST_NAME and short.endswith(ending)
    assert short == name + ending or len((name + ending).encode()) > LONGEST_NAME


def test_no_sweep_is_named_like_a_folder_of_out(tmp_path: Path) -> None:
    folders = SweepFolders(tmp_path, "x")
    signature = dict.fromkeys(("compute_dtype", "microbatch", "device", "threads", "torch"), "")
    shared = [folders.segments, folders.cache, folders.artifacts, folders.all_statistics, folders.adaptive]
    shared += [folders.dense("m", "e", signature), folders.outside("f")]
    assert {path.relative_to(tmp_path).parts[0] for path in shared} <= set(FOLDERS_OF_OUT)
    for name in (*FOLDERS_OF_OUT, "Segments"):
        with pytest.raises(InputError, match=f"name: sweep '{name}': a folder under --out has that name"):
            validated(SweepSpec, {"name": name, "run": {}})


def written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(f"name: x\nmodel: someone/model\n{text}")
    return path


def test_folders_in_a_mapping_are_relative_to_the_file_and_a_tilde_is_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "own" / "set").mkdir(parents=True)
    cases: list[tuple[Any, Any]] = [
        ("corpus", str(tmp_path / "corpus")),
        ("~/texts", str(tmp_path / "home/texts")),
        ({"folder": "./x", "text_column": "t"}, {"folder": str(tmp_path / "x"), "text_column": "t"}),
        ({"folder": "~/x"}, {"folder": str(tmp_path / "home/x")}),
        (
            {"dataset": "json", "data_files": "x/{language}.jsonl"},
            {"dataset": "json", "data_files": str(tmp_path / "x/{language}.jsonl")},
        ),
        ({"dataset": "json", "data_files": "https://host/x"}, {"dataset": "json", "data_files": "https://host/x"}),
        ({"dataset": "a/b", "data_files": "x/en.jsonl"}, {"dataset": "a/b", "data_files": "x/en.jsonl"}),
        ({"dataset": "own/set"}, {"dataset": str(tmp_path / "own/set")}),
        ("/already/absolute", "/already/absolute"),
    ]
    for given_corpus, expected in cases:
        fields = {"corpus": given_corpus, "evaluation": {"v": {"corpus": given_corpus}}}
        plain = yaml.safe_dump({**fields, "method": "wanda", "sampling": "equal"})
        (run,) = load_sweep(written(tmp_path, plain)).runs()
        assert run.corpus == expected and run.evaluation["v"].corpus == expected
        in_grid = yaml.safe_dump({"method": "wanda", "sampling": "equal", "grid": {"corpus": [given_corpus]}})
        assert load_sweep(written(tmp_path, in_grid)).runs()[0].corpus == expected


@pytest.mark.parametrize("field", ["model", "corpus", "nvme_path"])
def test_a_path_with_a_null_character_is_one_line(tmp_path: Path, field: str) -> None:
    fields = {"method": "wanda", "sampling": "equal", "corpus": "corpus", field: "\0x"}
    with pytest.raises(InputError, match=r"sweep\.yaml: '\\x00x': no path can hold a null character"):
        load_sweep(written(tmp_path, yaml.safe_dump(fields)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method:\nsampling: equal\n", "method: .*give a name or a mapping with a name, got None"),
        ("method: [wanda]\nsampling: equal\n", r"method: .*got \['wanda'\]"),
        ("method: 3\nsampling: equal\n", "method: .*got 3"),
        ("method: wanda\nsampling:\n", "sampling: .*expected a name or a mapping with a name, not None"),
        ("method: wanda\nsampling: 0.3\n", "sampling: .*not 0.3"),
        ("method: wanda\nsampling: [equal]\n", r"sampling: .*not \['equal'\]"),
        ("grid: {method: [null], sampling: [equal]}\n", "method: .*got None"),
        ("grid: {method: wanda}\n", "grid.method: "),
        ("grid:\n", "grid: "),
        ("languages: [en, no]\nmethod: wanda\nsampling: equal\n", "languages: language false: YAML reads no .*'no'"),
        ("languages: no\nmethod: wanda\nsampling: equal\n", "languages: language false: YAML reads no .*'no'"),
        ("languages: [en, ../x]\nmethod: wanda\nsampling: equal\n", "languages: language '../x': no code"),
        ("method: wanda\nsampling: {name: counts, counts: {no: 4}}\n", "sampling: .*language false: YAML reads no"),
        ("no: 3\nmethod: wanda\nsampling: equal\n", "sweep.yaml: "),
        ("corpus: ~nobody-of-this-name/x\nmethod: wanda\nsampling: equal\n", "~nobody-of-this-name/x: "),
    ],
)
def test_what_is_empty_or_of_another_kind_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    beginning = "" if "corpus:" in text else "corpus: corpus\n"
    with pytest.raises(InputError, match=message) as error:
        load_sweep(written(tmp_path, beginning + text))
    assert "\n" not in str(error.value)


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    text = "corpus: c\nmethod: {name: sparsegpt, damping: 5e-2}\nsampling: {name: temperature, alpha: 3e-1}\n"
    (run,) = load_sweep(written(tmp_path, text)).runs()
    assert run.sampling.label == "temperature-0.3" and run.method.label == "sparsegpt-50-damping0.05"
