"""What fits, what would fit instead, how long it takes: by hand on small numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mbs_ray.cluster.layout import Layout
from mbs_ray.errors import InputError
from mbs_ray.methods import build_method, kernel
from mbs_ray.plan.hardware import Hardware, Node, cluster_file, this_machine
from mbs_ray.plan.make_plan import fitting_plan, make_plan, refuse, reserved_memory
from mbs_ray.plan.measured_rates import measure_rates
from mbs_ray.plan.meta_checkpoint import MetaDecoder, meta_checkpoint
from mbs_ray.plan.plan_view import closing_lines, host_budget, summary, tables
from mbs_ray.plan.planned_work import PlannedRun, TokenBatches
from mbs_ray.plan.rates import assumed_rates
from mbs_ray.plan.results_size import blocks_bytes, kept_bytes, packed_bytes, results_bytes
from mbs_ray.plan.stage_time import (
    Seconds,
    collecting_seconds,
    forward_seconds,
    head_operations,
    head_seconds,
    moment_operations,
    solve_operations,
    stage_seconds,
)
from mbs_ray.plan.units import duration, format_gib, format_operations, parse_rate, parse_size
from mbs_ray.run.modes import DenseFit

GB = 10**9
RATES = assumed_rates("A100", True, 1, torch.bfloat16)
EIGHT = Hardware((Node(8, 80 * GB, 1000 * GB, 8000 * GB, 96, "A100"),))


@pytest.fixture(scope="module")
def decoder() -> MetaDecoder:
    return MetaDecoder(meta_checkpoint("bigscience/bloom"), torch.bfloat16)


@pytest.fixture(scope="module")
def works(decoder: MetaDecoder) -> list[PlannedRun]:
    calibration, evaluation = TokenBatches(256, 2048, 2), (TokenBatches(160, 2048, 2),)
    return [
        PlannedRun("sparsegpt", decoder, build_method("sparsegpt"), calibration, evaluation),
        PlannedRun(
            "gptq", decoder, build_method({"name": "gptq", "bits": 4, "group_size": 128}), calibration, evaluation
        ),
    ]


def test_activations_are_counted_twice_where_a_stage_receives(works):
    hidden = 2 * (256 + 160) * 2048 * 14336
    one = make_plan(works, EIGHT, Layout(1), RATES, "nvme")
    two = make_plan(works, EIGHT, Layout(2), RATES, "nvme")
    assert [stage.nvme for stage in one.stages] == [hidden]
    assert [stage.nvme for stage in two.stages] == [2 * hidden] * 2
    assert two.object_store == 2 * 2 * 2048 * 14336 * 2  # two microbatches under way at one border


def test_auto_takes_the_first_tier_with_room(works):
    tiers = {}
    for name, node in {
        "none": Node(8, 200 * GB, 1000 * GB, 0),
        "host": Node(8, 80 * GB, 1000 * GB, 8000 * GB),
        "nvme": Node(8, 80 * GB, 300 * GB, 8000 * GB),
    }.items():
        plan = make_plan(works, Hardware((node,)), Layout(8), RATES)
        assert not plan.problems
        tiers[name] = {stage.tier for stage in plan.stages}
    assert tiers == {"none": {"none"}, "host": {"host"}, "nvme": {"nvme"}}


def test_what_does_not_fit_is_refused_with_what_does(works):
    small = Hardware((Node(2, 60 * GB, 100 * GB, 8000 * GB),))
    plan = make_plan(works, small, Layout(2), RATES, "host", nvme=True)
    assert [problem.partition(" of ")[0] for problem in plan.problems] == ["stage 1 (and 2) needs 61.5 GiB"]
    with pytest.raises(
        InputError, match=r"stage 1 \(and 2\) needs .* of host memory .*layout \{stages: \d\}, offload: (nvme|host)"
    ):
        refuse(plan)
    other = fitting_plan(plan)
    assert other is not None
    assert not other.problems
    tiny = make_plan(works, Hardware((Node(8, 8 * GB, 100 * GB),)), Layout(8), RATES, nvme=False)
    assert fitting_plan(tiny) is None
    with pytest.raises(InputError, match=r"device memory .*no layout of this cluster fits"):
        refuse(tiny)
    refuse(make_plan(works, EIGHT, Layout(8), RATES))


def test_a_smaller_microbatch_is_proposed_where_attention_is_too_large(decoder):
    large = [PlannedRun("run", decoder, build_method("wanda"), TokenBatches(64, 2048, 16), ())]
    node = Hardware((Node(1, 60 * GB, 500 * GB),))
    plan = make_plan(large, node, Layout(1), RATES, nvme=False)
    assert "forward" in plan.problems[0]
    other = fitting_plan(plan)
    assert other is not None
    assert other.works[0].batches[0].microbatch == 1


def test_replicas_share_activations_and_tokens(works):
    hidden = 2 * (256 + 160) * 2048 * 14336
    plan = make_plan(works, EIGHT, Layout(1, 4), RATES, "nvme")
    assert plan.stages[0].nvme == hidden // 4
    alone = make_plan(works, EIGHT, Layout(1, 1), RATES, "nvme")
    assert plan.seconds[0][0].parts["collect"] < 0.5 * alone.seconds[0][0].parts["collect"]


def test_stages_of_one_node_share_its_host_memory(works):
    plan = make_plan(works, Hardware((Node(8, 80 * GB, 400 * GB),)), Layout(8), RATES, nvme=False)
    assert all("of host memory" in problem for problem in plan.problems)
    assert host_budget(plan) == (
        "host memory: a stage may use 42.2 GiB = (372.5 GiB × 92%) ÷ 8 stages − 704 MiB of processes; "
        "Ray kills above 95%"
    )
    alone = Hardware((Node(0, 0, 400 * GB, host_used=80 * GB, kill_share=0.5),))
    assert host_budget(make_plan(works, alone, Layout(1), RATES)) == (
        "host memory: a stage may use 99.9 GiB = 372.5 GiB × 47% − 74.5 GiB in use − 704 MiB of processes; "
        "Ray kills above 50%"
    )
    apart = Hardware((Node(1, 80 * GB, 400 * GB),) * 8)
    assert not make_plan(works, apart, Layout(8), RATES, nvme=False).problems
    assert apart.node_of_actor(8) == list(range(8))
    assert Hardware((Node(0, 0, GB), Node(0, 0, GB))).node_of_actor(3) == [0, 1, 0]


def test_stages_on_cpus_leave_gpus_alone_and_gpus_that_torch_cannot_use_are_refused():
    mixed = Hardware((Node(0, 0, GB), Node(2, 80 * GB, GB)))
    assert mixed.for_device("cuda") is mixed and mixed.actors == 2
    assert not mixed.for_device("cpu").cuda and mixed.for_device("cpu").node_of_actor(2) == [0, 1]
    lost = Hardware((Node(0, 0, GB), Node(0, 0, GB, no_cuda="torch is a build for CPUs")))
    with pytest.raises(InputError, match="device: cuda: on a node with GPUs torch is a build for CPUs; mend that"):
        lost.for_device("cuda")
    assert lost.for_device("cpu").actors == 2


def test_results_by_what_is_kept(works, decoder):
    blocks = 70 * 2 * (12 * 14336**2 + 13 * 14336)
    assert blocks_bytes(decoder) == blocks
    outside = 2 * (250_880 * 14336 + 4 * 14336)
    scores = 24 * 160 * 2048
    assert kept_bytes(works[0]) == blocks + scores
    assert results_bytes(works[:1], 8) == blocks + outside + scores
    metrics = [replace(works[0], label=str(number), keep="metrics") for number in range(9)]
    # Nine runs leave their scores; as many as there are stages have their blocks at one time.
    assert results_bytes(metrics, 2) == 9 * scores + outside + 2 * blocks
    # 4 bits, a 16-bit scale and a 4-bit zero point for 128 weights; biases and norms as they were.
    weights = 70 * 12 * 14336**2
    assert packed_bytes(decoder, works[1].method) == weights // 2 + weights // 128 * 5 // 2 + 70 * 2 * 13 * 14336
    full = Hardware(EIGHT.nodes, storage=300 * GB)
    assert "results need" in make_plan(works, full, Layout(8), RATES).problems[0]
    assert not make_plan(metrics, replace(full, storage=800 * GB), Layout(2), RATES).problems


def test_operations_in_closed_form(decoder):
    assert moment_operations(decoder, 0, 4096) == 4096 * (3 * 14336**2 + 57344**2)
    factors, solved = solve_operations(decoder, 0)
    h = 14336
    assert factors == pytest.approx((3 * h**3 + 57344**3) / 3)
    assert solved == pytest.approx((3 * h + h + 4 * h) * h**2 + h * 57344**2)


def test_columns_take_the_time_of_their_way_and_only_with_obs_solvers(works, monkeypatch):
    """On GPUs those of linears with 1,024 columns or more have a kernel, on CPUs all."""
    nothing = replace(RATES, column=0.0, compiled_column=0.0, solve={})

    def added(work, cuda=True, **rates):
        before, after = (
            stage_seconds(work, range(1), False, one, "host", cuda).parts["solve"]
            for one in (nothing, replace(nothing, **rates))
        )
        return after - before

    large, columns = works[1], 3 * 14336 + 57344
    assert added(large, compiled_column=1.0) == pytest.approx(columns)
    assert added(large, column=1.0) == 0
    assert added(replace(large, method=build_method("wanda")), column=1.0, compiled_column=1.0) == 0
    small = replace(large, decoder=MetaDecoder(meta_checkpoint("bigscience/bloom-560m"), torch.bfloat16))
    assert added(small, compiled_column=1.0) == pytest.approx(3 * 1024 + 4096)
    monkeypatch.setattr(kernel, "LEAST_COLUMNS", 1025)
    assert added(small, column=1.0) == pytest.approx(3 * 1024)
    assert added(small, cuda=False, column=1.0) == 0
    assert added(small, cuda=False, compiled_column=1.0) == pytest.approx(3 * 1024 + 4096)
    weights = 12 * 14336**2
    measured = added(large, solve={large.method.label: (2.0, 0.0)})
    assert measured == pytest.approx(2 * columns - weights * RATES.weight)


def test_runs_follow_one_another_through_the_stages(works):
    """Two runs, stages of 3 and 5 seconds: the second stage is never without work once it has begun."""
    plan = make_plan(works, EIGHT, Layout(2), RATES, "nvme")
    timed = replace(plan, seconds=[[Seconds({"solve": 3.0}), Seconds({"solve": 4.0, "read": 5.0})]] * 2)
    assert timed.wall == 3 + 5 + 5
    assert timed.bottleneck == (1, "read")


def test_the_head_is_a_table_of_its_own(works):
    plan = make_plan(works, EIGHT, Layout(8), RATES)
    head = tables(plan)[-1]
    assert head.title == "head, on stage 8"
    console = Console(record=True, width=160)
    console.print(head)
    text = console.export_text()
    operations = 2 * 250_880 * 14336 * 160 * 2048
    seconds = operations / RATES.head + 2 * 250_880 * 14336 * (1 / RATES.read + 1 / RATES.upload)
    assert head_operations(works[0]) == operations and head_seconds(works[0], RATES, True) == pytest.approx(seconds)
    # 32,768 rows in bf16; logits of 2,048 tokens in float32, their exponentials, and a copy in bf16.
    for cell in ("sparsegpt and 1 more", "327,680", "2.4 PFLOP", duration(seconds), "896 MiB", "640 MiB"):
        assert cell in text
    assert len(tables(make_plan([replace(work, evaluation=()) for work in works], EIGHT, Layout(8), RATES))) == 4


def test_more_evaluation_makes_the_last_stage_the_longest(works):
    long = [replace(work, evaluation=(TokenBatches(2000, 2048, 2),)) for work in works]
    last = stage_seconds(long[0], range(69, 70), True, RATES, "host", True).parts
    inner = stage_seconds(long[0], range(69, 70), False, RATES, "host", True).parts
    assert last.keys() - inner.keys() == {"evaluate"}


def test_a_true_sequence_takes_a_forward_up_to_each_of_the_four_inputs(works):
    once, four = (replace(works[0], true_sequential=true) for true in (False, True))
    batches, h = once.calibration, 14336
    whole = forward_seconds(once.decoder, 0, batches, RATES)
    # Outputs that are not computed, in h² weights; on CPUs also those of the last call, found from moments in h³ steps.
    for work, forwards, left_out, more, found in ((once, 1, 0, 4, 16), (four, 4, 9 + 8 + 4, 12, 3 + 1 + 4 + 16)):
        on_gpu = forwards * whole - 2 * left_out * h**2 * batches.tokens / RATES.forward
        on_cpu = on_gpu - 2 * more * h**2 * batches.tokens / RATES.forward + found * h**3 / RATES.product
        assert collecting_seconds(work, 0, RATES, True) == pytest.approx(on_gpu)
        assert collecting_seconds(work, 0, RATES, False) == pytest.approx(on_cpu)
    assert collecting_seconds(replace(once, method=build_method("wanda")), 0, RATES, True) == pytest.approx(
        whole - 2 * 4 * h**2 * batches.tokens / RATES.forward
    )
    assert collecting_seconds(replace(once, fit=DenseFit()), 0, RATES, True) == whole
    parts, others = (stage_seconds(work, range(1), False, RATES, "host", True).parts for work in (once, four))
    assert others.pop("collect") > parts.pop("collect") and others == parts


def test_fitting_takes_a_forward_of_the_dense_model_and_its_share_of_solving(works):
    plain, fitted = (replace(works[0], fit=fit) for fit in (None, DenseFit(strength=0.5)))
    chosen = replace(works[0], fit=DenseFit())
    for block in (0, 69):
        before, after, auto = (
            stage_seconds(one, range(block, block + 1), False, RATES, "host", True).parts
            for one in (plain, fitted, chosen)
        )
        assert after.keys() - before.keys() == {"fit"}
        forward = forward_seconds(works[0].decoder, block, works[0].calibration, RATES)
        more = sum(after[part] - before[part] for part in ("collect", "propagate"))
        assert more >= forward and more == pytest.approx(forward, rel=0.5)
        assert auto["fit"] > 1.9 * after["fit"] and auto["moments"] > after["moments"] > before["moments"]


def test_the_plan_is_said_and_shown(works):
    plan = make_plan(works, EIGHT, Layout(8), RATES)
    console = Console(record=True, width=160)
    for table in tables(plan):
        console.print(table)
    text = console.export_text()
    for word in ("moments", "factor", "block as stored", "activations", "layout 8 × 1", "sparsegpt", "gptq"):
        assert word in text
    assert "stage needs" in summary(plan)
    assert any("results:" in line for line in closing_lines(plan))
    device, host = reserved_memory(plan)
    assert device == max(stage.device for stage in plan.stages)
    assert host < max(stage.host for stage in plan.stages)


def test_rates_are_measured_with_the_models_own_shapes(bloom, tmp_path):
    decoder = MetaDecoder(meta_checkpoint(str(bloom)), torch.float32)
    works = [
        PlannedRun(name, decoder, build_method(name), TokenBatches(4, 32, 2), (TokenBatches(2, 32, 2),))
        for name in ("sparsegpt", "wanda")
    ]
    rates = measure_rates(works, assumed_rates("", False, 2, torch.float32), tmp_path)
    assert rates.source.startswith("measured on")
    assert set(rates.solve) == {"sparsegpt-50", "wanda-50"}
    assert min(rates.forward, rates.head, rates.moments, rates.factor, rates.read, rates.write) > 0
    assert list(tmp_path.iterdir()) == []
    parts = stage_seconds(works[0], range(4), True, rates, "host", False).parts
    assert set(parts) == {"read", "collect", "moments", "factorise", "solve", "write", "propagate", "evaluate"}
    assert all(0 < seconds < 600 for seconds in parts.values())


def test_nodes_of_the_launcher_file():
    hardware = cluster_file(Path(__file__).parents[2] / "cluster.yaml")
    assert [(node.gpus, node.device) for node in hardware.nodes] == [(4, "L40S")]
    with pytest.raises(InputError, match=r"nothing\.yaml: cannot be read"):
        cluster_file(Path("nothing.yaml"))


def test_a_launcher_file_of_other_instances_is_refused(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("available_node_types: {a: {node_config: {InstanceType: m7i.large}}}")
    with pytest.raises(InputError, match=r"cluster.yaml: none of m7i.large is an instance type"):
        cluster_file(path)
    path.write_text("provider: {type: local}")
    with pytest.raises(InputError, match=r"cluster.yaml: no available_node_types"):
        cluster_file(path)


def test_this_machine_has_memory():
    node = this_machine()
    assert node.host_memory > 2**28
    assert node.actors >= 1


@pytest.mark.parametrize(
    ("written", "size"), [("80GB", 80 * GB), ("80GiB", 80 * 2**30), ("1.5TB", 1500 * GB), ("512", 512), ("4 kb", 4000)]
)
def test_sizes(written, size):
    assert parse_size("--x", written) == size


@pytest.mark.parametrize("written", ["", "80 apples", "-1GB", "iB"])
def test_no_sizes(written):
    with pytest.raises(InputError, match=r"--nvme: .* is no size"):
        parse_size("--nvme", written)


def test_numbers_for_people():
    assert parse_rate("--flops", "300T") == 300e12
    assert parse_rate("--disk-bandwidth", "2GB/s") == 2e9
    assert [format_gib(12.25 * 2**30), format_gib(3 * 2**20), format_gib(3e12)] == ["12.2 GiB", "3 MiB", "2.73 TiB"]
    assert [format_operations(n) for n in (8.2e15, 2.1e12, 500)] == ["8.2 PFLOP", "2.1 TFLOP", "0.5 kFLOP"]
    assert [duration(s) for s in (0.01, 4.21, 190, 19_000)] == ["10.0 ms", "4.2 s", "3 min 10 s", "5 h 16 min"]


def test_a_search_for_weights_solves_all_linears_once_a_trial(works: list[PlannedRun]) -> None:
    once, often = (
        stage_seconds(replace(works[0], solvings=count), range(2), False, RATES, "none", True).parts for count in (1, 9)
    )
    assert {part for part in once if often[part] != once[part]} == {"factorise", "solve"}
    assert often["solve"] == pytest.approx(9 * once["solve"])
    assert often["factorise"] == pytest.approx(9 * once["factorise"])
