"""Ray: the layout of actors, the jobs they are given, and the pipeline through which the driver reaches them.

``stage/`` runs inside the actors, ``activations/`` is where hidden states lie; the files beside them are the driver's.
Imports: ``evaluation`` (scoring, token scores), ``run``, ``compression``, ``text``, ``model``, ``methods``.
Begin with ``job.py``, then ``stage/block_loop.py``: the loop of the whole system.
"""
