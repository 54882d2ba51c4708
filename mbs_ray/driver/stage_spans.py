"""How busy the stages of a sweep were: shares of their time, a figure, and the spans themselves."""

from collections.abc import Callable, Sequence

import pandas as pd

from mbs_ray.cluster.layout import StagePlace
from mbs_ray.cluster.stage.timeline import KINDS, Span, shares
from mbs_ray.driver.conclusion import SweepResult, warned_if_unwritten
from mbs_ray.files import appearing
from mbs_ray.report.figures.canvas import save_figure
from mbs_ray.report.figures.stage_timeline import stage_timeline
from mbs_ray.run.sweep_folders import SweepFolders
from mbs_ray.tracking.tracked_run import TrackedRun


class StageSpans:
    """Spans of all actors of one command."""

    def __init__(self) -> None:
        self._spans: list[tuple[StagePlace, Span]] = []

    def add(self, spans: Sequence[tuple[StagePlace, Span]]) -> None:
        """Add spans, each with the stage and replica of its actor."""
        self._spans += spans

    def write_timeline(
        self, folders: SweepFolders, parent: TrackedRun, result: SweepResult, say: Callable[[str], None]
    ) -> None:
        """Print and log the share of each kind of work per stage; do nothing where nothing was computed."""
        if not self._spans:
            return
        places = sorted({place for place, _ in self._spans}, key=lambda place: (place.stage, place.replica))
        for place in places:
            parts = shares(span for own, span in self._spans if own == place)
            say(f"{place}: " + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items() if share))
        table = pd.DataFrame(
            [
                {"stage": place.stage, "replica": place.replica, "kind": KINDS[span.part], **vars(span)}
                for place, span in self._spans
            ]
        )
        path = folders.sweep / "timeline.parquet"
        with warned_if_unwritten(path.name, say):
            with appearing(path) as unfinished:
                table.to_parquet(unfinished, index=False)
            parent.artifact(path)
        with warned_if_unwritten("timeline.png", say):
            figure = save_figure(stage_timeline(table), folders.figures / "timeline.png")
            parent.artifact(figure, "figures")
            result.figures.append(figure)
