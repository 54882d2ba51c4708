#!/bin/sh
# ray 2.60.0: ray.cluster_utils.AutoscalingCluster, the class for trying an autoscaler on one machine, cannot be made
# from the wheel: it opens ray/autoscaler/_private/fake_multi_node/example.yaml, which the wheel does not hold. What a
# job asks of an autoscaler can be tried on real nodes or with a checkout of Ray alone.
#
# Seen:
#   FileNotFoundError: fake_multi_node/example.yaml
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "ray[default]==2.60.0"
said=$(cd "$folder" && env/bin/python - <<'PYTHON'
from pathlib import Path

from ray.cluster_utils import AutoscalingCluster

node = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1}
try:
    AutoscalingCluster(head_resources={"CPU": 1}, worker_node_types={"worker": node})
except FileNotFoundError as error:
    print("FileNotFoundError:", "/".join(Path(error.filename).parts[-2:]))
PYTHON
)
echo "$said"
test "$said" = "FileNotFoundError: fake_multi_node/example.yaml"
