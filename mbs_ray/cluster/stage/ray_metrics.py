"""Metrics of a stage for Ray, which Prometheus collects from every node."""

import time

from ray.util.metrics import Counter, Gauge

from mbs_ray.cluster.bounds import TierName
from mbs_ray.cluster.layout import StagePlace


class StageMetrics:
    """The metrics ``mbs_blocks_done``, ``mbs_tokens_per_second`` and ``mbs_activation_bytes`` of a stage's replica.

    Stage and replica are tags, counted from 1.
    """

    def __init__(self, place: StagePlace) -> None:
        tags = {"stage": str(place.stage + 1), "replica": str(place.replica + 1)}
        keys = tuple(tags)
        self._blocks = Counter("mbs_blocks_done", "Compressed blocks that were written.", keys)
        self._rate = Gauge("mbs_tokens_per_second", "Tokens taken through a block, per second.", keys)
        self._bytes = Gauge("mbs_activation_bytes", "Bytes that activations take.", (*keys, "tier"))
        for metric in (self._blocks, self._rate, self._bytes):
            metric.set_default_tags(tags)
        self._told = time.monotonic(), 0, 0

    def tell(self, blocks_done: int, tokens_done: int, tier: TierName, held: int) -> None:
        """Publish counts since the start of the stage, and the bytes held in its tier now."""
        now = time.monotonic()
        before, blocks, tokens = self._told
        self._told = now, blocks_done, tokens_done
        if blocks_done > blocks:
            self._blocks.inc(blocks_done - blocks)
        self._rate.set((tokens_done - tokens) / max(now - before, 1e-3))
        self._bytes.set(held, {"tier": "device" if tier == "none" else tier})
