"""Parameters are flattened without loss, and secrets among them stay in the program."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.tracking.parameters import flatten
from tests.support.examples import examples

WORDS = st.text(alphabet="abcdef_- ", min_size=1, max_size=5)
LEAVES = st.one_of(st.integers(), st.booleans(), st.none(), st.floats(), st.lists(st.integers(), max_size=2))
TREES = st.recursive(LEAVES, lambda tree: st.dictionaries(WORDS, tree, min_size=1, max_size=3), max_leaves=12)


@examples(100)
@given(st.dictionaries(WORDS, TREES, max_size=4))
def test_the_dotted_names_lead_to_the_values_as_text(params: dict[str, Any]) -> None:
    def leaves(tree: Any) -> int:
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 1

    flat = flatten(params)
    assert len(flat) == leaves(params)
    for name, text in flat.items():
        value: Any = params
        for key in name.split("."):
            value = value[key]
        assert text == str(value)


def test_a_run_is_flattened_as_people_write_it() -> None:
    spec = {"method": {"name": "sparsegpt", "sparsity": 0.5}, "languages": ["en", "zh-Hans"], "extra": {}}
    assert flatten(spec) == {
        "method.name": "sparsegpt",
        "method.sparsity": "0.5",
        "languages": "['en', 'zh-Hans']",
        "extra": "{}",
    }


SECRETS = """token HF_TOKEN hfToken auth.token.value db_password passwd client_secret secrets.x
api_key apiKey aws_access_key_id private-key credentials"""


@pytest.mark.parametrize("secret", SECRETS.split())
def test_a_name_that_looks_like_a_secret_is_left_out(secret: str) -> None:
    assert flatten({secret: "hunter2", "outer": {secret: "hunter2"}, "seed": 1}) == {"seed": "1"}


def test_tokens_and_tokenizers_are_no_secrets() -> None:
    spec = {"tokens": 1, "tokenizer": "bloom", "calibration": {"tokens_per_segment": 2}, "key": "k"}
    assert set(flatten(spec)) == {"tokens", "tokenizer", "calibration.tokens_per_segment", "key"}


def test_credentials_are_taken_out_of_addresses() -> None:
    assert flatten({"corpus": "s3 at https://me:hunter2@host/bucket"}) == {"corpus": "s3 at https://host/bucket"}


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"'a\.b' is given twice"):
        flatten({"a": {"b": 1}, "a.b": 2})


def test_a_name_that_mlflow_would_refuse_is_named() -> None:
    with pytest.raises(InputError, match=r"'method\.sparsity %'"):
        flatten({"method": {"sparsity %": 50}})
