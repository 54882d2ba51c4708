"""``mbs report``: a page that stands alone, holds every run, language and number, and escapes what it is given."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner, Result

from mbs_ray.cli import app
from mbs_ray.report.figures.loss_curves import loss_curves
from mbs_ray.report.page import write_report_page
from mbs_ray.report.run_results import read_sweep
from mbs_ray.run.directory import RunDirectory
from mbs_ray.run.journal import Journal
from mbs_ray.run.run_facts import RunFacts
from mbs_ray.tracking.mlflow_client import MlflowConnection, database_uri
from mbs_ray.tracking.tracked_run import sweep_run

LANGUAGES = ("en", "zh-Hans", "ta", "ur")
INCREASES = {
    "wanda-50-monolingual-en": (1.015625, 1.31, 2.71828182845904, 1.9),
    "wanda-50-equal": (1.0444444444444445, 1.02, 1.111111111111111, 0.97),
    "gptq-3bit-equal": (1.1, 1.1, 1.1, 1.1),
}
DENSE = dict(zip(LANGUAGES, (11.0, 22.0, 33.0, 44.0), strict=True))
VOID = {"meta", "img", "link", "br", "hr", "input"}


def write_run(sweep: Path, label: str, model: str = "tiny", text: str = "f" * 64) -> Path:
    """A run directory, never tracked, with all that the report reads."""
    sampling = re.sub(r"^\w+-\w+-", "", label)
    folder = sweep / "runs" / label
    (folder / "checkpoint").mkdir(parents=True)
    facts = RunFacts(
        label=label,
        model=model,
        method=label.removesuffix(f"-{sampling}"),
        sampling=sampling,
        sampling_name=sampling.partition("-")[0],
        statistics="propagated",
        seed=0,
        languages=LANGUAGES,
        evaluation=("held-out",),
        segments=64,
        sequence_length=32,
        fingerprints={"model": "a" * 64, "calibration": (label.encode().hex() + "0" * 64)[:64]},
        resolved={"compute_dtype": "float32", "microbatch": 8, "device": "cpu", "threads": 1, "torch": "2.13.0"},
        versions={"mbs_ray": "0.1.0", "ray": "2.60.0"},
        layout={"stages": 2, "replicas": 3},
    )
    RunDirectory(folder).claim({"model": "a" * 64}, facts)
    (folder / "allocation.json").write_text(json.dumps({"en": 63, "ta": 1}))
    journal = Journal(folder / "journal.jsonl")
    for block in range(3):
        journal.append({"block/relative_loss": 0.125 * (block + 1)}, step=block, timestamp=1_700_000_000_000)
    finish(folder, label, text)
    return folder


def finish(folder: Path, label: str, text: str) -> None:
    metrics: dict[str, float] = {}
    for language, increase in zip(LANGUAGES, INCREASES[label], strict=True):
        metrics[f"ppl_increase/{language}"] = increase
        metrics[f"ppl_increase_ci95_low/{language}"] = increase - 0.0625
        metrics[f"ppl_increase_ci95_high/{language}"] = increase + 0.0625
        metrics[f"ppl/{language}"] = increase * DENSE[language]
        metrics[f"scored_tokens/{language}"], metrics[f"scored_documents/{language}"] = 1000.0, 7.0
    metrics["ppl_increase/geomean"], metrics["ppl_increase/worst"] = 1.2345678901234567, max(INCREASES[label])
    RunDirectory(folder).finish({"evaluation": {"held-out": text}, "metrics": metrics, "dense": {"held-out": DENSE}})


def as_the_version_before(sweep: Path, layout: dict[str, int]) -> None:
    """Leave of the run directories of a sweep what they were before there was ``run.json``."""
    for directory in RunDirectory.all_of(sweep):
        facts, result = directory.facts(), json.loads((directory.path / "result.json").read_text())
        assert facts is not None
        params = {
            "languages": ",".join(facts.languages),
            "evaluation": ",".join(facts.evaluation),
            "segments": facts.segments,
            "sequence_length": facts.sequence_length,
            "sampling": {"name": facts.sampling_name},
            "method": {"name": facts.method.partition("-")[0]},
            "seed": facts.seed,
            "fingerprint": facts.fingerprints,
            "resolved": facts.resolved,
            "version": facts.versions,
        }
        tags = {"model": facts.model, "method": facts.method, "sampling": facts.sampling, "seed": str(facts.seed)}
        tags |= {"statistics": facts.statistics, "mbs.folder": str(directory.path)}
        told = {"key": "sweep", "name": sweep.name, "params": {"layout": layout, "mbs_ray": "0.1.0"}, "tags": {}}
        run = {"key": facts.label, "name": facts.label, "params": params, "tags": tags}
        directory.keep_tracking_identity({"experiment": "an experiment", "sweep": told, "run": run})
        card: dict[str, Any] = dict.fromkeys(("model", "base_model", "languages", "method", "sampling", "allocation"))
        card |= dict.fromkeys(("sequence_length", "seed", "calibration", "version"))
        perplexity = {
            code: (dense, result["metrics"][f"ppl/{code}"]) for code, dense in result.pop("dense")["held-out"].items()
        }
        card["evaluation"] = [{"name": "held-out", "perplexity": perplexity, "bits_per_byte": {}}]
        (directory.path / "card.json").write_text(json.dumps(card))
        (directory.path / "result.json").write_text(json.dumps(result))
        (directory.path / "run.json").unlink()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for label in INCREASES:
        write_run(tmp_path / "tiny-sweep", label)
    return tmp_path / "tiny-sweep"


class Page(HTMLParser):
    """Elements that are all closed in order, attributes, and tables as rows of (text, exact value, marked as best)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[dict[str, Any]]]] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            cell: dict[str, Any] = {"text": "", "value": None, "best": False, "title": dict(attrs).get("title")}
            self.tables[-1][-1].append(cell)
        elif tag == "strong" and "td" in self.open:
            self.tables[-1][-1][-1]["best"] = True
        elif tag == "data":
            self.tables[-1][-1][-1]["value"] = float(dict(attrs)["value"] or "nan")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1]["text"] += data

    def grids(self) -> list[dict[tuple[str, str], dict[str, Any]]]:
        """Tables whose columns have titles: (language, title of the column) → cell."""
        found = []
        for rows in self.tables:
            titles = next((row for row in rows if any(cell["title"] for cell in row)), None)
            if titles is not None:
                body = rows[rows.index(titles) + 1 :]
                found.append(
                    {
                        (row[0]["text"].split()[0], title["title"]): cell
                        for row in body
                        for title, cell in zip(titles[1:], row[1:], strict=True)
                    }
                )
        return found


