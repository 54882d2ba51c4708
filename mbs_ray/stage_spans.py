"""How busy the stages of a sweep were: shares of their time, a figure, and the spans themselves."""

from collections.abc import Callable, Sequence

import pandas as pd

from mbs_ray.cluster.timeline import KINDS, Span, shares
from mbs_ray.conclusion import SweepResult
from mbs_ray.places import Places
from mbs_ray.plots import save_figure, stage_timeline
from mbs_ray.tracking import TrackedRun


class StageSpans:
    """Spans of all stages of one command, in the order of the stages."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, Span]] = []

    def add(self, spans: Sequence[Sequence[Span]]) -> None:
        self._spans += [(stage, span) for stage, own in enumerate(spans) for span in own]

    def conclude(self, places: Places, parent: TrackedRun, result: SweepResult, say: Callable[[str], None]) -> None:
        """Say and log the share of each kind of work per stage; nothing where nothing was computed."""
        if not self._spans:
            return
        for stage in sorted({stage for stage, _ in self._spans}):
            parts = shares(span for own, span in self._spans if own == stage)
            say(
                f"stage {stage + 1}: "
                + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items() if share)
            )
        table = pd.DataFrame([{"stage": stage, "kind": KINDS[span.part], **vars(span)} for stage, span in self._spans])
        path = places.sweep / "timeline.parquet"
        table.to_parquet(path, index=False)
        parent.artifact(path)
        figure = save_figure(stage_timeline(table), places.sweep / "figures" / "timeline.png")
        parent.artifact(figure, "figures")
        result.figures.append(figure)
