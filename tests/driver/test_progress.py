"""What a terminal shows: tables cut to its width, runs in flight with stage, block, language and time left."""

import io
from pathlib import Path

import pandas as pd
from rich.console import Console

from mbs_ray.cli.terminal_tables import increase_views
from mbs_ray.cluster.job import Job, Score
from mbs_ray.cluster.stage.stage_run import StageStatus
from mbs_ray.driver.progress import PLAIN_SECONDS, Progress


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


def job(key: str) -> Job:
    return Job(key, Path("model"), "float32", 2, Path("run"), (range(4), range(4, 8)), Score())


def test_plain_lines_tell_stage_block_language_and_time_left() -> None:
    text = io.StringIO()
    progress = Progress(Console(file=text, width=200))
    with progress.runs({"first": job("first"), "second": job("second")}) as show:
        show._printed -= PLAIN_SECONDS + 1
        show.stages([StageStatus("second", 1, "collect", 1, 4, "sw"), StageStatus("first", 6, "propagate", 3, 4, "yo")])
        show.ended("first", None)
        show.ended("second", ValueError("no"))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("second: 14 %, stage 1, block 2/8, collect sw, about ")
    assert lines[1].startswith("first: 86 %, stage 2, block 7/8, propagate yo, about ")
    assert lines[2].endswith("(1 of 2)") and len(lines) == 3


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
