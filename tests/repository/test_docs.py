"""README, CONTRIBUTING and docs/: generated pages are up to date, links lead somewhere, commands exist."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from handbook.__main__ import PAGES
from handbook.command_line import parameters
from handbook.pictures import LANGUAGES, SAMPLINGS, increase_bars, read_increases
from handbook.sweep_file import field_description
from mbs_ray.cli import app
from mbs_ray.compression.block_report import BlockReport, LinearReport
from mbs_ray.languages.sampling_registry import SAMPLINGS as ALL_SAMPLINGS
from mbs_ray.methods import METHODS
from mbs_ray.run import directory

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Pages written here; those that come with the models, texts and server are held to their links alone.
PAGES_OF_OURS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *DOCS.rglob("*.md")]
PAGES_WITH_LINKS = [
    *PAGES_OF_OURS,
    ROOT / "CHANGELOG.md",
    *(ROOT / "tracking").glob("*.md"),
    *(ROOT / "mbs_ray").rglob("*.md"),
]
WIDTH, FIRST_SCREEN, LONG_TABLE = 100, 45, 10
WORDS = ("sampling", "method", "run", "sweep", "stage", "increase")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def ours(test: object) -> object:
    return pytest.mark.parametrize("page", PAGES_OF_OURS, ids=shown)(test)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Return the text with its fenced blocks emptied, line for line."""
    lines, fenced = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        fenced ^= fence
        lines.append("" if fenced or fence else line)
    return "\n".join(lines)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table, heads and rules included."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_from_the_code_is_up_to_date(name: str) -> None:
    assert read(DOCS / name) == PAGES[name](), f"docs/{name} is not what the code says; run make docs"


def test_every_field_of_a_method_and_a_sampling_is_described() -> None:
    for name, cls in {**METHODS, **ALL_SAMPLINGS}.items():
        for field in dataclasses.fields(cls):
            assert field_description(cls, field.name), f"{name}: no docstring says `{field.name}: …`"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", without_code(read(page)), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=shown)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", without_code(read(page)))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{shown(page)}: {target} does not exist"
        assert path.is_relative_to(ROOT), f"{shown(page)}: {target} is outside the repository"
        assert not anchor or anchor in anchors(path), f"{shown(page)}: {target} has no such heading"


def test_the_index_lists_every_page() -> None:
    index = DOCS / "README.md"
    listed = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)\)", read(index))}
    assert {page for page in DOCS.rglob("*.md") if page != index} <= listed


@ours
def test_prose_wraps(page: Path) -> None:
    for number, line in enumerate(without_code(read(page)).splitlines(), 1):
        bare = re.sub(r"\]\([^)]*\)", "]", line)  # where a link leads to cannot be wrapped
        if not line.startswith(("|", "![", "#", "&nbsp;")):
            assert len(bare) <= WIDTH, f"{shown(page)}:{number} has {len(bare)} characters"


