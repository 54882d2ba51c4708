"""Footers are read in another process, whose end is one line and costs nobody else anything."""

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from mbs_ray.errors import InputError
from mbs_ray.text.footers import FooterReader
from mbs_ray.text.parquet_shard import row_group_extents
from tests.support.texts import some_texts, write_parquet


def test_another_process_finds_what_this_one_finds(tmp_path: Path) -> None:
    path, other = tmp_path / "sw.parquet", tmp_path / "other.parquet"
    write_parquet(path, some_texts("sw", 20), 6)
    other.write_bytes(path.read_bytes()[:-5])
    with FooterReader() as footers:
        assert footers.extents(str(path), "text") == row_group_extents(str(path), "text")
        for broken, column, said in (
            (other, "text", "other.parquet: not a readable"),
            (path, "body", "no column 'body'"),
        ):
            with pytest.raises(InputError, match=said):
                footers.extents(str(broken), column)
        assert len(footers.extents(str(path), "text")) == 4
        assert len(psutil.Process().children()) >= 1
        (reader,) = (one for one in psutil.Process().children() if "footers" in " ".join(one.cmdline()))
    assert not reader.is_running()


def test_a_footer_that_ends_its_reader_is_one_line_and_the_next_is_read(tmp_path: Path) -> None:
    path, pipe = tmp_path / "sw.parquet", tmp_path / "sw.pipe"
    write_parquet(path, some_texts("sw", 20), 6)
    os.mkfifo(pipe)  # whoever reads it waits for a writer

    def kill() -> None:
        readers: list[psutil.Process] = []
        while not readers:
            readers = [one for one in psutil.Process().children() if "footers" in " ".join(one.cmdline())]
        os.kill(readers[0].pid, signal.SIGKILL)

    with FooterReader() as footers:
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(InputError, match=r"sw\.pipe: not a readable parquet file \(its footer ends the process"):
            footers.extents(str(pipe), "text")
        killer.join()
        assert len(footers.extents(str(path), "text")) == 4


def test_nobody_is_started_where_nothing_is_asked() -> None:
    before = psutil.Process().children()
    with FooterReader():
        assert psutil.Process().children() == before
