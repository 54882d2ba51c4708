"""Entry point for ``ray job submit``: a sweep on the cluster the job runs on.

ray job submit --working-dir . -- python jobs/sweep.py jobs/sweeps/bloom-560m.yaml --out /shared/results
"""

import sys

from mbs_ray.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:]])
