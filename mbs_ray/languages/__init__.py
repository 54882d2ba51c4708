"""Languages, a model's distribution over them, and the samplings that allocate segments to languages.

Needs no torch. Imports: ``errors`` and ``files`` alone.
Begin with ``samplings.py``: one frozen dataclass per sampling; ``sampling_registry.py`` builds them from YAML.
"""
