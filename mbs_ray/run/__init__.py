"""What a run is asked (specs), what it became (prepared), and where it lies (run directory, journal, card).

Imports: ``text``, ``model``, ``methods``, ``languages``.
Begin with ``spec.py``, then ``directory.py``: the run directory is the truth about a run.
"""
