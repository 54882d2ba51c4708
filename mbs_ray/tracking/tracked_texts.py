"""The texts of a run as MLflow's datasets: where they are from, and the fingerprint of what was drawn."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mbs_ray.run.prepare import PreparedRun
from mbs_ray.text.redaction import all_without_secrets
from mbs_ray.text.segment_request import SegmentRequest

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_DIGITS = 16  # of a fingerprint: MLflow takes at most 36, and its tables cut off more than these


def dataset_inputs(run: PreparedRun) -> "list[DatasetInput]":
    """Describe the calibration set under the name of its sampling, and every evaluation set under its own."""
    calibration = dataset_input(run.spec.sampling.label, run.calibration, "calibration")
    return [calibration, *(dataset_input(name, text, "evaluation") for name, text in run.evaluation.items())]


def dataset_input(name: str, text: SegmentRequest, context: str) -> "DatasetInput":
    """Describe one text; ``context`` says what it is for (calibration, evaluation)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    drawn: dict[str, Any] = {"sequence_length": text.sequence_length, "seed": text.seed}
    if text.allocation is not None:
        drawn["segments"] = dict(text.allocation)
    elif text.at_most is not None:
        drawn["segments_at_most"] = text.at_most
    if text.join != "end_token":
        drawn["join"] = text.join
    if begin := text.begin:
        drawn["begin"] = list(begin)
    on_the_hub = isinstance(text.corpus, Mapping)
    source = text.corpus if on_the_hub else {"uri": str(text.corpus)}
    dataset = Dataset(
        name=name,
        digest=text.fingerprint[:_DIGITS],
        source_type="hugging_face" if on_the_hub else "local",
        source=json.dumps(all_without_secrets(source)),
        profile=json.dumps(drawn),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
