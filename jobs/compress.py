"""``mbs compress`` as a job on a cluster, see docs/cluster.md.

ray job submit --working-dir . -- python jobs/compress.py --model bigscience/bloom-560m \\
    --corpus /shared/corpora/train --method sparsegpt:sparsity=0.5 --out /shared/results
"""

import sys

from mbs_ray.cli import app

if __name__ == "__main__":
    app(["compress", *sys.argv[1:]])
