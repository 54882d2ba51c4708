"""One block in a plain process: collect second moments, solve every linear, measure what each language loses.

Imports: ``methods``, ``model``. Knows neither Ray nor the run directory.
Begin with ``collect.py`` and ``solve.py``.
"""
