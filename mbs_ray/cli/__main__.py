"""``python -m mbs_ray.cli``: the same as ``mbs``."""

from mbs_ray.cli import app

app()
