"""MLflow: the connection, runs that survive outages, replay from run directories, views of its pages.

Only the driver's process uses this room.
Imports: ``report``, ``evaluation``, ``run``, ``compression`` (block reports), ``text``, ``model`` (manifest).
Begin with ``tracked_run.py``; ``sweep_tracking.py`` has what is logged of a sweep.
"""
