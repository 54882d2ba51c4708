"""A sweep of four runs of a tiny BLOOM, which tests of whole sweeps share."""

from pathlib import Path

from mbs_ray.run.sweep_spec import SweepSpec, validated

LABELS = ["magnitude-50-equal", "magnitude-50-proportional", "sparsegpt-50-equal", "sparsegpt-50-proportional"]


def tiny_sweep(bloom: Path, corpus: Path, held_out: Path, stages: int = 2, **changes: object) -> SweepSpec:
    run = {
        "model": str(bloom),
        "corpus": str(corpus),
        "languages": ["en", "fr", "sw", "hi"],
        "segments": 12,
        "sequence_length": 32,
        "evaluation": {
            "held-out": {"corpus": str(held_out), "segments": 5},
            "all": {"corpus": str(held_out), "segments": None},
        },
    }
    grid = {
        "method": [{"name": "magnitude", "sparsity": 0.5}, {"name": "sparsegpt", "sparsity": 0.5}],
        "sampling": ["equal", "proportional"],
    }
    return validated(
        SweepSpec, {"name": "tiny", "run": {**run, **changes}, "grid": grid, "layout": {"stages": stages}, "threads": 1}
    )