@ours
def test_a_page_shows_at_most_one_long_table(page: Path) -> None:
    unfolded = re.sub(r"<details>.*?</details>", "", without_code(read(page)), flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", unfolded + "\n", re.MULTILINE)
    assert sum(table.count("\n") - 2 > LONG_TABLE for table in tables) <= 1, f"{shown(page)}: fold the longer tables"


@ours
def test_a_page_has_one_title(page: Path) -> None:
    assert len(re.findall(r"^# ", without_code(read(page)), re.MULTILINE)) == 1


def test_the_first_screen_of_the_readme_is_short_and_defines_the_words() -> None:
    screen = read(ROOT / "README.md").partition("## Install")[0]
    assert screen.count("\n") <= FIRST_SCREEN
    defined = {row[0].strip("*"): row[1] for row in table_rows(screen) if row[0].startswith("**")}
    assert set(defined) == set(WORDS)
    assert all(len(meaning) > 30 for meaning in defined.values())
    assert {command for _, block in code_blocks(screen) for command in re.findall(r"^make \w+", block, re.M)} == {
        "make demo",
        "make ui",
    }


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    rows = {row[0]: row for row in table_rows(read(DOCS / "results" / "demo.md"))}
    columns = rows["language"]
    for method in ("Wanda 50 %", "SparseGPT 50 %", "GPTQ 3 bit"):
        (row,) = [row for row in table_rows(read(ROOT / "README.md")) if row[0] == method]
        begin = columns.index(f"{method.lower()}: English")
        cells = [[rows[kind][begin + at].partition(" ")[0] for kind in ("geomean", "worst")] for at in range(3)]
        assert row[1:] == [" / ".join(pair) for pair in cells]
    lost = read_increases(DOCS / "results" / "demo.md")
    said = [
        f"{100 * (lost[sampling][code] - 1):.0f} %" for sampling in ("English", "proportional") for code in ("ar", "ta")
    ]
    prose = " ".join(read(ROOT / "README.md").split())
    arabic, tamil, in_proportion_arabic, in_proportion_tamil = said
    assert f"Arabic loses {arabic} and Tamil {tamil};" in prose
    assert f"{in_proportion_arabic} and {in_proportion_tamil}." in prose


def test_the_bars_of_the_picture_are_as_long_as_the_table_says() -> None:
    increases = read_increases(DOCS / "results" / "demo.md")
    (axes,) = increase_bars(increases).axes
    drawn = [[bar.get_height() for bar in container] for container in axes.containers]
    assert drawn == [[100 * (increases[name][code] - 1) for code in LANGUAGES] for name in SAMPLINGS]
    assert increases["English"]["ar"] == 1.42 and increases["proportional"]["yo"] == 1.07


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "first-sweep.md"], ids=shown)
def test_the_first_sweep_is_the_file_that_is_shown(page: Path) -> None:
    (block,) = [content for language, content in code_blocks(read(page)) if language == "yaml"]
    assert block.count("\n") == 6
    assert yaml.safe_load(block) == yaml.safe_load(read(ROOT / "jobs" / "sweeps" / "first.yaml"))


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every ``mbs`` command in the fenced blocks of a page."""
    for language, block in code_blocks(read(page)):
        if language in ("", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("mbs "):
                    yield shlex.split(line, comments=True)[1:]


@ours
def test_the_commands_of_a_page_can_be_given(page: Path) -> None:
    known = typer.main.get_command(app).commands
    for name, *arguments in commands(page):
        assert name in known, f"{shown(page)}: mbs {name}"
        known[name].make_context(f"mbs {name}", arguments)  # raises for what is unknown or missing
    for inline in re.findall(r"`mbs ([a-z][^`\n]*)`", without_code(read(page))):
        name, *words = inline.split()
        assert name in known, f"{shown(page)}: mbs {name}"
        options = {option for parameter in parameters(known[name]) for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"{shown(page)}: mbs {inline}"


@ours
def test_the_targets_of_a_page_are_those_of_make(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    said = re.findall(r"(?:^|`)make ([a-z-]+)", read(page), re.MULTILINE)
    assert set(said) <= targets


def test_the_metrics_of_blocks_and_the_files_of_runs_are_explained() -> None:
    page = read(DOCS / "metrics-and-files.md")
    linear = LinearReport("linear", 2, 2, 8, 0.5, 0.1, 0.5, 0.01, 0, 1.0)
    for name in BlockReport(0, [linear]).metrics():
        assert f"`block/{name}`" in page
    files = {value for value in vars(directory).values() if isinstance(value, str) and value.endswith(".json")}
    assert len(files) > 5
    assert {name for name in files if f"`{name}`" not in page} == set()


def test_the_files_that_contributing_names_exist() -> None:
    named = re.findall(
        r"`((?:mbs_ray|tests|docs|benchmarks|jobs|minis|handbook)/[^`<>]*)`", read(ROOT / "CONTRIBUTING.md")
    )
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_line_of_what_happens_when_names_a_test_that_is_there() -> None:
    section = read(DOCS / "cluster.md").partition("## What happens when")[2].partition("\n## ")[0]
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\) \|$", section, flags=re.MULTILINE)
    assert len(named) == sum(line.startswith("| ") for line in section.splitlines()) - 1
    for name, file in named:
        assert f"def {name}(" in read(ROOT / file), f"{file}: no {name}"
