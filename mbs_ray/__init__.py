"""Multilingual Brain Surgeon on Ray: compress multilingual language models, language by language."""

__version__ = "0.1.0"
