"""``mbs demo`` on a tiny random model, and the sentence it ends with."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from mbs_ray.cli import app, demo
from mbs_ray.cli.demo import MODELS, demo_sentence, demo_sweep, packaged_models, shown_views
from mbs_ray.driver.conclusion import SweepResult
from mbs_ray.errors import InputError
from mbs_ray.languages.codes import GROUPS
from mbs_ray.languages.facts import PAPER_LANGUAGES
from tests.support.models import write_bloom

METHODS = ["wanda-50", "sparsegpt-50", "gptq-3bit"]
SAMPLINGS = ["monolingual-en", "equal", "proportional"]


def test_the_sweep_is_three_methods_by_three_samplings_on_each_model() -> None:
    sweep = demo_sweep([Path("small"), Path("large")])
    runs = sweep.runs()
    expected = [
        f"{model}-{method}-{sampling}" for model in ("small", "large") for method in METHODS for sampling in SAMPLINGS
    ]
    assert sweep.labels(runs) == expected
    assert (sweep.name, sweep.layout.stages, sweep.threads) == ("demo", 2, 1)
    for run in runs:
        assert (run.segments, run.sequence_length, run.allow_repeat, run.seed) == (64, 64, False, 0)
        assert list(run.evaluation) == ["parallel"]
        assert run.evaluation["parallel"].segments is None
        assert Path(str(run.corpus), "sw.txt").is_file()
        assert run.evaluation["parallel"].corpus != run.corpus


def test_the_packaged_minis_are_those_that_are_there_the_smaller_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "files", lambda _: tmp_path)
    with pytest.raises(InputError, match=r"mini/models: no mini there; train one"):
        packaged_models()
    for name in reversed(MODELS):
        folder = tmp_path / "mini" / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert name in [folder.name for folder in packaged_models()]
    assert [folder.name for folder in packaged_models()] == ["bloom-mini-2m", "bloom-mini-5m"]


def test_at_least_one_mini_comes_with_the_package() -> None:
    assert packaged_models()


def increases(*columns: tuple[float, float]) -> pd.DataFrame:
    """Increase of (en, sw) of one method with the three samplings; the geometric mean is filled in."""
    rows = {
        "en": [english for english, _ in columns],
        "sw": [swahili for _, swahili in columns],
        "geomean": [(english * swahili) ** 0.5 for english, swahili in columns],
        "worst": [max(pair) for pair in columns],
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=SAMPLINGS[: len(columns)])


def result(**methods_of_models: dict[str, pd.DataFrame]) -> SweepResult:
    """Tables as a sweep leaves them: languages × (method, sampling)."""
    return SweepResult(
        tables={f"{model}-parallel": pd.concat(methods, axis=1) for model, methods in methods_of_models.items()}
    )


def test_the_sentence_is_computed_from_the_numbers() -> None:
    said = demo_sentence(
        result(
            small={"wanda-50": increases((1.0, 1.5), (1.1, 1.1), (1.1, 1.1))},
            large={
                "wanda-50": increases((1.0, 1.44), (1.21, 1.21), (1.0, 2.25)),
                "gptq-3bit": increases((1.21, 1.21), (0.81, 1.0), (1.21, 1.21)),
            },
        )
    )
    assert "Perplexity of large over dense" in said
    assert "wanda-50 +20.0 % (sw +44.0 %), +21.0 % (en +21.0 %), +50.0 % (sw +125.0 %);" in said
    assert "gptq-3bit +21.0 % (en +21.0 %), -10.0 % (sw +0.0 %), +21.0 % (en +21.0 %);" in said
    # small: English alone is worst by the mean (1.22 > 1.1) and by sw; large ties or is better. Best en: small only.
    assert "over 3 pairs of model and method" in said
    assert "worst of the three in 1 by the mean and in 1 by the worst language" in said
    assert said.endswith("the best for English itself in 1.")
    assert said.count(". ") == 0


def test_a_terminal_shows_the_last_model_on_one_screen() -> None:
    three = dict.fromkeys(METHODS, increases((1.1, 2.0), (1.3, 1.4), (1.2, 1.5)))
    every = [*PAPER_LANGUAGES, "geomean", "worst"]
    tables = {
        title: table.reindex(every, fill_value=1.0) for title, table in result(small=three, large=three).tables.items()
    }
    (view,) = shown_views(SweepResult(tables=tables))
    text = io.StringIO()
    Console(file=text, width=80, force_terminal=True, color_system="standard").print(view)
    shown = Text.from_ansi(text.getvalue()).plain.splitlines()
    assert len(shown) < 24 and max(map(len, shown)) <= 80
    assert "perplexity increase: large-parallel" in shown[0] and "…" not in "".join(shown)
    languages = ["en", "ar", "ta", "mr", "ig"]
    assert shown[2].replace("┃", " ").split() == [*languages, "geomean", "worst"]
    assert [line.split()[1] for line in shown if "1.100" in line] == ["monolingual-en"] * 3
    # English is best calibrated on English; the geometric mean and the worst language are not.
    assert text.getvalue().count("\x1b[1m1.100") == 3 and text.getvalue().count("\x1b[1m1.400") == 3


def test_groups_of_languages_fit_the_same_screen() -> None:
    every = [*PAPER_LANGUAGES, "geomean", "worst", *GROUPS]
    three = dict.fromkeys(METHODS, increases((1.1, 2.0), (1.3, 1.4), (1.2, 1.5)).reindex(every, fill_value=1.0))
    three["gptq-3bit"] = three["gptq-3bit"].drop(list(GROUPS))  # as of an earlier version
    (view,) = shown_views(result(large=three))
    text = io.StringIO()
    Console(file=text, width=80).print(view)
    shown = text.getvalue().splitlines()
    assert len(shown) < 24 and max(map(len, shown)) <= 80 and "…" not in "".join(shown)
    assert shown[2].replace("┃", " ").split() == ["non-", "low-", "high-"]
    assert shown[3].replace("┃", " ").split()[-6:] == ["geomean", "worst", "latin", "latin", "share", "share"]
    assert [line.count("–") for line in shown if "│" in line] == [0] * 9 + [4] * 3
    assert "bold: the best of a method" in shown[-1]


def test_a_method_without_all_three_samplings_is_not_counted() -> None:
    whole, part = increases((1.0, 2.0), (1.5, 1.5), (1.5, 1.5)), increases((9.0, 9.0), (1.0, 1.0))
    assert "over 1 pairs" in demo_sentence(result(mini={"wanda-50": whole, "gptq-3bit": part}))
    assert demo_sentence(result(mini={"gptq-3bit": part})).startswith("No method finished with all three samplings")


@pytest.mark.slow
def test_mbs_demo_ends_with_table_sentence_and_the_way_to_the_ui(ray_cluster: Cluster, tmp_path: Path) -> None:
    model = write_bloom(tmp_path / "tiny-bloom", layers=2)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["demo", "--model", str(model), "--out", str(out)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "demo" / "increase-tiny-bloom-parallel.csv", index_col="language")
    assert list(table.columns) == [f"{method}-{sampling}" for method in METHODS for sampling in SAMPLINGS]
    assert list(table.index) == [*PAPER_LANGUAGES, "geomean", "worst", *GROUPS]
    columns = [(method, sampling) for method in METHODS for sampling in SAMPLINGS]
    read = SweepResult(tables={"tiny-bloom-parallel": table.set_axis(pd.MultiIndex.from_tuples(columns), axis=1)})
    assert demo_sentence(read) in " ".join(done.output.split())
    assert "perplexity increase: tiny-bloom-parallel" in done.output
    assert f"written: {out}/demo/figures/increase-tiny-bloom-parallel.png" in done.output
    assert f"tracking: sqlite:///{out}/mlflow.db   (mbs ui {out})" in done.output
    for sampling in SAMPLINGS:
        allocation = json.loads((out / "demo" / "runs" / f"wanda-50-{sampling}" / "allocation.json").read_text())
        assert sum(allocation.values()) == 64
        assert len(allocation) == (1 if sampling == "monolingual-en" else 20)
