"""The journal keeps every value that it acknowledged, whatever happens to its writer."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.run.journal import Entry, Journal, check_name
from tests.support.examples import examples

NAMES = st.from_regex(r"[a-z]{1,5}(/[a-zA-Z\-]{1,8})?", fullmatch=True)
VALUES = st.floats()
STEPS = st.integers(0, 10**6)
TIMES = st.integers(0, 2**42)


def same(left: list[Entry], right: list[Entry]) -> bool:
    def comparable(entry: Entry) -> tuple[object, ...]:
        return (entry.key, repr(entry.value), entry.step, entry.timestamp)

    return list(map(comparable, left)) == list(map(comparable, right))


@examples(60)
@given(st.lists(st.tuples(st.dictionaries(NAMES, VALUES, max_size=4), STEPS, TIMES), max_size=5))
def test_what_is_appended_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, appends: list[tuple[dict[str, float], int, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "run" / "metrics.jsonl"
    expected = []
    for metrics, step, timestamp in appends:
        Journal(path).append(metrics, step, timestamp)
        expected += [Entry(key, value, step, timestamp) for key, value in metrics.items()]
    assert same(Journal(path).entries(), expected)


def test_each_line_is_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"ppl/en": 12.5, "ppl/ta": math.nan}, step=3, timestamp=7)
    lines = journal.path.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"key": "ppl/en", "value": 12.5, "step": 3, "timestamp": 7},
        {"key": "ppl/ta", "value": None, "step": 3, "timestamp": 7},
    ]


def test_a_line_cut_at_any_byte_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    whole = Journal(tmp_path / "whole.jsonl")
    whole.append({"ppl/en": 1.5, "ppl/ta": 2.5}, timestamp=1)
    data = whole.path.read_bytes()
    for size in range(len(data) + 1):
        cut = Journal(tmp_path / "cut.jsonl")
        cut.path.write_bytes(data[:size])
        complete = data[:size].count(b"\n")
        assert cut.entries() == whole.entries()[:complete]
        cut.append({"ppl/sw": 3.5}, timestamp=2)
        assert cut.entries() == [*whole.entries()[:complete], Entry("ppl/sw", 3.5, 0, 2)]


@examples(60)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(NAMES, VALUES, min_size=1, max_size=3),
            # How much of an entry a writer that is killed has written: at most all but the end of the line.
            st.integers(0, 55),
        ),
        max_size=6,
    )
)
def test_half_lines_of_killed_writers_stay_and_hide_no_whole_one(
    tmp_path_factory: pytest.TempPathFactory, writers: list[dict[str, float] | int]
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "metrics.jsonl")
    line = b'{"key": "ppl/en", "value": 1.5, "step": 0, "timestamp": 1}'
    expected, before = [], b""
    for written in writers:
        if isinstance(written, int):
            with journal.path.open("ab") as file:
                file.write(line[:written])
        else:
            journal.append(written, timestamp=1)
            expected += [Entry(key, value, 0, 1) for key, value in written.items()]
        content = journal.path.read_bytes() if journal.path.exists() else b""
        assert content.startswith(before) and same(journal.entries(), expected)
        before = content


def test_two_writers_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import pathlib, sys\n"
        "from mbs_ray.run.journal import Journal\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read(1)\n"
        "for step in range(300):\n"
        "    Journal(pathlib.Path(sys.argv[1])).append({sys.argv[2]: step}, step)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    entries = Journal(path).entries()
    for name in ("one", "other"):
        assert [entry.step for entry in entries if entry.key == name] == [*range(300)]
    assert len(entries) == 600 and path.read_bytes().count(b"\n") >= 600


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import itertools, pathlib, sys\n"
        "from mbs_ray.run.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for step in itertools.count():\n"
        "    journal.append({f'block/{i}': step for i in range(50)}, step)\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = 20 + len(writer.stdout.read().splitlines())
        writer.wait(timeout=30)
    entries = Journal(path).entries()
    assert len(entries) >= 50 * acknowledged
    assert [entry.step for entry in entries] == [i // 50 for i in range(len(entries))]


def test_an_infinite_value_is_kept_as_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"ppl/en": math.inf, "ppl/ta": -math.inf}, timestamp=7)
    assert [entry.value for entry in journal.entries()] == [math.inf, -math.inf]
    assert [
        json.loads(line, parse_constant=pytest.fail)["value"] for line in journal.path.read_text().splitlines()
    ] == [
        "Infinity",
        "-Infinity",
    ]
    journal.append_changed({"ppl/en": math.inf})
    assert len(journal.entries()) == 2


def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"a": 1.0, "b": 2.0})
    journal.path.write_bytes(b'{"key": \n' + journal.path.read_bytes())
    with pytest.raises(InputError, match=r"metrics.jsonl: line 1 is damaged"):
        journal.entries()


@examples(300)
@given(
    st.one_of(
        st.text(alphabet="ab./-_: \\@%é\n", max_size=8),
        st.text(max_size=8),
        st.integers(245, 255).map(lambda n: "x" * n),
    )
)
def test_a_name_is_taken_exactly_when_mlflow_takes_it(name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric

    try:
        _validate_metric(name, 1.0, 0, 0)
        taken = not name.endswith("\n")  # which MLflow lets through
    except MlflowException:
        taken = False
    if taken:
        check_name(name)
    else:
        with pytest.raises(InputError, match="is no name for a metric"):
            check_name(name)


def test_what_a_journal_holds_already_is_not_written_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"loss": 1.0}, step=0)
    for _ in range(2):
        journal.append_missing({0: {"loss": 9.0, "error": 2.0}, 1: {"loss": 3.0}})
    written = [(entry.key, entry.step, entry.value) for entry in journal.entries()]
    assert written == [("loss", 0, 1.0), ("error", 0, 2.0), ("loss", 1, 3.0)]


def test_of_a_value_that_became_another_the_later_follows_the_former(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"ppl/en": 7.0}, step=1)
    for value in (1.5, 1.5, 2.5, math.nan, math.nan, 1.5):
        journal.append_changed({"ppl/en": value, "ppl/sw": 3, "ppl/ta": math.nan})
    written = [(entry.key, entry.step, repr(entry.value)) for entry in journal.entries()]
    assert written == [
        ("ppl/en", 1, "7.0"),
        ("ppl/en", 0, "1.5"),
        ("ppl/sw", 0, "3.0"),
        ("ppl/ta", 0, "nan"),
        ("ppl/en", 0, "2.5"),
        ("ppl/en", 0, "nan"),
        ("ppl/en", 0, "1.5"),
    ]