def invoke(*arguments: object, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", **environment}).invoke(app, ["report", *map(str, arguments)])


def test_the_page_needs_nothing_else(sweep: Path) -> None:
    page = Page(write_report_page(sweep))
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object"}
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.source)
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert loaded and all(value.startswith("data:image/png;base64,") for value in loaded)
    assert "url(" not in page.source and "@import" not in page.source


def test_every_run_and_language_has_its_exact_numbers_and_the_best_is_marked(sweep: Path) -> None:
    page = Page(write_report_page(sweep))
    increase, perplexity = page.grids()
    for label, values in INCREASES.items():
        metrics = json.loads((sweep / "runs" / label / "result.json").read_text())["metrics"]
        for row, value in zip(LANGUAGES, values, strict=True):
            assert increase[row, label]["value"] == value
            assert perplexity[row, label]["value"] == metrics[f"ppl/{row}"]
            assert f"{value - 0.0625:.3f} … {value + 0.0625:.3f}" in increase[row, label]["text"]
            best = value == min(own[LANGUAGES.index(row)] for own in INCREASES.values())
            assert increase[row, label]["best"] == perplexity[row, label]["best"] == best
        assert increase["geomean", label]["value"] == metrics["ppl_increase/geomean"]
        assert increase["worst", label]["value"] == max(values)
    assert {row: perplexity[row, "the dense model"]["value"] for row in LANGUAGES} == DENSE
    for text in (
        "Simplified Chinese",
        "Tamil",
        "Urdu",
        "4,000 tokens of 28 documents",
        "stages2",
        "a" * 64,
    ):
        assert text in page.text
    runs = {row[0]["text"]: row for row in page.tables[0][1:]}
    assert set(runs) == set(INCREASES) and runs["wanda-50-monolingual-en"][-1]["text"] == "ta"


