"""Weighted sums of second moments, in memory and through files, against float64."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from mbs_ray.cluster.stage.dense_collecting import BlockTargets
from mbs_ray.compression import stored_moments as dense_statistics
from mbs_ray.compression.collect import Collected
from mbs_ray.compression.stored_moments import (
    MomentSum,
    RunMoments,
    Source,
    StoredMoments,
    Target,
    block_moment_bytes,
    stored_language_sums,
)
from mbs_ray.driver.pools import refuse_full_disk
from mbs_ray.errors import InputError
from mbs_ray.methods import Moment, Statistic
from mbs_ray.model.block_files import block_file
from tests.support.examples import examples

CPU = torch.device("cpu")
#: Linears by the input they share, and its columns.
INPUTS = {("q", "k"): 6, ("up",): 4}


def tokens(language: int, group: tuple[str, ...], count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * language + INPUTS[group])
    return torch.randn(count, INPUTS[group], generator=generator) * (1 + language)


def collected(language: int, statistic: Statistic, left_out: tuple[str, ...] = ()) -> Collected:
    """What a forward over tokens of a language would have left; W is the identity for all linears."""
    own = Collected()
    for group, columns in INPUTS.items():
        if group == left_out:
            continue
        moment = Moment.zeros(columns, statistic)
        moment.add(tokens(language, group))
        own.moments |= dict.fromkeys(group, moment)
        own.energies |= {name: tokens(language, group).double().square().sum() for name in group}
    return own


def stored(folder: Path, language: int, statistic: Statistic) -> Path:
    own = MomentSum(CPU)
    own.add(collected(language, statistic), 1.0)
    own.write(folder / block_file(0))
    return folder


@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.lists(st.floats(1e-6, 50), min_size=1, max_size=4),
    statistic=st.sampled_from([Statistic.FULL, Statistic.DIAGONAL]),
    at_once=st.integers(1, 50),
)
def test_a_weighted_sum_is_that_of_the_tokens_and_has_the_same_bits_with_a_sum_in_between(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    weights: list[float],
    statistic: Statistic,
    at_once: int,
) -> None:
    folder = tmp_path_factory.mktemp("moments")
    sources = [
        Source(stored(folder / str(language), language, statistic), weight) for language, weight in enumerate(weights)
    ]
    whole = MomentSum(CPU)
    for language, weight in enumerate(weights):
        whole.add(collected(language, statistic), weight)
    whole.write(folder / "sum" / block_file(0))
    with monkeypatch.context() as patch:
        patch.setattr(dense_statistics, "_ELEMENTS_AT_ONCE", at_once)
        apart = RunMoments(sources, 0).read(["q", "k", "up"], CPU)
    summed = RunMoments([Source(folder / "sum")], 0).read(["q", "k", "up"], CPU)
    assert apart.inputs() == summed.inputs() == [["q", "k"], ["up"]]
    for group in INPUTS:
        expected = torch.zeros(INPUTS[group], INPUTS[group], dtype=torch.float64)
        for language, weight in enumerate(weights):
            seen = tokens(language, group).double()
            expected += weight * seen.T @ seen
        expected = expected if statistic is Statistic.FULL else expected.diagonal()
        moment = apart.moments[group[0]]
        torch.testing.assert_close(moment.sum.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(moment.sum, summed.moments[group[0]].sum)
        assert moment.tokens == summed.moments[group[0]].tokens == round(sum(40 * one for one in weights))
        for name in group:
            energy = sum(
                one * float(tokens(language, group).double().square().sum()) for language, one in enumerate(weights)
            )
            assert float(apart.energies[name]) == pytest.approx(energy, rel=1e-12)
            assert float(apart.energies[name]) == float(summed.energies[name])


def test_only_what_is_asked_for_is_read_and_a_linear_that_a_language_never_called_counts_nothing_there(
    tmp_path: Path,
) -> None:
    first, second = stored(tmp_path / "0", 0, Statistic.FULL), tmp_path / "1"
    lacking = MomentSum(CPU)
    lacking.add(collected(1, Statistic.FULL, left_out=("up",)), 1.0)
    lacking.write(second / block_file(0))
    moments = RunMoments([Source(second, 0.5), Source(first, 2.0)], 0)
    assert moments.inputs() == [["q", "k"], ["up"]]
    up = moments.read(["up"], CPU)
    assert list(up.moments) == ["up"] and up.moments["up"].tokens == 80
    assert torch.equal(up.moments["up"].sum, 2 * collected(0, Statistic.FULL).moments["up"].sum)


def test_what_a_language_loses_follows_from_its_full_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_statistics, "_ELEMENTS_AT_ONCE", 7)
    sources = [Source(stored(tmp_path / str(one), one, Statistic.FULL), language=str(one)) for one in range(2)]
    generator = torch.Generator().manual_seed(0)
    changes = {name: torch.randn(5, columns, generator=generator) for name, columns in (("k", 6), ("up", 4))}
    sums = stored_language_sums(sources, 0, changes, ["q", "k", "up"])
    assert sums.dtype == torch.float64 and sums.shape == (2, 3, 2)
    assert not sums[:, 0].any()  # another replica measures it
    for language in range(2):
        for place, (name, group) in enumerate((("k", ("q", "k")), ("up", ("up",))), 1):
            seen = tokens(language, group).double()
            assert float(sums[language, place, 0]) == pytest.approx(
                float((seen @ changes[name].double().T).square().sum()), rel=1e-5
            )
            assert float(sums[language, place, 1]) == pytest.approx(float(seen.square().sum()), rel=1e-9)


def test_a_sum_is_written_with_its_last_language_and_host_memory_is_checked_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Target(tmp_path / "alone", Statistic.FULL, {"en": 1.0})
    both = Target(tmp_path / "both", Statistic.FULL, {"en": 0.25, "sw": 1.75})
    diagonal = Target(tmp_path / "diagonal", Statistic.DIAGONAL, {"sw": 1.0})
    targets = BlockTargets([alone, both, diagonal], 0)
    assert targets.statistics("en") == [Statistic.FULL] and targets.statistics("fr") == []
    assert targets.statistics("sw") == [Statistic.FULL, Statistic.DIAGONAL]
    targets.add("en", Statistic.FULL, collected(0, Statistic.FULL))
    assert alone.holds(0) and not both.holds(0) and not alone.holds(1)
    assert targets.statistics("en") == []
    targets.add("sw", Statistic.FULL, collected(1, Statistic.FULL))
    assert both.holds(0) and targets.statistics("sw") == [Statistic.DIAGONAL]
    expected = 0.25 * collected(0, Statistic.FULL).moments["up"].sum
    expected += 1.75 * collected(1, Statistic.FULL).moments["up"].sum
    assert torch.equal(RunMoments([Source(both.folder)], 0).read(["up"], CPU).moments["up"].sum, expected)


def test_what_has_no_room_or_is_not_there_is_one_line(tmp_path: Path) -> None:
    shapes = [(8, 6), (2, 4)]
    assert block_moment_bytes(shapes, Statistic.FULL) == 4 * (36 + 16)
    assert block_moment_bytes(shapes, Statistic.DIAGONAL) == 4 * (6 + 4)
    refuse_full_disk(tmp_path / "not" / "yet", 1000)
    with pytest.raises(InputError, match=r"statistics: second moments need up to 1073741824\.00 GiB in .*not"):
        refuse_full_disk(tmp_path / "not" / "yet", 2**60)
    with pytest.raises(InputError, match=r"block-00003\.safetensors: not there"):
        StoredMoments(tmp_path, 3)
