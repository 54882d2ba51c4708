"""Passwords and signatures in addresses reach no file and no tracker."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.text.redaction import all_without_secrets, without_secrets
from mbs_ray.text.segment_file import METADATA_KEY, write_segments

ADDRESSES = {
    "https://me:hunter2@host/bucket": "https://host/bucket",
    "https://b.s3.amazonaws.com/en.parquet?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=abc": "https://b.s3.amazonaws.com/en.parquet",
    "https://user@host:8080/a/b.jsonl?sig=a/b@c?d#e": "https://host:8080/a/b.jsonl",
    "s3://bucket/key?versionId=1": "s3://bucket/key",
    "zip://en.txt::https://u:p@host/all.zip?token=1": "zip://en.txt::https://host/all.zip",
    "https://host/file#access_token=1": "https://host/file",
    "https://host?key=1": "https://host",
    "sqlite:////srv/mlflow.db": "sqlite:////srv/mlflow.db",
    "/data/what?/en#1.txt": "/data/what?/en#1.txt",
    "me@example.org": "me@example.org",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_of_an_address_only_what_leads_to_it_is_left(address: str) -> None:
    bare = ADDRESSES[address]
    assert without_secrets(address) == bare == without_secrets(bare)
    said = f"404 for url: '{address}', then {address} again"
    assert without_secrets(said) == (f"404 for url: '{bare}', then {bare} again")
    content = {"corpus": {"data_files": [address, 7, None]}, address: True}
    assert all_without_secrets(content) == {"corpus": {"data_files": [bare, 7, None]}, bare: True}


@given(st.text(alphabet="abc/:.-_ ?#@", max_size=30).filter(lambda text: "://" not in text))
def test_what_is_no_address_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_the_file_of_segments_holds_no_secret(tmp_path: Path) -> None:
    corpus = {"dataset": "json", "data_files": "https://me:hunter2@host/{language}.jsonl?sig=hunter2"}
    written = write_segments(tmp_path / "x.parquet", "f", {"sequence_length": 8, "corpus": corpus}, {})
    assert b"hunter2" not in written.path.read_bytes()
    metadata = json.loads(pq.read_schema(written.path).metadata[METADATA_KEY])
    assert metadata["request"]["corpus"] == {"dataset": "json", "data_files": "https://host/{language}.jsonl"}
