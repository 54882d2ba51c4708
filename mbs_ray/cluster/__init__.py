"""Ray: the layout of actors, the jobs they are given, and the pipeline through which the driver reaches them.

``stage/`` runs inside the actors, ``activations/`` holds hidden states; the other files are the driver's.
Imports: ``evaluation`` (scoring, token scores), ``run``, ``compression``, ``text``, ``model``, ``methods``.
Begin with ``job.py``, then ``stage/block_loop.py``: the loop of the whole system.
"""