def test_groups_of_languages_have_rows_where_a_run_has_them(sweep: Path) -> None:
    path = sweep / "runs" / "wanda-50-equal" / "result.json"
    result = json.loads(path.read_text())
    result["metrics"] |= {"ppl_increase/non-latin": 1.0625, "ppl_increase/high-share": 1.03125}
    path.write_text(json.dumps(result))
    increase, _ = Page(write_report_page(sweep)).grids()
    rows = list(dict.fromkeys(row for row, _ in increase))
    assert rows == [*LANGUAGES, "geomean", "worst", "non-latin", "high-share"]
    assert increase["high-share", "wanda-50-equal"]["value"] == 1.03125
    assert increase["high-share", "gptq-3bit-equal"]["text"] == "–"


def test_directories_of_the_version_before_are_reported_as_they_would_be_now(sweep: Path) -> None:
    now = write_report_page(sweep).read_text()
    as_the_version_before(sweep, {"stages": 2, "replicas": 3})
    assert not list(sweep.glob("runs/*/run.json"))
    assert write_report_page(sweep).read_text() == now
    # What MLflow was told is read for as long as there is nothing better.
    one = RunDirectory(sweep / "runs" / "wanda-50-equal")
    facts = one.facts()
    assert facts is not None
    one.claim({}, replace(facts, versions={"mbs_ray": "0.2.0"}, layout={"stages": 7, "replicas": 1}))
    page = Page(write_report_page(sweep))
    assert "mbs_ray0.1.0, 0.2.0" in page.text.replace("\n", "") and "stages7" in page.text


def test_nothing_of_what_mlflow_was_told_is_read_as_data(sweep: Path) -> None:
    page = write_report_page(sweep).read_text()
    for directory in RunDirectory.all_of(sweep):
        directory.keep_tracking_identity(
            {"experiment": "x", "sweep": {"params": {}}, "run": {"params": {}, "tags": {}}}
        )
    assert write_report_page(sweep).read_text() == page


def test_a_run_that_is_not_finished_is_listed_and_a_later_page_replaces_the_first(sweep: Path) -> None:
    (sweep / "runs" / "wanda-50-equal" / "result.json").unlink()
    (sweep / "runs" / "wanda-50-equal" / "allocation.json").unlink()  # killed early
    page = Page(write_report_page(sweep))
    assert "2 of 3 runs are finished" in page.text
    assert ("en", "wanda-50-equal") not in page.grids()[0]
    (row,) = [row for row in page.tables[0] if row[0]["text"] == "wanda-50-equal"]
    assert row[-1]["text"] == "not finished"
    finish(sweep / "runs" / "wanda-50-equal", "wanda-50-equal", "f" * 64)
    assert ("en", "wanda-50-equal") in Page(write_report_page(sweep)).grids()[0]
    assert sorted(path.name for path in sweep.iterdir()) == ["report.html", "runs"]


def test_runs_that_do_not_compare_have_tables_of_their_own(tmp_path: Path) -> None:
    """Other text under the same name of a set, and another model."""
    write_run(tmp_path, "wanda-50-equal")
    write_run(tmp_path, "gptq-3bit-equal", text="e" * 64)
    write_run(tmp_path, "wanda-50-monolingual-en", model="other")
    grids = Page(write_report_page(tmp_path)).grids()
    columns = [tuple({title for _, title in grid} - {"the dense model"}) for grid in grids]
    assert sorted(columns) == sorted([(label,) for label in INCREASES] * 2)


def test_odd_names_are_shown_and_never_markup(tmp_path: Path) -> None:
    odd = """<script>alert('x')</script> & "நதி" {{ 1 + 1 }}"""
    folder = tmp_path / "<b>&amp;\"'"
    write_run(folder, "wanda-50-equal", model=odd)
    page = Page(write_report_page(folder))
    assert odd in page.text and "<script" not in page.source
    assert "<b>&amp;\"'" in page.text and "{{ 1 + 1 }}" in page.text


