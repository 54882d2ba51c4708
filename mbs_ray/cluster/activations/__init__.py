"""Where hidden states wait between blocks: device, host memory or NVMe. No Ray.

Begin with ``store.py``.
"""
