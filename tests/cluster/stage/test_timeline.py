"""Spans of a stage: disjoint, in order, and what share of the time each kind of work took."""

import time
from itertools import pairwise

import pandas as pd
import pytest

from mbs_ray.cluster.stage.timeline import KINDS, Span, Timeline, shares
from mbs_ray.errors import InputError
from mbs_ray.report.figures.stage_timeline import stage_timeline


def test_a_part_inside_another_interrupts_it() -> None:
    timeline = Timeline()
    before = time.time()
    with timeline.part("run", 3, "collect"):
        time.sleep(0.01)
        with timeline.part("run", 3, "receive"):
            time.sleep(0.01)
        time.sleep(0.01)
    spans = timeline.take()
    assert [span.part for span in spans] == ["collect", "receive", "collect"]
    assert {(span.run, span.block) for span in spans} == {("run", 3)}
    assert before <= spans[0].begin and spans[-1].end <= time.time()
    for one, following in pairwise(spans):
        assert one.begin < one.end == following.begin
    assert timeline.take() == []


def test_a_part_that_fails_is_over() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.part("run", 0, "solve"):
        time.sleep(0.001)
        raise KeyError
    time.sleep(0.01)
    with timeline.part("run", 0, "write"):
        time.sleep(0.001)
    solve, write = timeline.take()
    assert write.begin - solve.end > 0.005


def test_shares_add_up_to_the_whole_time() -> None:
    spans = [
        Span("a", 0, "collect", 10.0, 12.0),
        Span("a", 0, "receive", 12.0, 13.0),
        Span("a", 0, "write", 13.0, 13.5),
        Span("b", 0, "read", 15.0, 16.0),
        Span("b", 0, "solve", 16.0, 20.0),
    ]
    parts = shares(spans)
    assert parts["computing"] == pytest.approx(0.6)
    assert parts["reading"] == pytest.approx(0.1)
    assert parts["writing"] == pytest.approx(0.05)
    # One second for a microbatch and one and a half between the runs.
    assert parts["waiting"] == pytest.approx(0.25)
    assert sum(parts.values()) == pytest.approx(1.0)
    assert shares([]) == {}


def test_the_figure_shows_every_stage_and_run() -> None:
    spans = [(0, Span("a", 0, "collect", 1, 2)), (1, Span("b", 0, "read", 1.5, 2.5)), (1, Span("b", 0, "send", 2.5, 3))]
    rows = [{"stage": stage, "replica": 0, "kind": KINDS[span.part], **vars(span)} for stage, span in spans]
    table = pd.DataFrame(rows)
    figure = stage_timeline(table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["stage 1", "stage 2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert len(figure.axes[0].collections) == 2
    shared = stage_timeline(pd.concat([table, table.assign(replica=1)]))
    labels = [label.get_text() for label in shared.axes[0].get_yticklabels()]
    assert labels == ["stage 1.1", "stage 1.2", "stage 2.1", "stage 2.2"]
    with pytest.raises(InputError, match="at least one span"):
        stage_timeline(table.iloc[:0])
