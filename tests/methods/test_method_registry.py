"""Methods by name, there and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.methods import GPTQ, METHODS, SparseGPT, Wanda, build_method, method_spec
from tests.support.examples import examples

SPECS = st.one_of(
    st.fixed_dictionaries({"name": st.sampled_from(["magnitude", "wanda", "sparsegpt"])}).flatmap(
        lambda spec: st.floats(0, 1, exclude_max=True).map(lambda share: {**spec, "sparsity": share})
    ),
    st.sampled_from([{"name": "wanda", "pattern": "1:4"}, {"name": "sparsegpt", "pattern": "2:3"}]),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["rtn", "gptq"]), "bits": st.integers(2, 8), "symmetric": st.booleans()},
        optional={"group_size": st.none() | st.integers(1, 512)},
    ),
)


@examples(100)
@given(spec=SPECS)
def test_a_spec_survives_the_way_through_json(spec: dict[str, object]) -> None:
    method = build_method(spec)
    written = json.loads(json.dumps(method_spec(method)))
    assert written.items() >= spec.items()
    assert build_method(written) == method
    assert method_spec(build_method(written)) == written


@pytest.mark.parametrize("name", METHODS)
def test_a_name_alone_gives_the_defaults(name: str) -> None:
    assert build_method(name) == build_method({"name": name}) == METHODS[name]()
    assert METHODS[name].name == name


def test_a_mapping_gives_the_fields() -> None:
    assert build_method({"name": "sparsegpt", "sparsity": 0.7, "block_size": 64}) == SparseGPT(
        sparsity=0.7, block_size=64
    )
    assert build_method({"name": "gptq", "bits": 3}) == GPTQ(bits=3)


def test_methods_are_values() -> None:
    assert len({Wanda(), Wanda(sparsity=0.5), Wanda(pattern="2:4")}) == 2
    with pytest.raises(AttributeError):
        Wanda().sparsity = 0.1  # type: ignore[misc]


def test_an_unknown_name_lists_what_exists() -> None:
    for spec in ("spargegpt", {"name": "spargegpt"}, {"name": 3}):
        with pytest.raises(InputError, match="choose from magnitude, rtn, wanda, sparsegpt, gptq"):
            build_method(spec)


def test_a_misspelt_field_is_named_with_the_fields_there_are() -> None:
    with pytest.raises(InputError, match="wanda has no field 'sparsty'; its fields are sparsity, pattern"):
        build_method({"name": "wanda", "sparsty": 0.5})
    with pytest.raises(InputError, match="rtn has no field 'damping'"):
        build_method({"name": "rtn", "damping": 0.5})


@pytest.mark.parametrize("spec", [{"sparsity": 0.5}, None, ["wanda"]])
def test_a_spec_without_a_name_is_an_error(spec: object) -> None:
    with pytest.raises(InputError, match="give a name or a mapping with a name"):
        build_method(spec)  # type: ignore[arg-type]
