"""A process that is killed while it tokenizes costs no bit: Ray gives its task to another."""

import threading
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from mbs_ray.text.segment_draw import draw_segments
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_parquet


def _kill_first_tokenizer(killed: list[int], stop: threading.Event) -> None:
    """Ray writes into the title of a process what it works on."""
    while not stop.wait(0.002):
        for process in psutil.process_iter(["cmdline"]):
            if "tokenize_in_task" in "".join(process.info["cmdline"] or ())[:80]:
                process.kill()
                killed.append(process.pid)
                return


@pytest.mark.slow
def test_a_killed_tokenizer_costs_no_bit(ray_cluster: Cluster, tokenizer: Path, tmp_path: Path) -> None:
    for language in ("en", "sw"):
        write_parquet(tmp_path / "corpus" / language / "0.parquet", some_texts(language, 400), 2)
    asked = request(tmp_path / "corpus", tokenizer, {"en": 120, "sw": 120})
    expected = [row for result in drawn_here(asked).values() for row in rows_of(result)]
    killed, stop = list[int](), threading.Event()
    killer = threading.Thread(target=_kill_first_tokenizer, args=(killed, stop))
    killer.start()
    try:
        drawn = draw_segments(asked, tmp_path / "segments", here_bytes=0)
    finally:
        stop.set()
        killer.join()
    assert killed and not psutil.pid_exists(killed[0])
    assert [tuple(row) for row in drawn.read().token_ids.tolist()] == expected
