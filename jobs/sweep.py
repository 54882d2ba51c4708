"""``mbs sweep`` as a job on a cluster, see docs/cluster.md.

ray job submit --working-dir . -- python jobs/sweep.py jobs/sweeps/paper.yaml --out /shared/results
"""

import sys

from mbs_ray.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:]])
