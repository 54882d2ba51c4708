"""Memory, time and disk of a sweep, computed before it starts.

Imports: ``cluster``, ``evaluation`` (scoring), ``run``, ``compression``, ``model``, ``methods``, ``languages``.
Begin with ``make_plan.py``.
"""
