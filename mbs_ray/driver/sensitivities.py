"""Sensitivities of languages on disk: measured once for all runs of a model, its forward and the same text."""

import json
from collections.abc import Mapping
from typing import Any

from mbs_ray.cluster.sensitivity_task import sensitivity_on_cluster
from mbs_ray.compression.sensitivity import Sensitivity
from mbs_ray.driver.progress import Progress
from mbs_ray.driver.sweep_jobs import SweepJobs
from mbs_ray.files import digest, own_content, read_json, write_json
from mbs_ray.run.prepare import PreparedRun
from mbs_ray.run.signature import forward_fields
from mbs_ray.text.segment_request import SegmentRequest

FORMAT = 1  # raise it with any change that gives other sensitivities, or finds other weights or amounts by the same


class SensitivityFile:
    """The sensitivities at the first ``segments`` of the ``texts``, by language; ``key`` tells them from others."""

    def __init__(self, run: PreparedRun, texts: Mapping[str, SegmentRequest], segments: int, jobs: SweepJobs) -> None:
        self._run, self._texts, self._segments, self._jobs = run, texts, segments, jobs
        self._fields = forward_fields(run, jobs.resources.numerics)
        forward = {**self._fields, "replicas": jobs.resources.layout.replicas}
        of_model = [str(FORMAT), run.model.fingerprint, json.dumps(forward, sort_keys=True)]
        self.key = digest(*of_model, *(text.fingerprint for text in texts.values()), str(segments))
        self._file = jobs.folders.adaptive / f"sensitivity-{self.key}.json"

    def measured(self, progress: Progress) -> Sensitivity:
        """Read the sensitivities, or measure them now, on a whole device of the cluster."""
        if not self._file.is_file():
            run, jobs = self._run, self._jobs
            with progress.steps(f"sensitivity of {run.model.name}") as notify:
                found = sensitivity_on_cluster(
                    run.model.checkpoint.folder,
                    self._fields["compute_dtype"],
                    run.microbatch,
                    {code: jobs.segments[text.fingerprint].path for code, text in self._texts.items()},
                    self._segments,
                    jobs.resources.numerics,
                    notify,
                )
            write_json(self._file, {str(block): linears for block, linears in found.items()})
        content: Mapping[str, Any] = read_json(self._file)
        with own_content(self._file):
            return {int(block): linears for block, linears in content.items()}
