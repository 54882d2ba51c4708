"""Passwords and signatures in addresses reach no file and no tracker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.text.redaction import all_without_secrets, without_secrets

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
