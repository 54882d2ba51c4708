"""A sweep whose stage, node, MLflow server and driver are killed in the middle: same bits, each metric once.

A stage takes all memory, too, the driver sleeps, and a second driver comes.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.slow.chaos.__main__ import METHODS, sweep_spec
from tests.slow.chaos.evidence import bits, metrics
from tests.slow.chaos.nodes import Nodes
from tests.slow.chaos.orders import Order
from tests.slow.chaos.sweeps import Server, endure

ORDERS = [
    Order(1, "stage", "collect", 0.01),
    Order(2, "node", "propagate", 0.0),
    Order(3, "driver", "solve", 0.0),
    Order(4, "memory", "solve", 0.0),
    Order(5, "second", "collect", 0.0),
    Order(6, "sleep", "write", 0.0, sleep=15.0),
    Order(7, "server", "track", 0.0, "deliver"),
]


def test_kills_of_everything_cost_no_bit_and_no_metric(tmp_path: Path) -> None:
    with Nodes(3) as nodes, Server(tmp_path) as server:
        calm = sweep_spec(tmp_path, "calm", METHODS)
        endure(calm, tmp_path, nodes, server, lambda *_: None, tmp_path / "calm.log")
        orders: Iterator[Order] = iter(ORDERS)
        spec = {**calm, "name": "chaos"}
        chaos = endure(spec, tmp_path, nodes, server, lambda *_: next(orders, None), tmp_path / "chaos.log")
        assert [kill.order.target for kill in chaos.kills] == [order.target for order in ORDERS]
        assert chaos.starts == 3
        assert "was killed by Ray's memory monitor" in (tmp_path / "chaos.log").read_text()
        (refusal,) = chaos.refusals
        assert refusal.startswith(f"error: {tmp_path / 'chaos'}: held by ")
        assert bits(tmp_path / "chaos") == bits(tmp_path / "calm")
        undisturbed = metrics(server.uri, "calm")
        assert metrics(server.uri, "chaos") == undisturbed
        assert all(count == 1 for one in undisturbed.values() for count in one.values())
        assert sum(map(len, undisturbed.values())) > 50
    assert not nodes.folder.exists()
