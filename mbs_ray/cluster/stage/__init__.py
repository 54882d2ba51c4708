"""Everything that runs inside the actor of a stage; only ``actor.py`` and ``replicas.py`` know that there are others.

Begin with ``block_loop.py``: collect, solve, measure, write and propagate, one under the other.
"""
