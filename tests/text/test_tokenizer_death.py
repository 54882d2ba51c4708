"""A tokenizer that is killed while text is drawn costs no bit: what has not arrived is read again."""

import os
import signal
import threading
from pathlib import Path

from ray._private.state import actors
from ray.cluster_utils import Cluster

from mbs_ray.text.segment_draw import draw_segments
from tests.support.texts import drawn_here, request, rows_of, some_texts, write_parquet


def _kill_first_tokenizer(killed: list[str], before: set[str], stop: threading.Event) -> None:
    while not stop.wait(0.01):
        for key, actor in actors().items():
            tokenizes = "TokenizeTexts" in str(actor)
            if key not in before and tokenizes and actor["State"] == "ALIVE" and actor.get("Pid"):
                os.kill(actor["Pid"], signal.SIGKILL)
                killed.append(key)
                return


def test_a_killed_tokenizer_costs_no_bit(ray_cluster: Cluster, tokenizer: Path, tmp_path: Path) -> None:
    for language in ("en", "sw"):
        write_parquet(tmp_path / "corpus" / language / "0.parquet", some_texts(language, 400), 2)
    asked = request(tmp_path / "corpus", tokenizer, {"en": 120, "sw": 120})
    before, killed, stop = set(actors()), list[str](), threading.Event()
    killer = threading.Thread(target=_kill_first_tokenizer, args=(killed, before, stop))
    killer.start()
    try:
        drawn = draw_segments(asked, tmp_path / "segments")
    finally:
        stop.set()
        killer.join()
    assert killed and actors()[killed[0]]["State"] == "DEAD"
    expected = [row for result in drawn_here(asked).values() for row in rows_of(result)]
    assert [tuple(row) for row in drawn.read().token_ids.tolist()] == expected
