"""What the tests of the stages calibrate on."""

from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from mbs_ray.text.segment_file import SegmentSet
from tests.support.engine import draw


@pytest.fixture(scope="session")
def calibration(
    ray_cluster: Cluster, bloom: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> SegmentSet:
    """20 segments, five of a language: seven microbatches of three, which begin in one language and end in the next,
    the last of them short."""
    return draw(corpus, bloom, tmp_path_factory.mktemp("segments"), 5)
