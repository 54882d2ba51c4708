"""Text on its way from a corpus to segments: units, tokens, segments, for calibration and evaluation alike.

Imports: ``languages``. Ray Data lives in ``ray_data.py`` alone.
Begin with ``segment_draw.py``: it turns a request into a file of segments.
"""
