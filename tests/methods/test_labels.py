"""Labels: what is not the same method has not the same one, and those that name old directories stay."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbs_ray.errors import InputError
from mbs_ray.methods import METHODS, build_method, method_spec

#: Values of each field that differ from each other and, all but the first, from every default.
VALUES: dict[str, list[Any]] = {
    "sparsity": [0.5, 0.25, 0.625],
    "pattern": ["unstructured", "2:4", "4:8"],
    "scope": [None, "row", "linear", "share", "block"],
    "bits": [4, 2, 3, 8],
    "group_size": [None, 32, 128],
    "symmetric": [False, True],
    "clip_search": [False, True],
    "activation_order": [False, True],
    "keep_zeros": [False, True],
    "damping": [0.01, 0.05, 0.1, 1e-05, 1],
    "block_size": [128, 32, 64, 256],
    "refine": [0, 1, 2],
}


def fields_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(METHODS[name])]


def test_the_table_has_every_field_of_every_method() -> None:
    assert {field for name in METHODS for field in fields_of(name)} == set(VALUES)


@st.composite
def methods(draw: st.DrawFn) -> Any:
    """Any method with any of the values; None where they contradict each other."""
    name = draw(st.sampled_from(sorted(METHODS)))
    fields = {field: draw(st.sampled_from(VALUES[field])) for field in fields_of(name)}
    if fields.get("pattern", "unstructured") != "unstructured":
        del fields["sparsity"]
    try:
        return build_method({"name": name, **{field: value for field, value in fields.items() if value is not None}})
    except InputError:
        return None


@given(st.lists(methods(), min_size=2, max_size=12))
def test_methods_that_differ_have_labels_that_differ(drawn: list[Any]) -> None:
    distinct = {str(sorted(method_spec(one).items())): one for one in drawn if one is not None}
    assert len({one.label for one in distinct.values()}) == len(distinct)


@pytest.mark.parametrize("name", METHODS)
def test_each_field_alone_shows_in_the_label(name: str) -> None:
    plain = build_method(name)
    for field in fields_of(name):
        for value in VALUES[field][1:]:
            try:
                other = build_method({"name": name, field: value})
            except InputError:
                continue  # a scope of another method
            if other != plain:
                assert other.label != plain.label, field


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("sparsegpt", "sparsegpt-50"),
        ({"name": "gptq", "group_size": 128}, "gptq-4bit-g128"),
        ({"name": "gptq", "bits": 3, "group_size": 1024}, "gptq-3bit-g1024"),
        ("magnitude", "magnitude-50"),
        ({"name": "sparsegpt+gptq", "pattern": "2:4"}, "sparsegpt+gptq-2:4-4bit"),
        ("obc", "obc-50"),
        ("obq", "obq-4bit"),
        ({"name": "sparsegpt", "damping": 0.05, "keep_zeros": True}, "sparsegpt-50-damping0.05-keep-zeros"),
        ({"name": "gptq", "damping": 0.1, "activation_order": True}, "gptq-4bit-act-damping0.1"),
        ({"name": "sparsegpt", "pattern": "2:4", "refine": 2}, "sparsegpt-2:4-refine2"),
        ({"name": "sparsegpt", "block_size": 64}, "sparsegpt-50-block-size64"),
    ],
)
def test_labels_are_these(spec: Any, label: str) -> None:
    assert build_method(spec).label == label
