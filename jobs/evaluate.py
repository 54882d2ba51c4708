"""``mbs evaluate`` as a job on a cluster, see docs/cluster.md.

ray job submit --working-dir . -- python jobs/evaluate.py bigscience/bloom-560m \\
    --corpus /shared/corpora/validation --out /shared/results
"""

import sys

from mbs_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
