"""What is read for a draw, estimated before anything is: whether it is little enough for this process."""

from pathlib import Path
from typing import BinaryIO

import pytest

from mbs_ray.text.here import reading_bytes
from mbs_ray.text.parquet_shard import Opener, ParquetShard
from mbs_ray.text.text_shard import TextShard
from mbs_ray.text.unit_draw import Ask, Spot

SPOTS = (Spot(0, 1.0), Spot(1, 20.0))


def parquet(opener: Opener | None = None) -> ParquetShard:
    return ParquetShard("en", "en.parquet", "text", (1600, 3200, 4800), ("en",), opener)


def fetched(location: str) -> BinaryIO:
    return Path(location).open("rb")


def test_units_count_as_the_mean_of_all() -> None:
    whole = [Ask("en", number) for number in range(3)]
    assert reading_bytes({"en": [parquet()]}, whole) == 9600
    assert reading_bytes({"en": [parquet(), parquet()]}, whole[:1]) == 3200


def test_of_a_row_group_count_its_spots_and_a_sixteenth_for_decoding_it() -> None:
    asks = [Ask("en", 1, SPOTS, 100), Ask("en", 2, SPOTS[:1], 100)]
    assert reading_bytes({"en": [parquet()]}, asks) == 200 + 200 + 100 + 300


def test_spots_never_count_more_than_their_part_and_of_one_that_is_fetched_all_counts() -> None:
    assert reading_bytes({"en": [parquet()]}, [Ask("en", 0, SPOTS, 10**6)]) == 1600 + 100
    assert reading_bytes({"en": [parquet(fetched)]}, [Ask("en", 0, SPOTS, 1)]) == 1600


@pytest.mark.parametrize(
    ("column", "compression", "bytes_read"), [("text", None, 200), ("text", "gzip", 300), (None, None, 1600)]
)
def test_of_json_lines_count_the_spots_and_of_plain_text_which_may_be_one_document_all(
    column: str | None, compression: str | None, bytes_read: int
) -> None:
    shard = TextShard("en", Path("en"), column, compression, 1, ((0, 1600),), ("en",))
    assert reading_bytes({"en": [shard]}, [Ask("en", 0, SPOTS, 100)]) == bytes_read