def test_layer_errors_are_shown_where_the_journal_has_them(sweep: Path) -> None:
    assert "Layer error" not in Page(write_report_page(sweep)).text
    journal = Journal(sweep / "runs" / "wanda-50-equal" / "journal.jsonl")
    errors = {(language, block): 0.001 * 3.0**block for language in ("ta", "en") for block in range(3)}
    for (language, block), error in errors.items():
        journal.append({f"layer_error/{language}": error}, step=block)
    page = Page(write_report_page(sweep))
    grid = page.grids()[2]
    assert {(row, int(title.removeprefix("block "))): cell["value"] for (row, title), cell in grid.items()} == errors
    assert list(dict.fromkeys(row for row, _ in grid)) == ["en", "ta"]


def test_what_linears_were_given_is_shown_where_a_budget_was_dealt_out(sweep: Path) -> None:
    assert "Budget by linear" not in Page(write_report_page(sweep)).text
    of_block = {"0": {"attention": 0.45, "mlp": 0.55}, "1": {"attention": 0.5, "mlp": 0.475}}
    dealt = {"mean": 0.5, "predicted": {}, "amounts": {"field": "sparsity", "of_block": of_block}}
    (sweep / "runs" / "wanda-50-equal" / "budget.json").write_text(json.dumps(dealt))
    page = Page(write_report_page(sweep))
    assert "wanda-50-equal: sparsity" in page.text
    grid = page.grids()[2]
    found = {(row, title.removeprefix("block ")): cell["value"] for (row, title), cell in grid.items()}
    assert found == {(name, block): value for block, own in of_block.items() for name, value in own.items()}


def test_the_figure_of_losses_draws_every_run_over_its_blocks(sweep: Path) -> None:
    runs = read_sweep(sweep).runs
    figure = loss_curves(runs)
    assert [axes.get_title() for axes in figure.axes] == ["gptq-3bit", "wanda-50"]
    lines = [line for axes in figure.axes for line in axes.lines]
    assert [list(line.get_ydata()) for line in lines] == [[0.125, 0.25, 0.375]] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["equal", "monolingual-en"]
    assert len({line.get_color() for line in figure.axes[1].lines}) == 2


def test_the_command_writes_where_it_is_told_and_refuses_other_folders(sweep: Path, tmp_path: Path) -> None:
    result = invoke(sweep, "--out", tmp_path / "deep" / "page.html")
    assert result.exit_code == 0 and result.stdout == f"written: {tmp_path / 'deep' / 'page.html'}\n"
    assert not (tmp_path / "mlflow.db").exists()
    for arguments, message in (
        ([tmp_path / "nowhere"], "nowhere: not the folder of a sweep"),
        ([sweep / "runs"], "not the folder of a sweep; give <out>/<sweep>"),
        ([sweep, "--out", tmp_path / "deep"], "deep: cannot be written"),
        ([sweep, "--out", tmp_path / "deep" / "page.html" / "x"], "x: cannot be written"),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2, refused.output
        assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1 and message in refused.stderr
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_the_page_is_given_to_the_sweeps_run_and_a_server_that_is_away_is_no_failure(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_the_version_before(sweep, {})
    told = RunDirectory(sweep / "runs" / "wanda-50-equal").tracking_identity()
    assert told is not None
    uri = database_uri(tmp_path)
    parent = sweep_run(MlflowConnection(uri, told["experiment"], tmp_path / "artifacts"), **told["sweep"])
    result = invoke(sweep)
    assert result.exit_code == 0 and "logged to the sweep's run in MLflow" in result.stdout, result.output
    names = [file.path for file in MlflowClient(uri).list_artifacts(parent.run_id)]
    assert names == ["report.html"]
    away = invoke(sweep, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert away.exit_code == 0, away.output
    assert "not logged: http://127.0.0.1:9: cannot be used for tracking" in away.stdout
    assert (sweep / "report.html").is_file()


def test_text_that_the_tokenizer_does_not_know_is_named_beside_the_numbers_that_it_flatters(sweep: Path) -> None:
    assert "unknown to the tokenizer" not in Page(write_report_page(sweep)).text.lower()
    for path in (sweep / "runs").iterdir():
        result = json.loads((path / "result.json").read_text())
        result["metrics"] |= {"unknown_share/ta": 0.0312, "unknown_share/en": 0.004}
        (path / "result.json").write_text(json.dumps(result))
    said = "Unknown to the tokenizer: 3.1 % of ta (bytes); perplexity and bits per byte flatter there."
    assert said in Page(write_report_page(sweep)).text
