"""The sweep files of jobs/: valid, and such that the models they name can be compressed as they say."""

from pathlib import Path

import pytest
import yaml
from transformers import BloomConfig

from mbs_ray.cli.demo import demo_sweep, packaged_models
from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, Method
from mbs_ray.run.sweep_spec import load_sweep

JOBS = Path(__file__).parents[2] / "jobs"
FOLDER, STUDIES = JOBS / "sweeps", JOBS / "studies"
FILES = [*sorted(FOLDER.glob("*.yaml")), *sorted(STUDIES.glob("*/*.yaml"))]
# hidden_size and blocks of models that are not in the package; bloom-mini and mixture are ones that users make.
SIZES = {
    "bigscience/bloom-560m": (1024, 24),
    "bigscience/bloom-1b7": (2048, 24),
    "bigscience/bloom-7b1": (4096, 30),
    "bigscience/bloom": (14336, 70),
    "bloom-mini": (192, 8),
    "mixture": (128, 6),
}


def size(model: str) -> tuple[int, int]:
    if model in SIZES:
        return SIZES[model]
    config = BloomConfig.from_pretrained(model)
    return config.hidden_size, config.n_layer


def check_linears(method: Method, hidden: int) -> None:
    """Raise InputError if the method cannot take the linears of a BLOOM block."""
    shapes = {
        "self_attention.query_key_value": (3 * hidden, hidden),
        "self_attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (4 * hidden, hidden),
        "mlp.dense_4h_to_h": (hidden, 4 * hidden),
    }
    for name, (rows, columns) in shapes.items():
        method.check(rows, columns, name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_sweep_file_suits_its_models(path: Path) -> None:
    sweep = load_sweep(path)
    runs = sweep.runs()
    assert sweep.name == path.stem
    assert len(runs) == len(set(sweep.labels(runs)))
    for run in runs:
        hidden, blocks = size(run.model)
        check_linears(run.method, hidden)
        assert sweep.layout.stages == "auto" or sweep.layout.stages <= blocks


def test_groups_of_1024_columns_do_not_suit_every_bloom() -> None:
    with pytest.raises(InputError, match="1024 does not divide the 1536 columns"):
        check_linears(GPTQ(bits=3, group_size=1024), 1536)


def test_the_demo_as_a_file_is_the_demo() -> None:
    sweep, demo = load_sweep(FOLDER / "demo.yaml"), demo_sweep(packaged_models())
    assert (sweep.name, sweep.layout, sweep.threads) == (demo.name, demo.layout, demo.threads)
    assert sweep.runs() == demo.runs()


def test_the_paper_s_grid_is_the_paper_s() -> None:
    runs = load_sweep(FOLDER / "paper.yaml").runs()
    assert {(run.segments, run.sequence_length, run.languages) for run in runs} == {(256, 2048, "paper")}
    assert {(run.model, run.method.label, run.sampling.label) for run in runs} == {
        (f"bigscience/{model}", method, sampling)
        for model in ("bloom-560m", "bloom-7b1")
        for method in ("gptq-3bit-g1024", "sparsegpt-50", "wanda-50")
        for sampling in ("monolingual-en", "equal", "proportional")
    }


@pytest.mark.parametrize("name", ["paper", "bloom-176b"])
def test_sweeps_for_clusters_read_the_same_paths_on_all_nodes(name: str) -> None:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for corpus in (content["corpus"], *(one["corpus"] for one in content["evaluation"].values())):
        assert Path(corpus).is_absolute()


@pytest.mark.parametrize("path", sorted((STUDIES / "bloom").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_asks_the_same_of_bloom_and_of_the_minis(path: Path) -> None:
    asked, expected = (
        {(run.method.label, run.sampling.label, run.segments) for run in load_sweep(file).runs()}
        for file in (path, STUDIES / "mini" / path.name)
    )
    assert asked == expected
