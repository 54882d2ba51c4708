"""What a terminal shows: tables cut to its width, runs in flight with stage, block, language and time left."""

import io
import itertools
from pathlib import Path

import pandas as pd
from rich.console import Console

from mbs_ray.cli.terminal_tables import increase_views
from mbs_ray.cluster.job import Job, Score
from mbs_ray.cluster.stage.stage_run import StageStatus
from mbs_ray.driver.progress import PLAIN_SECONDS, WORK_SECONDS, Progress
from mbs_ray.report.increase_table import SeedSpread


def shown(width: int, columns: int) -> list[str]:
    names = [
        (f"method-{number // 3}", ("monolingual-en", "equal", "proportional")[number % 3]) for number in range(columns)
    ]
    table = pd.DataFrame({name: {"en": 1 + number / 1000, "sw": 2.0} for number, name in enumerate(names)})
    table.columns = pd.MultiIndex.from_tuples(names)
    texts = []
    for view in increase_views("title", table, width):
        text = io.StringIO()
        Console(file=text, width=width).print(view)
        texts.append(text.getvalue())
    return texts


def test_every_number_is_shown_whole_at_any_width() -> None:
    for width in (40, 80, 120, 400):
        texts = shown(width, 9)
        for number in range(9):
            assert sum(f"1.00{number}" in text for text in texts) == 1
        assert all(len(line) <= width for text in texts for line in text.splitlines())
        assert all("en" in text and "sw" in text for text in texts)
    assert len(shown(400, 9)) == 1


def test_the_spread_over_seeds_is_shown_behind_the_mean_at_any_width() -> None:
    columns = pd.MultiIndex.from_tuples([("wanda-50", "equal"), ("wanda-50", "proportional")])
    table = pd.DataFrame([[1.25, 1.5], [2.0, 2.5]], index=["en", "sw"], columns=columns)
    deviations = pd.DataFrame([[0.125, float("nan")]] * 2, index=table.index, columns=columns)
    spread = SeedSpread(deviations, {columns[0]: 3, columns[1]: 1})
    for width in (40, 120):
        text = io.StringIO()
        for view in increase_views("title", table, width, spread):
            Console(file=text, width=width).print(view)
        shown = text.getvalue()
        for part in ("1.250 ± 0.125", "1.500 ", "equal (3 seeds)", "sample standard", "proportional "):
            assert part in shown, shown
        assert "nan" not in shown and all(len(line) <= width for line in shown.splitlines())


def job(key: str) -> Job:
    return Job(key, Path("model"), "float32", 2, Path("run"), (range(4), range(4, 8)), Score())


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log_file() -> tuple[io.StringIO, Progress, Clock]:
    text, clock = io.StringIO(), Clock()
    return text, Progress(Console(file=text, width=200), clock), clock


def test_plain_lines_tell_stage_block_language_and_time_left() -> None:
    text, progress, clock = log_file()
    second = StageStatus("second", 1, "collect", 1, 4, "sw")
    first = StageStatus("first", 6, "propagate", 3, 4, "yo")
    with progress.runs({"first": job("first"), "second": job("second")}) as show:
        for _ in range(2):
            clock.now += PLAIN_SECONDS + 1
            show.stages([second, first])
        show.ended("first", None)
        show.ended("second", ValueError("no"))
    lines = text.getvalue().splitlines()
    assert lines[0] == "second: 14 %, stage 1, block 2/8, collect sw, about 0 s left"
    assert lines[1] == "first: 86 %, stage 2, block 7/8, propagate yo, about 2 s left"
    assert lines[2] == "first: done in 11 s (1 of 2)" and len(lines) == 3


def test_a_run_that_ended_before_it_was_seen_took_no_time() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=120), clock=itertools.count().__next__)
    with progress.runs({"short": job("short")}) as show:
        show.ended("short", None)
    assert text.getvalue() == "short: done in 0 s (1 of 1)\n"


def test_a_log_file_gets_one_line_in_some_seconds_and_none_without_news() -> None:
    text, progress, clock = log_file()
    with progress.runs({"first": job("first"), "second": job("second")}) as show:
        for second in range(600):
            clock.now += 1
            # The head of one run takes ten minutes over one language; the other goes on by a block a minute.
            head = StageStatus("first", 8, "evaluate", second, 600, "bn")
            show.stages([StageStatus("second", second // 60 % 8, "solve", 0, 1), head])
    lines = text.getvalue().splitlines()
    assert [line for line in lines if line.startswith("first")] == [
        next(line for line in lines if line.startswith("first: 99 %, stage 2, head, evaluate bn"))
    ]
    assert len(lines) == 11
    assert len({line.partition(", about")[0] for line in lines}) == 9  # two of the ten minutes are blocks 1 and 2 again


def test_runs_in_flight_are_told_of_in_turn() -> None:
    text, progress, clock = log_file()
    with progress.runs({key: job(key) for key in "abc"}) as show:
        for tick in range(6):
            clock.now += PLAIN_SECONDS + 1
            show.stages([StageStatus(key, tick, "solve", 0, 1) for key in "abc"])
    assert [line[0] for line in text.getvalue().splitlines()] == [*"abcabc"]


def test_work_is_told_of_when_it_takes_long_and_never_twice_the_same() -> None:
    text, progress, clock = log_file()
    for done in range(1001):
        clock.now += 0.001
        progress.work("reading quick", done, 1000)
    assert text.getvalue() == ""
    for _ in range(20):
        clock.now += WORK_SECONDS + 1
        progress.work("reading stuck", 1, 2)
    clock.now += WORK_SECONDS + 1
    progress.work("reading stuck", 2, 2)
    assert text.getvalue().splitlines() == ["reading stuck: 50 %", "reading stuck: 100 %"]


def test_one_long_work_says_no_line_twice() -> None:
    text, progress, clock = log_file()
    with progress.steps("blocks") as notify:
        for done in (1, 1, 1, 2, 4, 4):
            clock.now += PLAIN_SECONDS + 1
            notify(done, 4)
    assert text.getvalue().splitlines() == ["blocks: 25 %", "blocks: 50 %", "blocks: 100 %"]


def test_a_terminal_gets_live_bars() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=120, force_terminal=True))
    with progress.runs({"first": job("first")}) as show:
        show.stages([StageStatus("first", 3, "solve", 0, 1, "")])
        show.stages([StageStatus("first", 7, "propagate", 1, 2, "ig")])
    assert "first" in text.getvalue() and "block 8/8, propagate ig" in text.getvalue()


def test_one_long_work_is_a_bar_on_a_terminal_and_a_few_lines_elsewhere() -> None:
    shown = {}
    for terminal in (True, False):
        text = io.StringIO()
        with Progress(Console(file=text, width=100, force_terminal=terminal)).steps("blocks of tiny") as notify:
            for done in range(1, 5):
                notify(done, 4)
        shown[terminal] = text.getvalue()
    assert shown[False] == "blocks of tiny: 100 %\n"
    assert "blocks of tiny" in shown[True] and "━" in shown[True] and "100%" in shown[True]
