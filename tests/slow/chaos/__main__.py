"""Kills stages, nodes, drivers and servers, lets drivers sleep and meet, drawn with a seed; prints a table.

``python -m tests.slow.chaos OUT --kills 30 --seed 0``
"""

import argparse
import random
from collections import Counter
from pathlib import Path

from tests.slow.chaos.evidence import bits, metrics
from tests.slow.chaos.nodes import Nodes
from tests.slow.chaos.orders import PHASES, TARGETS, Order, Target, draw
from tests.slow.chaos.sweeps import Endured, Server, endure
from tests.support.models import HELD_OUT, write_bloom, write_corpus

#: In one sweep; a stage that dies three times at one point would have its run given up.
KILLS_OF_A_SWEEP = 6


def sweep_spec(folder: Path, name: str, methods: list[dict], **changes: object) -> dict:
    """A small sweep whose phases last long enough to be hit; makes its model and its texts in ``folder``."""
    model, corpus, held_out = folder / "bloom", folder / "corpus", folder / "held-out"
    if not model.is_dir():
        write_bloom(model, layers=4, hidden=64)
        write_corpus(corpus, 240)
        write_corpus(held_out, 120, first=HELD_OUT)
    return {
        "name": name,
        "model": str(model),
        "corpus": str(corpus),
        "languages": ["en", "fr", "sw", "hi"],
        "segments": 192,
        "sequence_length": 64,
        "allow_repeat": True,
        "microbatch": 4,
        "evaluation": {"held-out": {"corpus": str(held_out), "segments": 16}},
        "layout": {"stages": 2},
        "threads": 1,
        "grid": {"method": methods, "sampling": ["equal", "proportional"]},
        **changes,
    }


METHODS = [{"name": "sparsegpt", "sparsity": 0.5}, {"name": "gptq", "bits": 4, "group_size": 16}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    source, hits, kills, refused = random.Random(arguments.seed), Counter[str](), 0, 0
    print("| kill | sweep | target | phase | run | block | blocks redone | result |")
    print("|---:|---:|---|---|---|---:|---:|---|", flush=True)
    targets: Counter[tuple[str, str]] = Counter()
    with Nodes(3) as nodes, Server(out) as server:

        def endured(name: str, orders: object, **changes: object) -> Endured:
            spec = sweep_spec(out, name, METHODS, **changes)
            return endure(spec, out, nodes, server, orders, out / f"{name}.log")  # type: ignore[arg-type]

        longer = {"segments": 768}

        endured("undisturbed", lambda *_: None, **longer)
        expected = bits(out / "undisturbed"), metrics(server.uri, "undisturbed")
        sweep = 0
        while kills < arguments.kills or min(hits[phase] for phase in PHASES) < 3:
            sweep += 1
            name = f"chaos-{arguments.seed}-{sweep}"
            here = Counter(hits)

            def next_order(
                so_far: Endured, away: set[Target], here: Counter = here, before: int = kills
            ) -> Order | None:
                if len(so_far.kills) >= KILLS_OF_A_SWEEP:
                    return None
                current = here + Counter(kill.phase for kill in so_far.kills)
                return draw(before + len(so_far.kills) + 1, Counter({p: current[p] for p in PHASES}), away, source)

            offload = {"offload": "nvme", "nvme_path": str(nodes.nvme)} if sweep % 2 else {"offload": "host"}
            done = endured(name, next_order, **longer, **offload)
            refused += len(done.refusals)
            same = bits(out / name) == expected[0]
            complete = metrics(server.uri, name) == expected[1]
            result = f"{'same bits' if same else 'OTHER BITS'}, metrics {'once each' if complete else 'DIFFER'}"
            for index, kill in enumerate(done.kills):
                kills += 1
                hits[kill.phase] += 1
                targets[kill.order.target, kill.phase] += 1
                block = kill.block + 1 if kill.block >= 0 else ""
                print(
                    f"| {kills} | {sweep} ({offload['offload']}) | {kill.order.target} | {kill.phase} | {kill.run} | "
                    f"{block} | {done.blocks_redone(index)} | {result} |",
                    flush=True,
                )
    print(f"\nSecond drivers that were refused in one line: {refused}")
    print(f"\n| target | {' | '.join(hits)} |\n|---|{'---:|' * len(hits)}")
    for target in TARGETS:
        print(f"| {target} | {' | '.join(str(targets[target, phase]) for phase in hits)} |")


if __name__ == "__main__":
    main()
