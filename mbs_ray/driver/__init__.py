"""The driver's side of every command: it prepares runs, makes jobs, drives stages, and concludes.

Imports every room below it but ``cli``.
Begin with ``sweep.py``: the phases of a sweep, one under the other.
"""
