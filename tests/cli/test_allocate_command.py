"""``mbs allocate``: the paper's allocation, samplings with fields, and one line for what it refuses."""

import pytest
from typer.testing import CliRunner, Result

from mbs_ray.cli import app

PAPER = [87, 47, 37, 31, 14, 13, 7, 4, 3, 3] + [1] * 10


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(argument) for argument in arguments])


def test_allocate_gives_the_papers_allocation_with_no_network() -> None:
    result = invoke("allocate", "--model", "bigscience/bloom-7b1", "--sampling", "proportional", "--segments", 256)
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if "│" in line]
    assert [int(row[4]) for row in rows if "%" in row[3]] == PAPER
    assert ["", "all", "", "", "256", "", ""] in rows


def test_allocate_takes_samplings_with_fields() -> None:
    arguments = ("allocate", "--model", "bigscience/bloom", "--languages", "en,sw", "--segments", 9, "--sampling")
    for sampling, counts in (
        ("temperature:alpha=0", ["5", "4"]),
        ("counts:counts={en: 2, sw: 7}", ["2", "7"]),
        ("monolingual:language=sw", ["9"]),
    ):
        result = invoke(*arguments, sampling)
        rows = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if "│" in line]
        assert [row[4] for row in rows if row[1] in ("en", "sw")] == counts


@pytest.mark.parametrize("sampling", ["equal", "monolingual:language=sw", "counts:counts={en: 2, sw: 7}"])
def test_allocate_needs_no_distribution_where_the_sampling_needs_none(sampling: str) -> None:
    arguments = ("allocate", "--model", "meta-llama/any", "--languages", "en,sw", "--segments", 9, "--sampling")
    result = invoke(*arguments, sampling)
    assert result.exit_code == 0 and "distribution unknown" in result.stdout
    for needing in ("proportional", "temperature:alpha=0.3"):
        refused = invoke(*arguments, needing)
        assert refused.exit_code == 2
        for said in (f"sampling {needing.split(':')[0]}: ", "'meta-llama/any'", "--distribution", "equal, monolingual"):
            assert said in refused.stderr


def test_allocate_takes_numbers_with_an_exponent_and_languages_outside_the_table() -> None:
    given = ("allocate", "--model", "bigscience/bloom-560m", "--segments", 4, "--languages")
    plain, exponent = (
        # After the title, and before the line that repeats the options.
        invoke(*given, "en,sw", "--sampling", f"temperature:alpha={one}").stdout.splitlines()[2:-1]
        for one in ("0.3", "3e-1")
    )
    assert plain == exponent and any("sw" in line for line in plain)
    norwegian = invoke(*given, "en,de", "--sampling", "counts:counts={'no': 3, de: 1}")
    assert norwegian.exit_code == 0 and "Norwegian" in norwegian.stdout and "German" in norwegian.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--languages", "en,xx"), "language 'xx' is not in the distribution"),
        (("--sampling", "fair"), "unknown sampling 'fair': there are monolingual, equal, proportional"),
        (("--sampling", "temperature:alpha"), "'alpha' is no field=value"),
        (("--sampling", "counts:counts={no: 4}"), "language false: YAML reads no"),
        (("--sampling", "monolingual:language=no"), "language false: YAML reads no"),
        (("--languages", "en,sr@latin"), "name it 'sr-latin'"),
        (("--segments", 19), "19 segments are fewer than the 20 languages"),
        (("--distribution", "nowhere.json"), "nowhere.json: cannot be read"),
    ],
)
def test_allocate_refuses_with_one_line(arguments: tuple, message: str) -> None:
    result = invoke("allocate", "--model", "bigscience/bloom-560m", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
