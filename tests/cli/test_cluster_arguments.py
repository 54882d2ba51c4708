"""What a command is told of the cluster reaches it as one ClusterOptions, whichever options it has."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from mbs_ray.cli import app
from mbs_ray.cli.cluster_arguments import CLUSTER, FILE_OFFLOAD, with_cluster, without
from mbs_ray.cluster.cluster_options import ClusterOptions
from mbs_ray.errors import InputError

COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ALL = {field.name for field in fields(ClusterOptions)}
WORDS = [
    "--stages", "2", "--replicas", "3", "--threads", "4", "--offload", "nvme", "--nvme-path", "disk", "--address", "a",
]  # fmt: skip


def told(words: list[str], **given: Any) -> ClusterOptions:
    """What a command that takes these options hears of the words on its command line."""
    heard: list[ClusterOptions] = []
    one = typer.Typer()

    @one.command()
    @with_cluster(**given)
    def command(name: Annotated[str, typer.Argument()], *, cluster: ClusterOptions, flag: bool = False) -> None:
        assert (name, flag) == ("n", True)
        heard.append(cluster)

    result = CliRunner().invoke(one, ["n", "--flag", *words])
    assert result.exit_code == 0, result.output
    return heard[0]


def test_a_command_hears_its_options_as_one() -> None:
    assert told(WORDS) == ClusterOptions(2, 3, 4, "nvme", Path("disk").absolute(), "a")
    assert told([]) == ClusterOptions(offload="auto")
    assert told([], options={**without("threads"), "offload": FILE_OFFLOAD}) == ClusterOptions()
    assert told(["--threads", "2"], options=without(*ALL - {"threads"})) == ClusterOptions(threads=2)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("compress", ALL),
        ("evaluate", ALL),
        ("sweep", ALL - {"threads"}),
        ("plan", ALL - {"offload", "wait"}),
        ("similarity", {"threads", "address", "device"}),
        ("demo", {"address", "wait"}),
    ],
)
def test_each_command_has_the_options_that_mean_something_to_it(command: str, names: set[str]) -> None:
    assert set(CLUSTER) == ALL
    shown = {parameter.name for parameter in COMMANDS[command].params}
    assert shown & ALL == names
    assert "cluster" not in shown


def test_actors_need_the_cpus_of_all_their_threads() -> None:
    assert ClusterOptions().cpus == 1
    assert ClusterOptions(stages=2, threads=3).cpus == 6
    assert ClusterOptions(2, 2, 2).cpus == 8


def test_a_tier_on_disk_needs_its_folder() -> None:
    assert (ClusterOptions().tiers.asked, ClusterOptions().tiers.nvme_path) == ("auto", None)
    with pytest.raises(InputError, match=r"offload: nvme needs nvme_path \(--nvme-path\)"):
        _ = ClusterOptions(offload="nvme").tiers
