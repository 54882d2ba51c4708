"""A checkpoint taken apart into blocks and put together again: transformers and safetensors.

Imports: ``errors`` and ``files`` alone.
Begin with ``decoder.py``: it runs any decoder block by block without code for its architecture.
"""
